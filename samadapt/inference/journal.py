"""A file that gets a line for each image that is done, so that a killed call loses none of them.

Several processes append to a file each, ``NAME.RANK.jsonl`` beside the ``NAME.jsonl`` of the first
one, because lines that many machines append to one file may get lost. The first process collects
the lines of all at the start and at the end. A line that was cut off is dropped, and so is what
follows it; these images are done anew. Parts of a folder have such files of their own each
(``folder_work.py``).
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from samadapt.system import atomic, processes

Entry = dict[str, Any]
"""What a line says about an image, as JSON holds it."""


class Journal:
    """The lines about the images that are done.

    Args:
        path: the file of the first process, ``NAME.jsonl``.
        is_entry: whether JSON is an entry; after a crash of the machine a line may hold anything.
    """

    def __init__(self, path: Path, is_entry: Callable[[Any], bool]) -> None:
        self.path, self._is_entry = path, is_entry

    def append(self, entry: Entry) -> None:
        """Add a line to the file of this process.

        Raises:
            WriteError: the line cannot be written.
        """
        rank = processes.place().rank
        own = self.path.with_suffix(f".{rank}{self.path.suffix}") if rank else self.path
        atomic.append_text(own, f"{json.dumps(entry)}\n")

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """Yield the collected entries, each with its place in the file in bytes."""
        if self.path.is_file():
            yield from self._good_lines(self.path)

    def lines(self) -> Iterator[Entry]:
        """Yield the entries of all processes, collected or not, and change nothing."""
        for path in (self.path, *self.parts):
            if path.is_file():
                yield from (entry for _, entry in self._good_lines(path))

    def at(self, place: int) -> Entry:
        """Return the entry at a place that ``entries`` has named."""
        with self.path.open("rb") as stream:
            stream.seek(place)
            entry: Entry = json.loads(stream.readline())
            return entry

    @property
    def parts(self) -> list[Path]:
        """The files of other processes, which are not collected yet."""
        name, ending = self.path.stem, self.path.suffix
        found = self.path.parent.glob(f"{glob.escape(name)}.*{ending}")
        own = re.compile(rf"{re.escape(name)}\.\d+{re.escape(ending)}")
        return sorted(path for path in found if own.fullmatch(path.name))

    def collect(self) -> None:
        """Put the lines of all processes into the file of the first one, which calls this alone.

        Raises:
            WriteError: a line cannot be written.
        """
        if self.path.is_file():
            self._drop_cut_line()
        for part in self.parts:
            for _, entry in self._good_lines(part):
                atomic.append_text(self.path, f"{json.dumps(entry)}\n")
            # A call that is killed before this collects the lines again; the last one counts.
            part.unlink()

    def take(self, other: Journal) -> None:
        """Move the lines of another journal, which nobody adds to, into this one.

        Raises:
            WriteError: a line cannot be written.
        """
        for entry in other.lines():
            atomic.append_text(self.path, f"{json.dumps(entry)}\n")
        other.remove()  # a call that is killed before this takes the lines again

    def remove(self) -> None:
        """Remove the files of all processes."""
        for path in (self.path, *self.parts):
            path.unlink(missing_ok=True)

    def _drop_cut_line(self) -> None:
        good = 0
        with self.path.open("rb") as stream:
            for line in stream:
                if self._parsed(line) is None:
                    break
                good += len(line)
        if good < self.path.stat().st_size:
            with self.path.open("rb+") as stream:
                stream.truncate(good)

    def _good_lines(self, path: Path) -> Iterator[tuple[int, Entry]]:
        """Yield the entries of a file, with their places, up to the first line that is not one."""
        place = 0
        with path.open("rb") as stream:
            for line in stream:
                entry = self._parsed(line)
                if entry is None:
                    return
                yield place, entry
                place += len(line)

    def _parsed(self, line: bytes) -> Entry | None:
        if not line.endswith(b"\n"):
            return None
        try:
            entry: Entry = json.loads(line)
        except ValueError:
            return None
        return entry if self._is_entry(entry) else None
