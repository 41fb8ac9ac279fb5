"""Partial labels: ``data.annotated`` lists which classes and slices of a case are annotated.

A CSV file has the columns ``case``, ``classes`` and ``slices``. An empty cell means all::

    case,classes,slices
    patient_01,liver; spleen,10-40
    patient_01,tumour,12; 14
    patient_02,,
    *,liver,

A JSON file maps cases to the same: ``{"p2": {"classes": ["liver"], "slices": [[10, 40]]}}``.
The value may also be a list of such objects, or a list of class names. Slices are numbered from 0
along the slicing axis, as in ``predict``, and a range includes both ends. Several rows for one case
are combined. The case ``*`` means every case that is not listed. Classes and slices that are not
listed have no loss and no score, neither as foreground nor as background.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.data.classes import ClassTable
from samadapt.data.findings import warning_finding
from samadapt.data.formats.base import Scan
from samadapt.errors import DataError
from samadapt.system.arrays import Array

REST = "*"
"""In place of a case name: every case that is not listed."""

_MAX_BYTES = 1 << 24
"""Largest size of the file: 16 MiB, enough for a million cases."""
_COLUMNS = ("case", "classes", "slices")
_BETWEEN = re.compile(r"[;,|]")
_RANGE = re.compile(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?")


@dataclass(frozen=True)
class Entry:
    """What one row says about a case.

    Attributes:
        where: names the row in messages.
        classes: names of the annotated classes; None: all.
        slices: (first, last) of the annotated slices, both included; None: all.
    """

    where: str
    classes: tuple[str, ...] | None
    slices: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True)
class PartialLabels:
    """What is annotated, for each case.

    Attributes:
        path: the file.
        entries: rows by case name, or ``REST``.
    """

    path: Path
    entries: Mapping[str, tuple[Entry, ...]]

    def known(self, case: str, depth: int, table: ClassTable) -> Array:
        """Return (depth, K) bool: which class is annotated in which slice of a case."""
        # Rows add up: each one marks its classes in its slices.
        known = np.zeros((depth, len(table.names)), dtype=bool)
        for entry in self.entries.get(case, self.entries.get(REST, ())):
            rows = np.zeros(depth, dtype=bool)
            for first, last in [(0, depth - 1)] if entry.slices is None else entry.slices:
                rows[first : last + 1] = True
            known[np.ix_(rows, _columns(entry, table))] = True
        return known

    def check(self, scan: Scan, table: ClassTable) -> None:
        """Compare the file with the data. Cases that it does not list become a finding.

        Args:
            scan: its findings are extended.
            table: the classes.


        Raises:
            DataError: a row names a case, a class or a slice that the data do not have.
        """
        depths = {case.name: case.shape[2] for case in scan.cases}
        others = {REST, *scan.left_out}
        for case, entries in self.entries.items():
            for entry in entries:
                if case not in depths and case not in others:
                    some = ", ".join(sorted(depths)[:5])
                    self._refuse(entry.where, "the data set has no such case", some)
                # Where classes were merged, a row may name those that were merged.
                wanted = set(entry.classes or ()) - {*table.names, *table.merged}
                if wanted:
                    names = ", ".join(table.merged or table.names)
                    self._refuse(entry.where, "it names a class that is not in use", names)
                last = max((last for _, last in entry.slices or ()), default=0)
                depth = depths.get(case)
                if depth is not None and last >= depth:
                    self._refuse(entry.where, "the case has fewer slices", f"0 to {depth - 1}")
        unlisted = [name for name in sorted(depths) if name not in self.entries]
        if unlisted and REST not in self.entries:
            shown = ", ".join(unlisted[:5]) + (", ..." if len(unlisted) > 5 else "")
            message = f"it does not list {len(unlisted)} of {len(depths)} cases ({shown}), so "
            message += "they have no loss and no score"
            fix = f"list them, or add a row with the case {REST} for all others"
            scan.findings.append(warning_finding("not_annotated", self.path, message, fix))

    def _refuse(self, where: str, what: str, expected: str) -> None:
        raise DataError(f"data.annotated={self.path}, {where}: {what}; expected {expected}")


def read_partial_labels(
    path: str | Path | None, root: str | Path | None, scan: Scan, table: ClassTable
) -> PartialLabels | None:
    """Read the file of ``data.annotated`` and compare it with the data; None where there is none.

    Args:
        path: the file. A relative path that does not exist is searched for below ``root``.
        root: the data set's folder, or None.
        scan: the cases; it receives a finding about those that are not listed.
        table: the classes.

    Raises:
        DataError: the file cannot be read, or does not fit the data.
    """
    if path is None:
        return None
    file = Path(path).expanduser()
    if not file.is_file() and root is not None and not file.is_absolute():
        file = Path(root).expanduser() / file
    try:
        with file.open("rb") as stream:
            # One byte more than allowed shows that a file is too large without reading all of it.
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"data.annotated={path}: cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise DataError(f"data.annotated={path}: expected at most {_MAX_BYTES >> 20} MiB of text")
    try:
        text = content.decode("utf-8-sig")
        # Both kinds of files give rows with the columns case, classes and slices.
        rows = _json_rows(text) if file.suffix.lower() == ".json" else _csv_rows(text)
        entries: dict[str, list[Entry]] = {}
        for where, row in rows:
            case, entry = _entry(where, row)
            entries.setdefault(case, []).append(entry)
    except (ValueError, RecursionError, csv.Error) as error:
        reason = (
            str(error) if isinstance(error, _RowError) else "is not a CSV or JSON file in UTF-8"
        )
        raise DataError(
            f"data.annotated={path}: {reason}. Expected columns case, classes, slices, as in "
            "'case_01,liver; spleen,10-40', or the same as JSON"
        ) from None
    found = PartialLabels(file, {case: tuple(rows) for case, rows in entries.items()})
    found.check(scan, table)
    return found


class _RowError(ValueError):
    """What is wrong with a row. The message does not quote its content."""


def _csv_rows(text: str) -> Iterable[tuple[str, dict[str, Any]]]:
    first = text.partition("\n")[0]
    # Spreadsheet programs in many countries separate cells by a semicolon.
    delimiter = ";" if ";" in first and "," not in first else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = [name.strip().lower() for name in next(reader, [])]
    if "case" not in header or not set(header) <= set(_COLUMNS) or len(set(header)) < len(header):
        raise _RowError("its first row must name the columns case, classes and slices")
    for cells in reader:
        where = f"row {reader.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header):
            raise _RowError(f"{where} has more cells than there are columns")
        yield where, dict(zip(header, cells, strict=False))


def _json_rows(text: str) -> Iterable[tuple[str, dict[str, Any]]]:
    content = json.loads(text)
    if not isinstance(content, dict):
        raise _RowError("it must map cases to what is annotated")
    for number, (case, value) in enumerate(content.items(), start=1):
        where = f"entry {number}"
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = {"classes": value}
        for row in value if isinstance(value, list) else [value]:
            if not isinstance(row, dict) or not set(row) <= set(_COLUMNS[1:]):
                raise _RowError(f"{where} must be an object with classes and slices")
            yield where, {"case": case, **row}


def _entry(where: str, row: Mapping[str, Any]) -> tuple[str, Entry]:
    case = row.get("case")
    if not isinstance(case, str) or not case.strip():
        raise _RowError(f"{where} names no case")
    classes = _listed(row.get("classes"))
    if classes is not None and not all(isinstance(name, str) for name in classes):
        raise _RowError(f"{where}: classes must be names")
    slices = _listed(row.get("slices"))
    return case.strip(), Entry(
        where,
        None if classes is None else tuple(name for name in classes if name),
        None if slices is None else tuple(_range(where, item) for item in slices),
    )


def _listed(value: Any) -> list[Any] | None:
    """Return the items of a cell or a list; None for an empty one, which means all."""
    if isinstance(value, str):
        items = [item.strip() for item in _BETWEEN.split(value) if item.strip()]
        return items or None
    if value is None or isinstance(value, list):
        return value
    return [value]


def _range(where: str, item: Any) -> tuple[int, int]:
    """Return (first, last) of ``3``, ``"3"``, ``"3-9"`` or ``[3, 9]``."""
    ends = item if isinstance(item, list) and len(item) == 2 else [item, item]
    if isinstance(item, str) and (found := _RANGE.fullmatch(item)):
        ends = [int(found[1]), int(found[2] or found[1])]
    if not all(type(end) is int and end >= 0 for end in ends) or ends[0] > ends[1]:
        raise _RowError(f"{where}: slices must be numbers from 0, or ranges such as 10-40")
    return ends[0], ends[1]


def _columns(entry: Entry, table: ClassTable) -> Array:
    """Return (K,) bool: the classes of an entry.

    A class that was merged from several is annotated only if all of them are listed.
    """
    if entry.classes is None:
        return np.ones(len(table.names), dtype=bool)
    listed = set(entry.classes)
    if table.merged and set(table.merged) <= listed:
        return np.ones(len(table.names), dtype=bool)
    return np.array([name in listed for name in table.names], dtype=bool)
