"""Every suite's rows on the smallest models: contenders agree, so they do the same work."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import skimage.data

from benchmarks import (
    attention,
    automatic_masks,
    decoder,
    encoder,
    epoch,
    results,
    scoring,
    shared_machine,
    single,
    start_up,
    train_step,
)
from benchmarks import run as runner
from benchmarks.harness import Comparison, Fact, Growth, Run

RUN = Run("none", 1, {}, memory=False)
COMPARISONS = {
    "encoder": lambda: encoder.vit_row("tiny", 64, "fp32"),
    "encoder, SAM 2": lambda: encoder.sam2_row("tiny_h", 64, "fp32"),
    "encoder, padded": lambda: encoder.vit_row("tiny", 96, "fp32"),
    "attention, global": lambda: attention.row("tiny", "global", True),
    "attention, window": lambda: attention.row("tiny", "window", True),
    "decoder": lambda: decoder.row("tiny", 1, 3, False),
    "decoder, backward": lambda: decoder.row("tiny", 2, 3, True),
    "train_step": lambda: train_step.row("tiny", 64),
    "train_step, SAM 2": lambda: train_step.sam2_row("tiny_h", 64),
    "train_step, stored prefix": lambda: train_step.cached_row("tiny", 64, blocks=2),
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's call
@pytest.mark.parametrize("name", COMPARISONS)
def test_contenders_agree(name: str) -> None:
    found = COMPARISONS[name]().measure(RUN)
    errors = [one["error"] for one in found["contenders"].values()]
    assert len(errors) >= 2
    assert errors[0] is not None
    assert all(error < 1e-5 for error in errors if error is not None)
    assert found["gflop"] > 0
    json.dumps(found, allow_nan=False)


def test_bf16_is_compared_with_fp32_too() -> None:
    found = encoder.vit_row("tiny", 64, "bf16").measure(RUN)["contenders"]
    assert found.pop("segment-anything fp32")["error"] < 1e-5
    assert all(1e-4 < one["error"] < 0.1 for one in found.values())


def test_automatic_masks_are_the_same() -> None:
    choices = {"points_per_side": 6, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    image = skimage.data.chelsea()[::2, ::2]
    found = automatic_masks.row("tiny", image, choices | {"box_nms_thresh": 1.0}).measure(RUN)
    ours, theirs, lowest = found["facts"].values()
    assert ours == theirs > 5
    assert lowest > 0.99


@pytest.mark.filterwarnings("ignore:Please import `:DeprecationWarning")  # surface-distance's
def test_scores_are_the_peers() -> None:
    found = scoring.hippocampus_row(3).measure(RUN)["contenders"]
    assert found["samadapt"]["error"] < 1e-6
    assert scoring.ct_row((40, 36, 20)).measure(RUN)["contenders"]["samadapt"]["min_s"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
def test_every_contender_is_measured_apart(monkeypatch: pytest.MonkeyPatch, beside: bool) -> None:
    monkeypatch.setattr(shared_machine, "STARTS", 0.1)
    found = shared_machine.row("step tiny 64", beside=beside).measure(RUN)
    assert list(found["contenders"])[:2] == ["samadapt", "samadapt, OpenMP's default"]
    assert len(found["contenders"]) == 4
    assert all(one["min_s"] > 0 for one in found["contenders"].values())


def test_costs_are_measured_at_every_count() -> None:
    rows = [row for row in epoch.rows("tiny") if isinstance(row, Growth)]
    assert {row.unit for row in rows} == {"image", "box", "class"}
    for row in rows:
        found = replace(row, counts=(1, 2)).measure(RUN)
        assert [len(taken) for taken in found["seconds"].values()] == [1, 1]


@pytest.mark.slow
def test_a_second_run_computes_no_features() -> None:
    (found,) = [row.measure(RUN)["facts"] for row in epoch.rows("tiny") if isinstance(row, Fact)]
    assert found["computed by the first run"] == found["images"] > 0
    assert found["computed by the second run"] == 0


def test_help_is_a_row() -> None:
    found = next(iter(start_up.rows())).measure(RUN)
    assert len(found["contenders"]["samadapt"]["seconds"]) == 1


def test_a_run_that_never_steps_is_told_from_a_slow_one() -> None:
    with pytest.raises(RuntimeError, match=r"ended before its first step:\n.*no_such_recipe"):
        start_up.first_step(["recipe=no_such_recipe"], behind=True)()


@pytest.mark.slow
def test_a_row_is_measured_in_a_process_of_its_own() -> None:
    row = next(iter(start_up.rows())).name
    found = single.measure(replace(RUN, suite="start_up"), row)
    assert found["row"] == row
    assert len(found["contenders"]["samadapt"]["seconds"]) == RUN.repeat
    with pytest.raises(RuntimeError, match=r"benchmarks\.single start_up no-such-row failed"):
        single.measure(replace(RUN, suite="start_up"), "no-such-row")


def test_a_failing_row_does_not_lose_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise RuntimeError("the peer fell over")

    rows = {"good": Fact("good", lambda: {"n": 1}), "bad": Comparison("bad", {"samadapt": fail})}
    monkeypatch.setattr(runner, "find_rows", lambda suite: list(rows.values()))
    monkeypatch.setattr(runner.single, "measure", lambda run, name: rows[name].measure(run))
    monkeypatch.setattr(runner, "set_threads", lambda: None)
    monkeypatch.setattr(runner.machine, "roofline", lambda device: {"fp32": 1.0})
    output = tmp_path / "encoder.json"
    monkeypatch.setattr(sys, "argv", ["run", "encoder", "--output", str(output)])
    with pytest.raises(RuntimeError, match="fell over"):
        runner.main()
    (run,) = results.read(output)
    assert [row["row"] for row in run["rows"]] == ["good"]
    assert run["whole"] is False
