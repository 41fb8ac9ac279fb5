"""The time of a training: what it used, what still fits, and what a resumed one has left."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from samadapt.errors import ConfigError
from samadapt.training import budget as module
from samadapt.training.budget import Budget


class Clocks:
    """A wall clock and a CPU clock that stand still until they are moved."""

    def __init__(self):
        self.now = np.array([100.0, 7.0])

    def __call__(self):
        return self.now.copy()

    def move(self, seconds, cpu_seconds=None):
        self.now += [seconds, seconds if cpu_seconds is None else cpu_seconds]


@pytest.fixture
def clocks(monkeypatch):
    found = Clocks()
    monkeypatch.setattr(module, "read_clocks", found)
    return found


def step(budget, clocks, *seconds):
    began = budget.begin_step()
    clocks.move(*seconds)
    budget.end_step(began)


def validation(budget, clocks, *seconds):
    with budget.validation():
        clocks.move(*seconds)


def test_without_limits_everything_fits_and_no_share_has_passed(clocks):
    budget = Budget()
    clocks.move(1e6)
    step(budget, clocks, 1e6)
    assert (budget.is_limited, budget.fits_step(), budget.share) == (False, True, 0.0)
    assert budget.seconds_left == math.inf
    assert (budget.summary(), budget.text()) == (None, "")


def test_paused_time_does_not_count(clocks):
    budget = Budget(max_seconds=50)
    clocks.move(10)
    with budget.paused():
        clocks.move(1000, 2000)
    clocks.move(5)
    assert budget.used.tolist() == [15, 15]


def test_paused_time_of_several_processes_does_not_count_either(clocks, monkeypatch):
    from samadapt.system import processes
    from samadapt.training import budget as module

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda value: [value, value])
    budget = module.Budget(max_seconds=50)
    clocks.move(10)
    with budget.paused():
        clocks.move(1000, 2000)
    clocks.move(5)
    budget.agree()
    assert budget.used[0] == 15


def test_both_clocks_are_read():
    budget = Budget()
    sum(range(200_000))
    wall, cpu = budget.used
    assert cpu > 0
    assert wall > 0


def test_the_share_begins_with_the_first_step_and_ends_before_the_last_validation(clocks):
    budget = Budget(max_seconds=100)
    clocks.move(20)  # the features
    budget.begin_step()
    assert budget.share == 0
    clocks.move(20)
    assert budget.share == pytest.approx(20 / 80)
    validation(budget, clocks, 10)
    assert budget.share == pytest.approx(30 / 70)
    clocks.move(40)
    assert budget.share == 1
    clocks.move(40)
    assert budget.share == 1


def test_the_clock_that_used_the_larger_share_counts(clocks):
    budget = Budget(max_seconds=100, max_cpu_seconds=100)
    budget.begin_step()
    clocks.move(10, 40)
    assert budget.share == pytest.approx(0.4)
    assert budget.seconds_left == pytest.approx(60 * 10 / 40)


def test_a_step_fits_with_the_validation_that_follows_it(clocks):
    budget = Budget(max_seconds=20)
    step(budget, clocks, 2)
    step(budget, clocks, 4)  # 6 s used, a step takes 3 s
    validation(budget, clocks, 7)  # 13 s used
    assert not budget.fits_step()  # 13 + 3 + 7 > 20
    longer = Budget(max_seconds=20)
    step(longer, clocks, 3)
    validation(longer, clocks, 7)
    assert longer.fits_step()  # 10 + 3 + 7


def test_only_recent_steps_predict_the_next(clocks):
    budget = Budget(max_seconds=1000)
    step(budget, clocks, 500)  # the first one compiles something
    for _ in range(module.RECENT):
        step(budget, clocks, 1)
    assert budget.fits_step()
    clocks.move(479.5)
    assert not budget.fits_step()


def test_a_validation_that_was_never_measured_is_guessed(clocks):
    budget = Budget(max_seconds=20, validation_steps=2.5)
    assert budget.fits_step()  # nothing is known yet
    step(budget, clocks, 4)
    assert budget.fits_step()  # 4 + 4 + 10
    step(budget, clocks, 4)
    assert not budget.fits_step()  # 8 + 4 + 10


def test_cpu_seconds_are_limited_alone(clocks):
    budget = Budget(max_cpu_seconds=10)
    step(budget, clocks, 1000, 4)
    assert budget.fits_step()
    assert budget.text() == "4.0 of 10 CPU-seconds (train.max_cpu_seconds)"
    step(budget, clocks, 1000, 4)
    assert not budget.fits_step()
    assert budget.summary() == {
        "max_seconds": None,
        "max_cpu_seconds": 10.0,
        "used_seconds": 2000.0,
        "used_cpu_seconds": 8.0,
    }


def test_a_resumed_training_has_the_rest(clocks):
    first = Budget(max_seconds=100)
    clocks.move(10)
    step(first, clocks, 20)
    validation(first, clocks, 5)
    state = json.loads(json.dumps(first.state()))
    share = first.share
    clocks.move(10_000)  # the run is stopped
    second = Budget(max_seconds=100)
    second.restore(state)
    assert second.used[0] == 35
    assert second.share == pytest.approx(share)
    second.begin_step()
    assert second.share == pytest.approx(share)
    clocks.move(40)
    assert second.fits_step()  # 75 + 20 + 5
    clocks.move(1)
    assert not second.fits_step()


def test_a_budget_that_the_features_used_up_is_refused(clocks):
    budget = Budget(max_seconds=5)
    clocks.move(4)
    budget.refuse_if_spent()
    clocks.move(8.3)
    with pytest.raises(ConfigError) as caught:
        budget.refuse_if_spent()
    assert "the features took 12.3 of 5 s (train.max_seconds)" in str(caught.value)
    assert "Give more time" in str(caught.value)
