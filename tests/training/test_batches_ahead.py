"""Batches that threads make ahead: the same ones, in order, and counted when they are given out."""

from __future__ import annotations

import threading
from itertools import count, islice

import pytest

from samadapt.errors import DataError
from samadapt.training.batches_ahead import BatchesAhead

WAIT = 30.0


class Draws:
    """Draws the numbers 0, 2, 4, ... as batches of two."""

    drawn = 0

    def next(self) -> int:
        self.drawn += 2
        return self.drawn - 2


@pytest.mark.parametrize(("threads", "ahead"), [(0, 1), (1, 1), (1, 4), (3, 1)])
def test_batches_come_in_order_and_are_counted_when_given_out(threads: int, ahead: int) -> None:
    batches = BatchesAhead(Draws(), lambda drawn: drawn * 10, threads=threads, ahead=ahead)
    assert batches.drawn == 0
    for number, batch in zip(range(7), batches, strict=False):
        assert batch == 20 * number
        assert batches.drawn == 2 * (number + 1)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_resumed_training_goes_on_where_it_was(threads: int) -> None:
    batches = BatchesAhead(Draws(), lambda drawn: drawn, threads=threads)
    assert list(islice(batches, 3)) == [0, 2, 4]
    batches.drawn = 2
    assert batches.drawn == 2
    assert list(islice(batches, 3)) == [2, 4, 6]
    assert batches.drawn == 8


def test_the_next_batch_is_made_during_a_step() -> None:
    made = [threading.Event() for _ in range(6)]

    def make(drawn: int) -> int:
        made[drawn // 2].set()
        return drawn

    batches = BatchesAhead(Draws(), make, threads=1, ahead=2)
    next(batches)
    assert made[1].wait(WAIT)
    assert made[2].wait(WAIT)
    assert not made[3].is_set()  # no more than asked for
    next(batches)
    assert made[3].wait(WAIT)


def test_without_threads_nothing_is_made_ahead() -> None:
    asked = []
    batches = BatchesAhead(Draws(), asked.append)
    next(batches)
    assert asked == [0]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_error_comes_at_its_turn(threads: int) -> None:
    def make(drawn: int) -> int:
        if drawn == 4:
            raise DataError("case[2]: no object")
        return drawn

    batches = BatchesAhead(Draws(), make, threads=threads)
    assert [next(batches), next(batches)] == [0, 2]
    with pytest.raises(DataError, match=r"case\[2\]"):
        next(batches)
    assert next(batches) == 6


def test_threads_work_side_by_side() -> None:
    met = threading.Barrier(3, timeout=WAIT)
    calls = count()

    def make(drawn: int) -> int:
        if next(calls) < 3:
            met.wait()  # breaks unless three batches are made at once
        return drawn

    batches = BatchesAhead(Draws(), make, threads=3)
    assert list(islice(batches, 4)) == [0, 2, 4, 6]
