"""Batches that are made while a step runs, so that a step does not wait for its pictures.

Reading, changing and prompting the slices of a batch runs mostly in numpy and SciPy, outside of
Python's lock, so threads are enough. What a batch holds is drawn in order in the main thread and
follows from the seed, so batches are the same as without.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from samadapt.training.batches import Batch
    from samadapt.training.draws import BatchDraws, Drawn


class BatchesAhead:
    """Endless batches.

    Args:
        draws: draws what the batches hold.
        make: makes a batch of what was drawn.
        threads: threads that make the batches that come next; 0: each is made when it is asked for.
        ahead: batches that are made, or wait, while a step runs; those of one step, or one for each
            thread if that is more.
    """

    def __init__(
        self, draws: BatchDraws, make: Callable[[Drawn], Batch], *, threads: int = 0, ahead: int = 1
    ) -> None:
        self.draws, self.make = draws, make
        self._ahead = max(ahead, threads) if threads else 0
        self._pool = ThreadPoolExecutor(threads, "batches") if threads else None
        self._coming: deque[tuple[int, Future[Batch]]] = deque()
        self._drawn = draws.drawn

    @property
    def drawn(self) -> int:
        """Stacks that the batches so far have held, of all processes; see ``BatchDraws.drawn``."""
        return self._drawn

    @drawn.setter
    def drawn(self, count: int) -> None:
        for _, future in self._coming:
            future.cancel()
        self._coming.clear()
        self.draws.drawn = self._drawn = count

    def __iter__(self) -> BatchesAhead:
        return self

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
            DataError: a slice of this batch cannot be read or has nothing to prompt; what is wrong
                with later batches is raised when it is their turn.
        """
        if self._pool is None:
            batch = self.make(self.draws.next())
            self._drawn = self.draws.drawn
            return batch
        while len(self._coming) <= self._ahead:
            drawn = self.draws.next()
            self._coming.append((self.draws.drawn, self._pool.submit(self.make, drawn)))
        self._drawn, future = self._coming.popleft()
        return future.result()
