"""Matched objects: the file ``objects.json``, from which folds are pooled, and the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from samadapt.errors import RunError
from samadapt.evaluation.instances import ObjectMatches
from samadapt.reports.tables import NOTHING
from samadapt.system import atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OBJECTS_NAME = "objects.json"
COLUMNS = {"map": "mAP", "ap50": "AP50", "ap75": "AP75", "pq": "PQ", "sq": "SQ", "rq": "RQ"}
COUNTS = {"true_objects": "true", "predicted_objects": "predicted", "matched": "matched"}


def write_objects(directory: Path, rows: Mapping[str, Sequence[ObjectMatches]]) -> Path:
    """Write ``directory/objects.json``: the matches of each case and class, by state.

    Returns:
        The path written.
    """
    lines = {
        state: [
            {
                "case": row.case,
                "class": row.class_name,
                "true_objects": row.true_objects,
                "scores": row.scores,
                # One text for each predicted object, with one digit for each IoU threshold.
                "hits": ["".join("01"[hit] for hit in hits) for hits in row.hits],
                "overlaps": row.overlaps,
            }
            for row in matches
        ]
        for state, matches in rows.items()
    }
    return atomic.write_text(directory / OBJECTS_NAME, json.dumps(lines, indent=1) + "\n")


def read_objects(directory: Path) -> dict[str, list[ObjectMatches]]:
    """Return what ``write_objects`` wrote.

    Raises:
        RunError: for a file that is missing or that ``write_objects`` did not write.
    """
    path = directory / OBJECTS_NAME
    try:
        lines = json.loads(path.read_text(encoding="utf-8"))
        return {
            state: [
                ObjectMatches(
                    row["case"],
                    row["class"],
                    tuple(row["scores"]),
                    tuple(tuple(mark == "1" for mark in hits) for hits in row["hits"]),
                    row["true_objects"],
                    tuple(row["overlaps"]),
                )
                for row in matches
            ]
            for state, matches in lines.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: cannot read the objects of a run: {error!r}") from error


def objects_table(states: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the table of the results of ``instances.summarise_objects``, one line for each state.

    Args:
        states: the results by name of the state, such as ``"zero-shot"``.
    """
    table = Table(title="objects", title_justify="left", title_style="bold")
    table.add_column("class")
    table.add_column("")
    for heading in (*COLUMNS.values(), *COUNTS.values()):
        table.add_column(heading, justify="right")
    for name in next(iter(states.values()))["per_class"]:
        for n, (state, found) in enumerate(states.items()):
            entry = found["per_class"][name]
            counts = [str(entry[key]) for key in COUNTS]
            table.add_row(Text("" if n else name), state, *_values(entry), *counts)
        table.add_section()
    for n, (state, found) in enumerate(states.items()):
        cells = [*_values(found), *[""] * len(COUNTS)]
        table.add_row("" if n else "mean", state, *cells, style="bold")
    return table


def _values(entry: Mapping[str, Any]) -> list[str]:
    return [NOTHING if entry[key] is None else f"{entry[key]:.3f}" for key in COLUMNS]
