"""What a task of ``end_to_end`` is: its files, its facts, and which CPU-seconds count."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF
from typing import Any


@dataclass
class Task:
    """One contender at one task.

    Attributes:
        root: folder of MSD Task04.
        folder: a folder for its files.
        facts: what the row says beside the seconds.
        not_counted_s: CPU-seconds of preparations and scores that do not belong to the task.
        scaled_s: CPU-seconds to add because only a part was done.
    """

    root: Path
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    not_counted_s: float = 0.0
    scaled_s: float = 0.0

    @contextmanager
    def uncounted(self) -> Any:
        """Leave out what is done in the context."""
        began = cpu_seconds()
        yield
        self.not_counted_s += cpu_seconds() - began

    @contextmanager
    def part(self, done: int, all_of_them: int, what: str) -> Any:
        """Count what is done in the context as if all had been done."""
        began = cpu_seconds()
        yield
        taken = cpu_seconds() - began
        self.scaled_s += taken * (all_of_them / done - 1)
        self.facts["scaled"] = f"{done} of {all_of_them} {what} measured"


def cpu_seconds() -> float:
    """Return what this process, and those that it waited for, have used."""
    own, others = (resource.getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def cli(*arguments: str) -> None:
    """Run a command of samadapt in this process.

    Raises:
        RuntimeError: it does not end with 0.
    """
    from samadapt.cli import main as samadapt

    code = samadapt(list(arguments))
    if code:
        raise RuntimeError(f"samadapt {arguments[0]} ended with {code}")
