"""What a person sees during a run: a progress bar, the important numbers and the time left."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.console import printable, spinner
from samadapt.system import atomic

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

LOG_EVERY = 20.0
"""Seconds between progress lines if there is no terminal that can show a bar."""


class Clock:
    """Estimates the time left in a whole run from the phases measured so far.

    Args:
        phases: units of work by phase, in order.
        like: for a phase that has not started, another phase whose units take as long.
    """

    def __init__(self, phases: Mapping[str, int], like: Mapping[str, str]) -> None:
        self.left = dict(phases)
        self._like = dict(like)
        self._seconds: dict[str, float] = {}
        self._units: dict[str, int] = {}
        self._bounds: dict[str, float] = {}

    def spent(self, phase: str, units: int, seconds: float) -> None:
        """Record that some units of a phase took some seconds."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
        self._units[phase] = self._units.get(phase, 0) + units
        self.left[phase] = max(0, self.left.get(phase, 0) - units)

    def bound(self, phase: str, seconds: float) -> None:
        """Record that a phase takes at most so many more seconds, whatever its units."""
        self._bounds[phase] = seconds

    def close(self, phase: str) -> None:
        """Record that a phase is over."""
        self.left[phase] = 0
        self._bounds.pop(phase, None)

    def unit_seconds(self) -> dict[str, float]:
        """Return the seconds of a unit of each phase that was measured."""
        return {name: self._seconds[name] / count for name, count in self._units.items() if count}

    def measured_seconds(self) -> float:
        """Return the seconds of all phases so far."""
        return sum(self._seconds.values())

    def seconds_left(self) -> float | None:
        """Return the estimate, or None if a phase that is still to come has not been measured."""
        total = 0.0
        for phase in {**self.left, **self._bounds}:
            seconds = self._seconds_of(phase)
            if seconds is None:
                return None
            total += seconds
        return total

    def _seconds_of(self, phase: str) -> float | None:
        units, bound = self.left.get(phase, 0), self._bounds.get(phase, math.inf)
        measured = phase if self._units.get(phase) else self._like.get(phase, phase)
        if units and self._units.get(measured):
            return min(bound, units * self._seconds[measured] / self._units[measured])
        if math.isfinite(bound):
            return bound
        return None if units else 0.0


class Progress:
    """A progress bar on a terminal, and lines elsewhere. Messages also go to ``log.txt``.

    Args:
        console: receives the bar and the messages.
        log: ``log.txt`` of the run.
        shown: whether anything is shown and written; False for all but the first of several
            processes.
    """

    def __init__(self, console: Console, log: Path, *, shown: bool = True) -> None:
        self.console, self.log_path, self.shown = console, log, shown
        self.clock = Clock({}, {})
        self._totals: dict[str, int] = {}
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._phase, self._done, self._text = "", 0, ""
        self._aside = 0.0  # seconds that were counted for other phases
        self._marked = self._lined = time.perf_counter()

    def plan(self, phases: Mapping[str, int], like: Mapping[str, str]) -> None:
        """Set the phases of the run; see ``Clock``."""
        self.clock = Clock(phases, like)
        self._totals = dict(phases)

    def say(self, text: str) -> None:
        """Show a message, and write it to ``log.txt`` with the time."""
        if not self.shown:
            return
        shown = printable(text, self.console.encoding)
        self.console.print(shown, markup=False, highlight=False, soft_wrap=True)
        atomic.append_text(self.log_path, f"{datetime.now():%H:%M:%S} {text}\n")

    @contextmanager
    def phase(self, name: str, start: int = 0, units: int | None = None) -> Iterator[None]:
        """Show one phase of the run while the context is open.

        Args:
            name: a phase of the plan, or another one with ``units``.
            start: number of units that are already done.
            units: number of units, if the phase is not in the plan.
        """
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        if units is not None:
            self._totals[name] = units
        total, is_terminal = self._totals.get(name, 0), self.console.is_terminal
        self._phase, self._done, self._text = name, start, ""
        self.clock.left[name] = max(0, total - start)
        self._marked = self._lined = time.perf_counter()
        columns = (
            SpinnerColumn(spinner(self.console)),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}  {task.fields[text]}"),
        )
        with Progress(
            *columns, console=self.console, transient=True, disable=not (self.shown and is_terminal)
        ) as bars:
            self._bars = bars
            self._task = bars.add_task(
                name, total=total or None, completed=start, count=self._count(), text=""
            )
            try:
                yield
            finally:
                self._bars = self._task = None
                self.clock.close(name)

    def advance(self, units: int = 1, text: str | None = None) -> None:
        """Count finished units of the current phase, and show ``text`` beside the bar."""
        now = time.perf_counter()
        self.clock.spent(self._phase, units, now - self._marked)
        self._marked = now
        self._done += units
        self._text = self._text if text is None else text
        shown = "  ".join(part for part in (self._text, self._left()) if part)
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=self._done, count=self._count(), text=shown)
        if not self.console.is_terminal and now - self._lined >= LOG_EVERY:
            self._lined = now
            self.say(f"{self._phase} {self._count()}  {shown}")

    @contextmanager
    def aside(self, name: str, units: int) -> Iterator[None]:
        """Count the time in this context for ``units`` of another phase instead.

        Of contexts in each other, the inner ones count their own time.
        """
        started, before = time.perf_counter(), self._aside
        try:
            yield
        finally:
            spent = time.perf_counter() - started - (self._aside - before)
            self.clock.spent(name, units, spent)
            self._aside += spent
            self._marked += spent

    def _count(self) -> str:
        """Return the finished units of the phase, and their number if it is known."""
        total = self._totals.get(self._phase, 0)
        return f"{self._done}/{total}" if total else str(self._done)

    def _left(self) -> str:
        seconds = self.clock.seconds_left()
        if seconds is None:
            return ""
        return f"{int(seconds // 60)}:{int(seconds % 60):02d} left of the run"


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append one JSON line to ``metrics.jsonl``. NaN and infinity become null."""
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
    atomic.append_text(path, json.dumps(plain) + "\n")


def keep_lines_up_to(path: Path, step: int) -> int:
    """Remove the lines of ``metrics.jsonl`` that a resumed run will write again.

    Args:
        path: ``metrics.jsonl``; the file need not exist.
        step: number of optimizer steps in the checkpoint.

    Returns:
        The number of removed lines: those of later steps, and lines cut off by a killed process.
    """
    if not path.is_file():
        return 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _is_of_step(line, step)]
    if len(kept) < len(lines):
        atomic.write_text(path, "".join(kept))
    return len(lines) - len(kept)


def _is_of_step(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and int(json.loads(line)["step"]) <= step
    except (ValueError, TypeError, KeyError):
        return False
