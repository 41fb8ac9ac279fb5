"""Ctrl-C and SIGTERM end a run after the step at hand, with everything saved."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, ClassVar

from samadapt.errors import SamadaptError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedRunError(SamadaptError):
    """The run was asked to stop, and its state is saved."""

    exit_code: ClassVar[int] = 130

    def __init__(self, run_dir: Path, step: int) -> None:
        """Say how to go on."""
        self.step = step
        super().__init__(
            f"stopped after step {step}, all saved; "
            f"continue with: samadapt finetune resume={run_dir}"
        )


class StopRequest:
    """While active, the first signal sets ``requested``; a second one interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        """Take over the signals; only the main thread of a program can."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._stop) for number in SIGNALS}
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

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
