"""One thread that computes for all clients, a step of each job in turn.

A job is a generator. Between its steps (the slices of a volume) other jobs get their turn, so that
a click on a picture does not wait for an object that is carried through somebody's volume. Jobs
that nobody waits for, such as encoding slices in advance, run while there are no others.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Job = Generator[None, None, T]


class Worker:
    """Runs jobs in one thread, from ``start`` to ``stop``.

    Args:
        context: entered around every step, such as the number format of the models.
    """

    def __init__(self, context: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self._context = context
        self._waited: deque[tuple[Job[Any], Future[Any]]] = deque()
        self._ahead: deque[tuple[Job[Any], Future[Any]]] = deque()
        self._change = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="samadapt-serve", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its step; jobs that are left are cancelled."""
        with self._change:
            self._stopped = True
            self._change.notify()
        self._thread.join()
        for job, future in (*self._waited, *self._ahead):
            future.cancel()
            job.close()

    @property
    def is_stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopped

    def submit(self, job: Job[T], *, ahead: bool = False) -> Future[T]:
        """Queue a job.

        Args:
            job: a generator, whose return value is the result.
            ahead: nobody waits for it.
        """
        future: Future[T] = Future()
        with self._change:
            (self._ahead if ahead else self._waited).append((job, future))
            self._change.notify()
        return future

    def call(self, do: Callable[[], T]) -> Future[T]:
        """Queue a function as a job of one step."""

        def job() -> Job[T]:
            yield from ()
            return do()

        return self.submit(job())

    def _run(self) -> None:
        with torch.no_grad():
            while True:
                with self._change:
                    while not (self._stopped or self._waited or self._ahead):
                        self._change.wait()
                    if self._stopped:
                        return
                    queue = self._waited or self._ahead
                    job, future = queue.popleft()
                if self._step(job, future):
                    with self._change:
                        queue.append((job, future))

    def _step(self, job: Job[Any], future: Future[Any]) -> bool:
        """Run a step of a job; return whether there are more."""
        try:
            with self._context():
                next(job)
        except StopIteration as end:
            future.set_result(end.value)
        except BaseException as error:  # the one who waits for the job gets it
            future.set_exception(error)
        else:
            return True
        return False
