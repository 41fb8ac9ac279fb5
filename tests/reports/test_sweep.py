"""The tables, the plots and the file of a sweep."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from samadapt import console
from samadapt.reports.sweep import (
    CSV_NAME,
    _places,
    plot_importance,
    plot_parallel,
    sweep_tables,
    write_sweep_csv,
)
from samadapt.reports.tables import NOTHING


def trial(number, validation, state="finished", **values):
    counts = {"best_step": 20, "last_step": 40, "trained_parameters": 1234, "seconds": 61.5}
    named = {key.replace("_", "."): text for key, text in values.items()}
    return {"number": number, "state": state, "values": named, "validation": validation, **counts}


@pytest.fixture
def summary():
    seed = {"run_dir": "winner/seed_0", "validation": 0.8, "held_out": 0.75, "zero_shot": 0.5}
    spread = {"mean": 0.75, "min": 0.75, "max": 0.75, "std": 0.0}
    return {
        "trials": [
            trial(0, 0.7, peft="lora", peft_rank="4", train_lr="0.001"),
            trial(1, 0.8, peft="lora", peft_rank="16", train_lr="0.01"),
            trial(2, 0.75, peft="ia3", train_lr="0.0001"),
            trial(3, 0.4, "stopped early", peft="lora", peft_rank="8", train_lr="0.002"),
            trial(4, None, "failed", peft="lora", peft_rank="8", train_lr="0.1"),
        ],
        "space": [{"key": "peft"}, {"key": "peft.rank"}, {"key": "train.lr"}],
        "winner": {
            "number": 1,
            "seeds": [{**seed, "interval": [0.7, 0.8]}],
            "spread": {"validation": spread, "held_out": spread},
        },
        "importance": {"train.lr": 0.7, "peft.rank": 0.2, "peft": 0.1},
    }


def test_the_best_trial_comes_first_and_a_missing_key_is_a_dash(summary):
    trials, seeds = (console.to_text(table) for table in sweep_tables(summary))
    rows = [line.split("│") for line in trials.splitlines() if line.startswith("│")]
    assert [row[1].strip() for row in rows if row[1].strip()] == ["1", "2", "0", "3", "4"]
    assert rows[1][3].strip() == NOTHING
    assert "0.750 [0.700, 0.800]" in " ".join(seeds.split())
    short = console.to_text(sweep_tables(summary, 2)[0])
    assert f"the best 2 of 5; {CSV_NAME} has all" in short


def test_the_file_has_a_line_for_each_trial(summary, tmp_path):
    write_sweep_csv(tmp_path / CSV_NAME, summary["trials"], ["peft", "peft.rank"])
    with (tmp_path / CSV_NAME).open(encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["trial"] for line in lines] == list("01234")
    assert (lines[2]["peft"], lines[2]["peft.rank"]) == ("ia3", "")
    assert (lines[4]["state"], lines[4]["validation"]) == ("failed", "")


def colours(path):
    """The colours of a picture that are not grey, and how many pixels have each."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    vivid = pixels[np.ptp(pixels, axis=1) > 60]
    found, counts = np.unique(vivid, axis=0, return_counts=True)
    return {tuple(map(int, c)): int(n) for c, n in zip(found, counts, strict=True)}


def test_each_trial_is_a_line_and_the_winner_the_thickest(summary, tmp_path):
    plot_parallel(summary, tmp_path / "p.png", ["train.lr"])
    found = colours(tmp_path / "p.png")
    thickest = max(found, key=found.get)
    assert thickest == (68, 1, 84)  # the dark end of the scale
    alone = {**summary, "trials": [summary["trials"][1]]}
    plot_parallel(alone, tmp_path / "one.png", ["train.lr"])
    assert (tmp_path / "one.png").stat().st_size > 1000


def test_values_lie_where_they_belong():
    places = _places(["4", "16", None, "8"], logarithmic=False)
    assert [places.of(text) for text in ("4", "8", "16")] == [0, 0.5, 1]
    assert places.of(None) < 0
    assert set(places.ticks) == {"4", "8", "16", "none"}
    rates = _places(["0.0001", "0.001", "0.01"], logarithmic=True)
    assert rates.of("0.001") == pytest.approx(0.5)
    assert list(rates.ticks) == ["0.0001", "0.00032", "0.001", "0.0032", "0.01"]
    words = _places(["lora", "[lora,bias]"], logarithmic=False)
    assert (words.of("lora"), words.of("[lora,bias]")) == (0, 1)
    assert _places(["3"], logarithmic=False).of("3") == 0.5


def test_the_importance_is_drawn_or_said_to_be_unknown(summary, tmp_path):
    plot_importance(summary, tmp_path / "i.png")
    assert (0, 114, 178) in colours(tmp_path / "i.png")
    plot_importance({"importance": {}}, tmp_path / "none.png")
    assert not colours(tmp_path / "none.png")
