"""The work of a call on the outputs of a folder, of which other calls may do other parts.

A call does the whole folder or a part of it, such as a job of an array. Part 3 of 8 is every eighth
image from the fourth one on, counted over the whole folder, whatever is done already. Parts are
calls of their own at the same time. What they leave lies in ``predict_jobs/`` or ``masks_jobs/`` of
the output folder, or in ``NAME_jobs/`` beside a COCO file:

=======================  ======================================================================
file                     content
=======================  ======================================================================
``part_3_of_8.jsonl``    a line for each image that is done (``journal.py``)
``part_3_of_8.lock``     held while the part works
``part_3_of_8.json``     the rows of the part, as ``--json`` prints them, once it has ended
=======================  ======================================================================

A call for the whole folder holds the lock of the folder while it works. A part holds its own lock
while it works, and that of the folder only while it begins and ends. So the whole and the parts
exclude each other, nobody collects the lines of a part that works, and of parts that end together
one sees that all have ended. That one collects the lines and writes the COCO file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from samadapt import console
from samadapt.inference.files import PredictionPlan
from samadapt.inference.journal import Journal
from samadapt.system import atomic, processes
from samadapt.system.locks import HeldError, NamedLock

T = TypeVar("T")
Row = Mapping[str, Any]

BEGINS_WITHIN = {True: 60.0, False: 5.0}
"""Seconds that a part, and a call for the whole, wait for another call to begin or end."""

ENDS_WITHIN = 600.0
"""Seconds that a part waits at its end: the one before it may be writing a large COCO file."""


@dataclass(frozen=True)
class Part:
    """A part of a folder.

    Attributes:
        index: its number, from 0.
        count: the number of parts.
    """

    index: int
    count: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"part_{self.index}_of_{self.count}"

    def of(self, items: Sequence[T]) -> list[T]:
        """Return its share of what there is for each image of the folder."""
        return list(items[self.index :: self.count])


def asked_part(only_part: int | None, parts: int | None) -> Part | None:
    """Return the part that the keys of a command name; None: the whole folder."""
    return None if only_part is None or parts is None else Part(only_part, parts)


class FolderWork:
    """What a call does of a folder. It is a context manager, whose end lets the locks go.

    Of several processes the first one holds the locks for all.

    Args:
        plan: what to read and write: the whole folder.
        command: the command that runs.
        part: what this call does of it; None: all.

    Attributes:
        plan: see above.
        part: see above.
        command: see above.
        jobs: the folder for what parts leave.
        is_alone: whether no other call works in the folder, once this one has begun.
    """

    def __init__(self, plan: PredictionPlan, command: str, part: Part | None = None) -> None:
        target = plan.target
        self.plan, self.command, self.part = plan, command, part
        base = target.stem if plan.is_coco else command
        self._folder = target.parent if plan.is_coco else target
        self.jobs = self._folder / f"{base}_jobs"
        self.is_alone = False
        self._lock = NamedLock(self._folder / f".{base}.lock", self._folder / f".{base}.holder")
        self._own_lock = None if part is None else self._lock_of(part.name)

    def __enter__(self) -> FolderWork:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release(remove=self.part is None)
        if self._own_lock is not None:
            self._own_lock.release()

    @property
    def own(self) -> PredictionPlan:
        """The plan of this call: that of the whole, with the images of its part alone."""
        if self.part is None:
            return self.plan
        return replace(self.plan, images=self.part.of(self.plan.images))

    @contextmanager
    def begins(self) -> Iterator[None]:
        """Take the locks. No other call begins or ends while the block runs.

        Raises:
            HeldError: another call does the whole folder or this part, or this one would do the
                whole while parts of it are at work.
        """
        if not self.plan.is_coco:
            self._folder.mkdir(exist_ok=True)
        self._lock.acquire(str(self.plan.target), BEGINS_WITHIN[self.part is not None])
        busy = self._at_work()
        if self.part is None:
            if busy:
                by = self._lock_of(busy[0]).holder()
                words = busy[0].replace("_", " ")
                raise HeldError(
                    f"{self.plan.target}: {words} is at work in {by}; wait until all parts end, or "
                    "stop them"
                )
            for path in self._left("json", "lock", "holder"):
                path.unlink(missing_ok=True)
        elif self._own_lock is not None:
            self.jobs.mkdir(exist_ok=True)
            self._own_lock.acquire(f"{self.plan.target}: {self.part.name.replace('_', ' ')}")
            self._rows_file(self.part).unlink(missing_ok=True)
        # Where there are no locks, nobody knows.
        self.is_alone = self._lock.works and not busy
        yield
        if self.part is not None:
            self._lock.release()

    def own_lines(self, path: Path, is_entry: Callable[[Any], bool]) -> Journal:
        """Return the lines of this call: ``path`` for the whole, a file of its own for a part."""
        if self.part is not None:
            path = self.jobs / f"{self.part.name}.jsonl"
        return Journal(path, is_entry)

    def part_lines(self, is_entry: Callable[[Any], bool]) -> list[Journal]:
        """Return the lines of all parts, also of a division into another number of parts."""
        names = dict.fromkeys(path.name.partition(".")[0] for path in self.line_files())
        return [Journal(self.jobs / f"{name}.jsonl", is_entry) for name in names]

    def line_files(self) -> list[Path]:
        """Return the files with the lines of all parts."""
        return self._left("jsonl")

    def finish(self, rows: Sequence[Row], last: Callable[[Sequence[Row]], None]) -> None:
        """Record that this call has ended; if it is a part and all others have ended, collect.

        Args:
            rows: what was found in each of its images.
            last: collects what parts have left; it is given the rows of the whole folder.
        """
        if self.part is None:
            with suppress(OSError):  # of parts that are collected; submitit's files may be there
                self.jobs.rmdir()
            return
        self.write_rows(self.part, rows)
        # The own lock goes first: of two parts that end together, the second one to get the lock of
        # the folder sees that the first has ended.
        if self._own_lock is not None:
            self._own_lock.release()
        try:
            self._lock.acquire(str(self.plan.target), ENDS_WITHIN)
        except HeldError as error:
            console.log(f"samadapt: {error}; it collects what the parts have written")
            return
        parts = [Part(index, self.part.count) for index in range(self.part.count)]
        is_last = not self._at_work() and all(self._rows_file(one).is_file() for one in parts)
        rows_of_parts = [self.read_rows(one) for one in parts] if is_last else []
        whole = [found for found in rows_of_parts if found is not None]
        if is_last and len(whole) < len(parts):
            console.log(
                f"samadapt: warning: {self.plan.target}: images were added or removed since other "
                f"parts ended. Start these again, or repeat `samadapt {self.command}` without "
                "only_part and parts"
            )
        elif is_last:
            last(processes.shares_joined(whole))
            self.remove_leftovers()
            for path in self._left("lock", "holder"):
                path.unlink(missing_ok=True)
        self._lock.release(remove=is_last)

    def write_rows(self, part: Part, rows: Sequence[Row]) -> None:
        """Record the rows of a part that has ended.

        Raises:
            WriteError: they cannot be written.
        """
        content = {"images": len(self.plan.images), "files": rows}
        atomic.write_text(self._rows_file(part), json.dumps(content, default=str))

    def read_rows(self, part: Part) -> list[dict[str, Any]] | None:
        """Return the rows of a part; None: it has not ended, or the folder had other images."""
        try:
            content = json.loads(self._rows_file(part).read_text(encoding="utf-8"))
            rows, images = content["files"], content["images"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        fits = images == len(self.plan.images) and len(rows) == len(part.of(self.plan.images))
        return list(rows) if fits else None

    def remove_leftovers(self) -> None:
        """Delete temporary files of calls that were killed. No other call may be at work."""
        # Beside a COCO file, another command may be writing something else.
        names = [self.plan.target.stem, *(one.image.name for one in self.plan.images)]
        atomic.remove_leftovers(self._folder, names if self.plan.is_coco else None)

    def _rows_file(self, part: Part) -> Path:
        return self.jobs / f"{part.name}.json"

    def _lock_of(self, name: str) -> NamedLock:
        return NamedLock(self.jobs / f"{name}.lock", self.jobs / f"{name}.holder")

    def _at_work(self) -> list[str]:
        """Return the names of the parts that other calls are doing."""
        names = [path.stem for path in self._left("lock")]
        return [name for name in names if self._lock_of(name).is_held()]

    def _left(self, *endings: str) -> list[Path]:
        """Return the files of parts with these endings."""
        known = re.compile(rf"part_\d+_of_\d+(\.\d+)?\.({'|'.join(endings)})")
        found = self.jobs.glob("part_*") if self.jobs.is_dir() else ()
        return sorted(path for path in found if known.fullmatch(path.name))
