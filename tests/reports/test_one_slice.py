"""Objects carried from one slice, as a file and a table."""

from __future__ import annotations

import csv
import math

from samadapt.console import to_text
from samadapt.evaluation.one_slice import CarriedScore, summarise_carried
from samadapt.reports.one_slice import one_slice_table, write_one_slice

RESULTS = {
    state: [
        CarriedScore(way, "a", "=one", 1, 4, (high, high - 0.25, math.nan), 4, 1, 30)
        for way in ("prompt", "mask", "memory")
    ]
    for state, high in (("zero_shot", 0.5), ("adapted", 0.75))
}


def test_the_file_holds_every_object_and_way(tmp_path):
    write_one_slice(tmp_path, RESULTS)
    with (tmp_path / "one_slice.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["state"], row["way"]) for row in rows] == [
        (state, way) for state in ("zero_shot", "adapted") for way in ("prompt", "mask", "memory")
    ]
    assert list(rows[-1].values()) == [
        "adapted", "memory", "a", "'=one", "1", "4", "0.750000", "0.500000", "", "4", "1", "30",
    ]  # fmt: skip


def test_the_table_shows_both_models_in_each_way():
    summary = {state: summarise_carried(found, ["=one"]) for state, found in RESULTS.items()}
    lines = to_text(one_slice_table(summary)).splitlines()
    (row,) = [line.split() for line in lines if "memory of SAM 2" in line]
    assert [cell for cell in row if "." in cell or "%" in cell] == [
        "0.500", "0.250", "25.0%", "7.5",
    ]  # fmt: skip
    assert sum("0.750" in line and "adapted" in line for line in lines) == 3
