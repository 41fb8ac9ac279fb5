"""Signals end a run after the step at hand, with everything saved.

Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 (SLURM's warning before a job's time is over) and SIGUSR2 ask for
an end; the process ends with 128 + the number of the signal, as shells count. SIGHUP, SIGUSR1 and
SIGUSR2 that are ignored when the program starts stay ignored: that is what ``nohup`` asks for.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from samadapt.errors import SamadaptError

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)  # Windows has the first two
)
_MAY_BE_IGNORED = {
    getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
}


class InterruptedRunError(SamadaptError):
    """The run was asked to stop, and its state is saved.

    Attributes:
        step: optimizer steps done.
        number: of the signal.
        exit_code: 128 + that.
    """

    def __init__(self, run_dir: Path, step: int, number: int = signal.SIGINT) -> None:
        """Say how to go on."""
        self.step, self.number = step, number
        self.exit_code = 128 + number  # type: ignore[misc]  # of this error, not of its class
        super().__init__(
            f"stopped after step {step}, all saved; "
            f"continue with: samadapt finetune resume={run_dir}"
        )


class StoppedError(KeyboardInterrupt):
    """A signal ends the program at once.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        """Keep the number, for the exit code."""
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """Return 128 + the number of the signal that interrupted the program."""
    return 128 + getattr(error, "number", int(signal.SIGINT))


class _Handlers:
    """Take over the signals while active; only the main thread of a program can."""

    respected = _MAY_BE_IGNORED
    """Signals that stay ignored where they are."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Any:
        """Take over the signals that are not to be left alone."""
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in SIGNALS:
            before = signal.getsignal(number)
            ignored = before == signal.SIG_IGN and number in self.respected
            if before is not None and not ignored:  # None: C code handles it
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError


class StopRequest(_Handlers):
    """While active, the first signal sets ``requested``; a second one interrupts at once.

    Attributes:
        number: of the first signal; 0 before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.number != 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise StoppedError(number)
        self.number = number


class StopAtOnce(_Handlers):
    """While active, a signal raises ``StoppedError``; a second one ends the process.

    The second is for a first that something swallows or waits for, as a pool of threads does.
    """

    respected = _MAY_BE_IGNORED | {signal.SIGINT}  # a shell ignores it for what runs behind

    def __init__(self) -> None:
        super().__init__()
        self._stopping = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            os._exit(128 + number)
        self._stopping = True
        raise StoppedError(number)
