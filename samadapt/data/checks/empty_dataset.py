"""Why nothing in a data set can be used: no readable case, or no object in any mask."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from samadapt.data.classes import ClassTable
from samadapt.data.findings import error_finding
from samadapt.data.formats.base import FormatReader, Scan, readers

_MOST_FILES = 10_000
"""Files whose endings are counted; a home folder that is given by mistake has millions."""
_SHOWN = 6
"""Endings that a message lists."""
_EXTENDED = ("missing_folder", "missing_label")
"""Errors whose message is extended by the endings that were found."""
_DOUBLE = (".nii.gz", ".seg.nrrd", ".raw.gz")
"""Endings of two parts."""


def refuse_no_case(scan: Scan, reader: FormatReader) -> None:
    """Add an error to a scan without cases: which file endings exist, and which are read.

    Nothing is added if another error already explains it, such as that of a case that is left out
    or of a file that lists the cases. An error about a missing folder or list is extended by the
    endings that were found.

    Args:
        scan: its findings are changed.
        reader: names the folder and the endings that it reads.
    """
    root = reader.options.root
    if scan.cases or scan.left_out or root is None or not root.is_dir():
        return
    errors = {finding.code for finding in scan.findings if finding.severity == "error"}
    # Another error explains it already.
    if errors - {"no_cases", *_EXTENDED}:
        return
    readable = ", ".join(reader.suffixes) or reader.summary.partition("; extra")[0]
    counts, more = _endings(root)
    listed = ", ".join(f"{count} {ending}" for ending, count in counts.most_common(_SHOWN))
    found = f"the folder holds {'more than ' if more else ''}{listed or 'no file'}"
    found += f"; data={reader.name} reads {readable}"
    other = _other_readers(reader, counts)
    if errors & set(_EXTENDED):
        if counts:
            scan.findings = [
                replace(finding, message=f"{finding.message}; {found}", fix=other + finding.fix)
                if finding.code in _EXTENDED
                else finding
                for finding in scan.findings
            ]
        return
    fix = other + "check data.root, or convert the files"
    named = [finding for finding in scan.findings if finding.code == "no_cases"]
    # Where a pattern matches nothing its own message is kept and extended.
    if named and (reader.options.image or reader.options.label):
        scan.findings.remove(named[0])
        message = f"{named[0].message}; {found}"
        scan.findings.append(replace(named[0], message=message, fix=other + named[0].fix))
        return
    scan.findings = [finding for finding in scan.findings if finding.code != "no_cases"]
    message = f"no usable case: {found}"
    scan.findings.append(error_finding("no_cases", root, message, fix))


def refuse_no_object(scan: Scan, table: ClassTable, where: str) -> None:
    """Refuse a data set in which no mask contains a pixel of a class; no case is left then.

    Args:
        scan: its findings and cases are changed.
        table: the classes.
        where: the folder of the masks, named in the finding.
    """
    used = {value for values in table.values for value in values}
    if not scan.cases or any(used & set(case.values) for case in scan.cases):
        return
    count = len(scan.cases)
    holding = {value for case in scan.cases for value in case.values} - set(table.ignored)
    names = ", ".join(
        f"{name}={','.join(map(str, values))}"
        for name, values in zip(table.names, table.values, strict=True)
    )
    if holding:
        values = ", ".join(map(str, sorted(holding)[:8]))
        message = f"none of {count} masks holds a value of the classes ({names}); found: {values}"
        fix = "check the values in data.classes={name: value}"
    elif any(finding.code == "unnamed_colours" for finding in scan.findings):
        message = f"none of {count} masks holds a colour of data.classes ({', '.join(table.names)})"
        fix = "name the colours of the masks, which the finding about each mask lists"
    else:
        message = f"no mask contains an object: all {count} are empty"
        fix = "check that they are the right files, and that the masks were exported with values"
    scan.findings.append(error_finding("no_objects", where, message, fix))
    scan.left_out.extend(case.name for case in scan.cases)
    scan.cases = []


def _other_readers(reader: FormatReader, counts: Counter[str]) -> str:
    """Return as text which formats read the endings that were found."""
    known: dict[str, str] = {}
    for kind in readers().values():
        known_endings = (*kind.suffixes, *kind.annotation_suffixes)
        endings = [ending for ending in counts if ending in known_endings]
        if endings and kind.name != reader.name:
            known[kind.name] = ", ".join(endings[:3])
    shown = " or ".join(f"data={name} ({endings})" for name, endings in list(known.items())[:5])
    return f"use {shown}, " if shown else ""


def _endings(root: Path) -> tuple[Counter[str], bool]:
    """Count files by their ending, and return whether there are more than are counted."""
    counts: Counter[str] = Counter()
    for number, name in enumerate(_names(root)):
        if number >= _MOST_FILES:
            return counts, True
        low = name.lower()
        double = next((ending for ending in _DOUBLE if low.endswith(ending)), "")
        counts[double or Path(low).suffix or "without ending"] += 1
    return counts, False


def _names(root: Path) -> Iterator[str]:
    for _, folders, files in os.walk(root):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        yield from (name for name in files if not name.startswith("."))
