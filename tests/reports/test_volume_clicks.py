"""A box and clicks in volumes, as a file, a table and a plot."""

from __future__ import annotations

import csv

from PIL import Image

from samadapt.console import to_text
from samadapt.evaluation.volume_clicks import CorrectedClass, summarise_corrections
from samadapt.reports.volume_clicks import volume_clicks_table, write_volume_clicks

RESULTS = {
    state: [
        CorrectedClass(case, "=one", "mm", (low, *[value] * 5), (low, *[value] * 5))
        for case, value in (("a", high), ("b", high + 0.1))
    ]
    for state, low, high in (("zero_shot", 0.25, 0.5), ("adapted", 0.5, 0.75))
}
SUMMARY = {state: summarise_corrections(found, ["=one"]) for state, found in RESULTS.items()}


def test_the_file_holds_every_answer(tmp_path):
    write_volume_clicks(tmp_path, RESULTS, SUMMARY)
    with (tmp_path / "volume_clicks.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["state"], row["case"], row["class"]) for row in rows] == [
        (state, case, "'=one") for state in ("zero_shot", "adapted") for case in "ab"
    ]
    assert (rows[0]["dice_box"], rows[0]["dice_5"], rows[0]["nsd_auc"]) == (
        "0.250000",
        "0.500000",
        "2.000000",
    )
    with Image.open(tmp_path / "volume_clicks.png") as picture:
        assert picture.size[0] > 800


def test_the_table_shows_both_models():
    text = to_text(volume_clicks_table(SUMMARY))
    assert "2.20 [2.00, 2.40]" in text
    assert "3.20 [3.00, 3.40]" in text
    assert "NSD at 2 mm" in text
