"""Read files in threads that may be left behind: a time limit a file, and no waiting for the end.

A decoder that never returns cannot be stopped from outside. The standard library's pool waits for
it, at the end of the block and again when Python ends, so that Ctrl-C and SIGTERM seem to have no
effect. Here the thread that is stuck is left to itself and ends with the program.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from samadapt.system.limits import max_seconds

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOOK_AGAIN_S = 0.2
"""How often the waiting thread wakes up; on Windows a signal is seen only then."""


class TookTooLongError(Exception):
    """A file was not read within the time limit, ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not done after {seconds:g} s")
        self.seconds = seconds


class _Work(Generic[Item, Result]):
    """One item on its way: when it was begun, and what came out of it."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.begun = 0.0
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.is_done = self.is_given_up = False


class _Pool(Generic[Item, Result]):
    """Some threads that work through a list; they end with the program if not before."""

    def __init__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self.function = function
        self.works = [_Work[Item, Result](item) for item in items]
        self.left = deque(self.works)
        self.running: set[_Work[Item, Result]] = set()
        self.changed = threading.Condition()

    def start(self) -> None:
        """Start one more thread."""
        threading.Thread(target=self._run, daemon=True, name="samadapt-reader").start()

    def _run(self) -> None:
        while True:
            with self.changed:
                if not self.left:
                    return
                work = self.left.popleft()
                work.begun = time.monotonic()
                self.running.add(work)
            try:
                work.result = self.function(work.item)
            except BaseException as error:  # it is raised again where the result is asked for
                work.error = error
            with self.changed:
                work.is_done = True
                self.running.discard(work)
                self.changed.notify_all()
                if work.is_given_up:  # another thread has taken this one's place
                    return

    def wait(self, work: _Work[Item, Result], seconds: float) -> None:
        """Return when an item is done, or was begun so many seconds ago."""
        with self.changed:
            while not work.is_done and not work.is_given_up:
                self.changed.wait(_LOOK_AGAIN_S)
                self._give_up(seconds)

    def _give_up(self, seconds: float) -> None:
        oldest = time.monotonic() - seconds
        for work in [work for work in self.running if work.begun < oldest]:
            self.running.discard(work)
            work.is_given_up = True
            self.start()

    def stop(self) -> None:
        """Begin no other item."""
        with self.changed:
            self.left.clear()


def each(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result | TookTooLongError]:
    """Yield ``function(item)`` in the order of the items, computed in threads.

    An item that takes longer than ``limits.max_seconds`` gives a ``TookTooLongError`` in its
    place. What ``function`` raises is raised here.
    """
    pool = _Pool[Item, Result](function, items)
    seconds = max_seconds()
    for _ in range(min(workers, len(items))):
        pool.start()
    try:
        for work in pool.works:
            pool.wait(work, seconds)
            if not work.is_done:
                yield TookTooLongError(seconds)
                continue
            if work.error is not None:
                raise work.error
            yield work.result  # type: ignore[misc]  # it is the function's own, None or not
            work.result = None
    finally:
        pool.stop()


def within_limit(function: Callable[[Item], Result], item: Item) -> Result:
    """Return ``function(item)``, computed in a thread that can be left behind.

    Raises:
        TookTooLongError: it took longer than ``limits.max_seconds``.
    """
    for result in each(function, [item], 1):
        if isinstance(result, TookTooLongError):
            raise result
        return result
    raise RuntimeError("one item gives one result")
