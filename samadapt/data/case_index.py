"""What earlier programs found in the files of a data set, so that unchanged files are not read.

The scan reads every file of a data set to check and to hash it, which takes 10 ms and more for each
volume. Its results are kept in one JSON file for each data set and way of reading it. A case is
taken from there if the path, the size, the time of modification in ns and the inode of each of its
files are those from before it was read. Everything else that decides a result (the options, the
classes, the code that reads and checks) is hashed into the name of the JSON file.

Any number of processes may share the folder: a file is replaced as a whole, under a lock, and
keeps what other processes added. A damaged file is ignored, said so and written anew.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from samadapt.data.findings import Finding
from samadapt.data.types import Case, MaskEvidence
from samadapt.system import atomic
from samadapt.system.arrays import Array

_SETTLED_NS = 2_000_000_000
"""Files that changed within this time before they are read are not indexed. Some file systems count
time in steps of up to 2 s, so that another change could leave the same time."""

_LOCK_S = 10.0
"""Seconds to wait for another process that writes the same file."""

Entry = dict[str, Any]
Stamps = list[list[Any]]


@dataclass(frozen=True)
class KnownCase:
    """What the scan found in a case.

    Attributes:
        case: the case with everything that the scan adds.
        findings: warnings about its files.
        lowest: the smallest value of its image.
    """

    case: Case
    findings: tuple[Finding, ...]
    lowest: float


class CaseIndex:
    """Finds cases whose files are unchanged, and adds those that were read.

    Args:
        folder: folder of the JSON files; it is made when something is added.
        trusts: whether cases may be taken from the index. If not, every file is read again, and the
            index is written anew from what was read.

    Attributes:
        notes: what a user should know about the index, such as a damaged file.
    """

    def __init__(self, folder: Path, *, trusts: bool = True) -> None:
        self.folder, self.trusts = folder, trusts
        self.notes: list[str] = []
        self._path: Path | None = None
        self._entries: dict[str, Entry] = {}
        self._added: dict[str, Entry] = {}

    def open(self, settings: str) -> None:
        """Read the file of a data set.

        Args:
            settings: all that decides what the scan finds in the data set's files, in words.
        """
        name = hashlib.blake2b(
            f"{_code()} {settings}".encode("utf-8", "backslashreplace"), digest_size=16
        ).hexdigest()
        self._path, self._added = self.folder / f"{name}.json", {}
        self._entries = self._read(self._path) if self.trusts else {}

    def find(self, case: Case, files: Iterable[Path]) -> KnownCase | None:
        """Return what was found in a case; None if it was not read before or a file changed.

        Args:
            case: as the folder describes it.
            files: all files that decide what is found in it.
        """
        entry = self._entries.get(case.name)
        if entry is None or entry["case"] != _described(case):
            return None
        if entry["stamps"] != stamps_of(files):
            return None
        return _known(case, entry)

    def add(self, case: Case, stamps: Stamps, found: KnownCase) -> None:
        """Add what was found in a case.

        Args:
            case: as the folder describes it.
            stamps: its files before they were read; see ``stamps_of``.
            found: the result.
        """
        latest = time.time_ns() - _SETTLED_NS
        if stamps and all(modified <= latest for _, _, modified, _ in stamps):
            self._added[case.name] = _entry(case, stamps, found)

    def save(self, names: Collection[str]) -> None:
        """Write what was added, if anything was.

        An index only saves time, so a folder that cannot be written gives a note and no error.

        Args:
            names: the cases of the data set; others are forgotten.
        """
        if self._path is None or not self._added:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock"), timeout=_LOCK_S):
                # Another process may have added cases since the file was read.
                merged = {**self._read(self._path), **self._added}
                kept = {name: entry for name, entry in merged.items() if name in names}
                body = json.dumps(kept, separators=(",", ":"))
                atomic.write_text(self._path, f"{_checksum(body)}\n{body}\n")
        except (OSError, Timeout) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self.notes.append(
                f"{self._path}: the index of the data set cannot be written ({reason}), so the "
                "next run reads all files again"
            )

    def _read(self, path: Path) -> dict[str, Entry]:
        """Return the entries of a file; none where it is missing or damaged."""
        try:
            checksum, _, body = path.read_text(encoding="utf-8").partition("\n")
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, UnicodeError):
            checksum, body = "", ""
        body = body.removesuffix("\n")
        if checksum != _checksum(body):
            note = f"{path}: the index of the data set is damaged; all files are read again"
            if note not in self.notes:
                self.notes.append(note)
            return {}
        entries: dict[str, Entry] = json.loads(body)
        return entries


def stamps_of(files: Iterable[Path]) -> Stamps:
    """Return path, bytes, time of modification in ns and inode of files.

    The result is empty where one of them is missing.
    """
    found: Stamps = []
    for path in files:
        try:
            stat = path.stat()
        except (OSError, ValueError):  # ValueError: a null character in the name
            return []
        found.append([str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino])
    return found


def _described(case: Case) -> str:
    """Return in one text what the folder says about a case."""
    files = [str(path) for path in case.files]
    parts = (case.name, str(case.image), str(case.labels), str(case.annotations), case.channel)
    return repr((*parts, files))


def _entry(case: Case, stamps: Stamps, found: KnownCase) -> Entry:
    """Return what was found as values of JSON."""
    seen = found.case
    return {
        "case": _described(case),
        "stamps": stamps,
        "shape": list(seen.shape),
        "spacing_mm": None if seen.spacing_mm is None else list(seen.spacing_mm),
        "axis": seen.axis,
        "values": list(seen.values),
        "presence": _packed(seen.presence),
        "zeros": _packed(seen.zeros),
        "named": list(seen.named),
        "digest": seen.digest,
        "evidence": None if seen.evidence is None else asdict(seen.evidence),
        "colours": [list(pair) for pair in seen.colours],
        "truth_digest": seen.truth_digest,
        "findings": [asdict(finding) for finding in found.findings],
        "lowest": found.lowest,
    }


def _known(case: Case, entry: Mapping[str, Any]) -> KnownCase:
    """Return what an entry says about a case."""
    spacing = entry["spacing_mm"]
    # ``stamps`` of a case are those of its image files and its mask.
    of_file = {path: (size, modified) for path, size, modified, _ in entry["stamps"]}
    paths = [*(case.files or (case.image,)), *([case.labels] if case.labels else [])]
    seen = replace(
        case,
        shape=tuple(entry["shape"]),
        spacing_mm=None if spacing is None else tuple(spacing),
        axis=entry["axis"],
        values=tuple(entry["values"]),
        presence=_unpacked(entry["presence"]),
        zeros=_unpacked(entry["zeros"]),
        named=tuple(entry["named"]),
        digest=entry["digest"],
        evidence=None if entry["evidence"] is None else MaskEvidence(**entry["evidence"]),
        colours=tuple((value, colour) for value, colour in entry["colours"]),
        truth_digest=entry["truth_digest"],
        stamps=tuple(of_file[str(path.absolute())] for path in paths),
    )
    findings = tuple(Finding(**finding) for finding in entry["findings"])
    return KnownCase(seen, findings, entry["lowest"])


def _packed(flags: Array | None) -> list[Any] | None:
    """Return a boolean array as its shape and its bits in hexadecimal digits."""
    return None if flags is None else [list(flags.shape), np.packbits(flags).tobytes().hex()]


def _unpacked(packed: Sequence[Any] | None) -> Array | None:
    if packed is None:
        return None
    shape, digits = packed
    bits = np.frombuffer(bytes.fromhex(digits), np.uint8)
    flags: Array = np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)
    return flags


def _checksum(body: str) -> str:
    return hashlib.blake2b(body.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


@cache
def _code() -> str:
    """Return a hash of the code that reads and checks files; another version finds other facts."""
    content = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        content.update(path.read_bytes())
    return content.hexdigest()
