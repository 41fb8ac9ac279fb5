"""Objects carried from one prompted slice: the table and the CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from samadapt.evaluation.one_slice import NEAR, ZONES, CarriedScore
from samadapt.reports.tables import NOTHING, STATES, csv_name
from samadapt.system import atomic

ONE_SLICE_CSV_NAME = "one_slice.csv"
WAYS = {
    "prompt": "prompts from masks",
    "mask": "masks",
    "memory": "memory of SAM 2",
}
"""What people call the ways in which objects are carried."""


def one_slice_table(summary: Mapping[str, Any]) -> Table:
    """Return the table of all ways, before and after training.

    Args:
        summary: by state what ``summarise_carried`` returned.
    """
    table = Table(
        title="Objects carried from one prompted slice",
        caption="Dice on the prompted slice, on the "
        f"{NEAR} next to it on each side, and on the other slices of an object, averaged over "
        "objects; leaks: share of the slices outside of an object on which something is found, and "
        "pixels found on such a slice",
        title_justify="left",
        caption_justify="left",
    )
    table.title_style, table.caption_style = "bold", "dim"
    table.add_column("carried by")
    table.add_column("")
    for heading in ("prompted", f"next {NEAR}", "others", "leaks", "pixels", "objects"):
        table.add_column(heading, justify="right")
    for way in next(iter(summary.values())):
        for n, (state, title) in enumerate(STATES.items()):
            table.add_row("" if n else WAYS[way], title, *_cells(summary[state][way]))
        table.add_section()
    return table


def _cells(entry: Mapping[str, Any]) -> list[str]:
    shown = [(entry["dice"][zone], ".3f") for zone in ZONES]
    shown += [(entry["leaked"], ".1%"), (entry["leaked_pixels"], ".1f")]
    cells = [NOTHING if value is None else f"{value:{form}}" for value, form in shown]
    return [*cells, str(entry["objects"])]


def write_one_slice(directory: Path, results: Mapping[str, Sequence[CarriedScore]]) -> None:
    """Write ``one_slice.csv``, with a line for each state, way and object.

    Args:
        directory: the folder of the file.
        results: the objects by state.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    zones = [f"dice_{zone}" for zone in ZONES]
    counts = ["outside_slices", "leaked_slices", "leaked_pixels"]
    writer.writerow(["state", "way", "case", "class", "object", "slice", *zones, *counts])
    for state, objects in results.items():
        for one in objects:
            named = csv_name(one.case), csv_name(one.class_name), one.number, one.slice_index
            dice = ["" if math.isnan(value) else f"{value:.6f}" for value in one.dice]
            counted = one.outside, one.leaked, one.leaked_pixels
            writer.writerow([state, one.way, *named, *dice, *counted])
    atomic.write_text(directory / ONE_SLICE_CSV_NAME, stream.getvalue())
