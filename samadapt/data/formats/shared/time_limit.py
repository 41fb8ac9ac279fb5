"""Read files in threads with a time limit each, and never wait for a thread that is stuck.

A decoder that never returns cannot be stopped from outside. The thread pool of the standard library
waits for it, at the end of the block and again when Python exits, so that Ctrl-C and SIGTERM seem
to have no effect. Here a stuck thread is abandoned: another takes its place, and it ends with the
program.
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

_WAKE_UP_S = 0.2
"""How often the waiting thread wakes up, in seconds. Windows handles a signal only then."""


class TookTooLongError(Exception):
    """A file was not read within the time limit of ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not done after {seconds:g} s")
        self.seconds = seconds


class _Task(Generic[Item, Result]):
    """One item: when its work began (``time.monotonic``), and its result or error."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.begun = 0.0
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.is_done = self.is_abandoned = False


class _AbandonablePool(Generic[Item, Result]):
    """Daemon threads that work through a list of items."""

    def __init__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self.function = function
        self.tasks = [_Task[Item, Result](item) for item in items]
        self.waiting = deque(self.tasks)
        self.running: set[_Task[Item, Result]] = set()
        self.changed = threading.Condition()

    def start(self) -> None:
        """Start one more thread."""
        threading.Thread(target=self._run, daemon=True, name="samadapt-reader").start()

    def _run(self) -> None:
        while True:
            with self.changed:
                if not self.waiting:
                    return
                task = self.waiting.popleft()
                task.begun = time.monotonic()
                self.running.add(task)
            try:
                task.result = self.function(task.item)
            except BaseException as error:  # raised again in the thread that asks for the result
                task.error = error
            with self.changed:
                task.is_done = True
                self.running.discard(task)
                self.changed.notify_all()
                if task.is_abandoned:  # another thread has taken the place of this one
                    return

    def wait(self, task: _Task[Item, Result], seconds: float) -> None:
        """Return when a task is done, or began more than ``seconds`` ago."""
        with self.changed:
            while not task.is_done and not task.is_abandoned:
                self.changed.wait(_WAKE_UP_S)
                self._abandon_late(seconds)

    def _abandon_late(self, seconds: float) -> None:
        """Replace the threads of all tasks that began more than ``seconds`` ago."""
        oldest = time.monotonic() - seconds
        for task in [task for task in self.running if task.begun < oldest]:
            self.running.discard(task)
            task.is_abandoned = True
            self.start()

    def stop(self) -> None:
        """Begin no further task."""
        with self.changed:
            self.waiting.clear()


def each(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result | TookTooLongError]:
    """Yield ``function(item)`` in the order of the items, computed in threads.

    An item that takes longer than ``limits.max_seconds`` yields a ``TookTooLongError`` instead. An
    exception in ``function`` is raised here.
    """
    pool = _AbandonablePool[Item, Result](function, items)
    seconds = max_seconds()
    for _ in range(min(workers, len(items))):
        pool.start()
    try:
        for task in pool.tasks:
            pool.wait(task, seconds)
            if not task.is_done:
                yield TookTooLongError(seconds)
                continue
            if task.error is not None:
                raise task.error
            yield task.result  # type: ignore[misc]  # the function's own result, None or not
            task.result = None  # a volume need not stay in memory once it is used
    finally:
        pool.stop()


def within_limit(function: Callable[[Item], Result], item: Item) -> Result:
    """Return ``function(item)``, computed in a thread that can be abandoned.

    Raises:
        TookTooLongError: it took longer than ``limits.max_seconds``.
    """
    for result in each(function, [item], 1):
        if isinstance(result, TookTooLongError):
            raise result
        return result
    raise RuntimeError("one item gives one result")
