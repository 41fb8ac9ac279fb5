"""Stop a run after the current step when a signal arrives, with everything saved.

The signals are Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 (SLURM sends it before the time of a job is over)
and SIGUSR2. The exit code is 128 + the number of the signal, as in shells. SIGHUP, SIGUSR1 and
SIGUSR2 stay ignored if they are ignored when the program starts, which is what ``nohup`` asks for.
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
    if hasattr(signal, name)  # Windows has only the first two
)
_MAY_BE_IGNORED = {
    getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
}


class InterruptedRunError(SamadaptError):
    """A signal stopped the run, and its state is saved.

    Attributes:
        run_dir: directory of the stopped run.
        step: number of optimizer steps done.
        number: number of the signal.
        exit_code: 128 + ``number``.
    """

    def __init__(
        self, run_dir: Path, step: int, number: int = signal.SIGINT, command: str = "finetune"
    ) -> None:
        """Build the message, which says how to continue: with ``samadapt COMMAND resume=``."""
        self.run_dir, self.step, self.number = run_dir, step, number
        self.exit_code = 128 + number  # type: ignore[misc]  # of this error, not of its class
        super().__init__(
            f"stopped after step {step}, all saved; "
            f"continue with: samadapt {command} resume={run_dir}"
        )


class StoppedError(KeyboardInterrupt):
    """A signal stops the program at once.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        """Store the number for the exit code."""
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """Return the exit code: 128 + the number of the signal that interrupted the program."""
    return 128 + getattr(error, "number", int(signal.SIGINT))


class _Handlers:
    """Handles the signals while it is active. Only the main thread of a program can do that."""

    respected = _MAY_BE_IGNORED
    """Signals that stay ignored if they are ignored at the start."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Any:
        """Install the handlers."""
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in SIGNALS:
            before = signal.getsignal(number)
            ignored = before == signal.SIG_IGN and number in self.respected
            if before is not None and not ignored:  # None means that C code handles it
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the earlier handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError


class StopRequest(_Handlers):
    """While it is active, the first signal sets ``requested``, and a second one stops at once.

    Attributes:
        number: number of the first signal; 0 before it arrives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.number != 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise StoppedError(number)
        self.number = number


class StopAtOnce(_Handlers):
    """While it is active, a signal raises ``StoppedError``, and a second one ends the process.

    The second signal helps when something swallows the error or waits, as a thread pool does.
    """

    respected = _MAY_BE_IGNORED | {signal.SIGINT}  # a shell ignores it for background jobs

    def __init__(self) -> None:
        super().__init__()
        self._stopping = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            os._exit(128 + number)
        self._stopping = True
        raise StoppedError(number)
