"""One thread for all clients: jobs take turns, and nobody waits for what runs in advance."""

from __future__ import annotations

import threading

import pytest

from samadapt.serving.worker import Worker


@pytest.fixture
def worker():
    made = Worker()
    yield made
    if not made.is_stopped:
        made.stop()


def test_jobs_take_turns_and_those_in_advance_come_last(worker):
    done = []

    def job(name, steps):
        for step in range(steps):
            done.append(f"{name}{step}")
            yield
        return name

    ahead = worker.submit(job("z", 2), ahead=True)
    long, short = worker.submit(job("a", 3)), worker.submit(job("b", 1))
    worker.start()
    assert [one.result(5) for one in (long, short, ahead)] == ["a", "b", "z"]
    assert done == ["a0", "b0", "a1", "a2", "z0", "z1"]


def test_an_error_reaches_the_one_who_waits_and_no_other(worker):
    worker.start()

    def fail():
        raise ValueError("broken")

    broken, fine = worker.call(fail), worker.call(lambda: 3)
    assert fine.result(5) == 3
    with pytest.raises(ValueError, match="broken"):
        broken.result(5)


def test_what_is_left_at_the_end_is_cancelled(worker):
    begun, go = threading.Event(), threading.Event()

    def wait():
        begun.set()
        go.wait(5)

    worker.start()
    first, second = worker.call(wait), worker.call(lambda: 3)
    assert begun.wait(5)
    go.set()
    worker.stop()
    assert first.done()
    assert second.cancelled() or second.result() == 3
