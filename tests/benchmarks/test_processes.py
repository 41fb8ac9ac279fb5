"""``benchmarks/processes.py``: what it times exists, and seconds are those of their phase."""

from __future__ import annotations

import time
from importlib import import_module

from benchmarks.processes import PHASES, Watch, line_of


def test_phases_are_functions_that_a_run_calls() -> None:
    for path in PHASES.values():
        place, _, name = path.rpartition(".")
        assert callable(getattr(import_module(place), name)), path


def test_what_is_called_within_a_phase_counts_as_its_communication() -> None:
    watch = Watch()
    send = watch.timed("sum", lambda: time.sleep(0.01), phase=False)

    def step() -> None:
        send()
        send()

    watch.timed("training", step, phase=True)()
    assert watch.calls == {"training: sum": 2, "training": 1}
    assert 0.02 <= watch.seconds["training: sum"] <= watch.seconds["training"]
    assert watch.phase == "other"


def test_latency_and_rate_are_those_of_a_line_through_the_sums() -> None:
    sums = {4: 0.001, 4_000_000: 0.005, 16_000_000: 0.017}
    latency, rate = line_of({str(size): seconds for size, seconds in sums.items()})
    assert latency == 0.001
    assert 0.99e9 < rate < 1.01e9
