"""The progress picture is drawn from whatever a run has left, finished or not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from samadapt.reports.plots import RATE, SMOOTH, VALIDATION, plot_progress

TRAIN = [
    {"kind": "train", "step": s, "loss": 2 / s, "lr": 1e-3, "seconds": s} for s in range(1, 60)
]
VALIDATE = [{"kind": "validate", "step": s, "dice": s / 100} for s in (0, 20, 40)]


def drawn(tmp_path, text):
    source = tmp_path / "metrics.jsonl"
    if text is not None:
        source.write_text(text, encoding="utf-8")
    png = plot_progress(source, tmp_path / "deep" / "progress.png")
    assert [item.name for item in png.parent.iterdir()] == ["progress.png"]
    picture = np.asarray(Image.open(png).convert("RGB")).astype(int)

    def shows(colour):
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        return bool((np.abs(picture - wanted).max(axis=-1) <= 2).any())

    return [shows(colour) for colour in (SMOOTH, VALIDATION, RATE)]


def lines(*records):
    return "\n".join(json.dumps(record) for record in records)


def test_loss_dice_and_rate_are_drawn(tmp_path):
    assert drawn(tmp_path, lines(*TRAIN, *VALIDATE)) == [True, True, True]


@pytest.mark.parametrize("text", [None, "", "no json\n", "[1, 2]\n"])
def test_a_plot_without_lines_has_empty_panels(tmp_path, text):
    assert drawn(tmp_path, text) == [False, False, False]


def test_one_step_and_one_validation(tmp_path):
    assert drawn(tmp_path, lines(TRAIN[0], VALIDATE[0])) == [True, True, True]


def test_cut_lines_nulls_and_nan_are_left_out(tmp_path):
    odd = '{"kind": "train", "step": 3, "loss": NaN, "lr": null}\n{"kind": "train", "st'
    assert drawn(tmp_path, lines(VALIDATE[1]) + "\n" + odd) == [False, True, False]


def test_a_step_written_again_after_a_resume_counts_once(tmp_path):
    from samadapt.reports.plots import _points, _read_lines

    source = tmp_path / "metrics.jsonl"
    again = {"kind": "train", "step": 2, "loss": 9.0, "lr": 1e-3}
    source.write_text(lines(*TRAIN[:3], again), encoding="utf-8")
    assert _points(_read_lines(source), "train", "loss") == [(1, 2.0), (2, 9.0), (3, 2 / 3)]
