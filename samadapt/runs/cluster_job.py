"""A command of samadapt as a job of a cluster: saved and queued again when its time runs out.

submitit pickles a ``CommandJob`` into its own file and calls it in every process of the job. The
job runs what a user would type, such as ``samadapt finetune resume=RUN_DIR``, so a job that starts
again goes on where the last one stopped.

A job is warned before its time is over, with SIGUSR2 unless ``SUBMITIT_PREEMPT_SIGNAL`` names
another signal. submitit installs a handler that queues the job again at once. While the command
runs, its own handlers stand in the way: they finish the step, save, and end the command with 128 +
the number of the signal (``interrupt.py``). Only then is submitit's handler called.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from samadapt.errors import RunError

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission


@dataclass(frozen=True)
class CommandJob:
    """A command line of samadapt, as submitit runs it.

    Attributes:
        arguments: the arguments after ``samadapt``. The command must be one that goes on where it
            stopped when it is run again.
    """

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        """Run the command; if the warning signal stopped it, queue the job again.

        Raises:
            RunError: the command failed; its messages are in the log.
            SystemExit: the job is queued again.
        """
        # This room lies below the command line, which finds its commands in the same way.
        code = import_module("samadapt.cli").main(self.arguments)
        warning = int(getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"))
        if code == 128 + warning:
            _queue_again(warning)
        if code != 0:
            raise RunError(
                f"samadapt {' '.join(self.arguments)} ended with exit code {code}; its messages "
                "are in the log of the job"
            )

    def checkpoint(self) -> DelayedSubmission:
        """Return what the job does when it starts again: the same command."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _queue_again(number: int) -> None:
    """Let submitit handle the signal that has stopped the command, and end this process.

    Raises:
        SystemExit: always, unless submitit refuses because the job ran out of time too often.
    """
    handler = signal.getsignal(number)
    if callable(handler):
        handler(number, None)
    # The handler returns in all processes of the job but the first, which queues it for all. They
    # end without a result and without an error, because srun would stop the first one with them.
    raise SystemExit(0)
