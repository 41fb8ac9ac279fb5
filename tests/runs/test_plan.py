"""What a run will need, predicted from a rehearsal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samadapt.cli import main
from samadapt.config.compose import compose
from samadapt.runs.finetune import finetune
from samadapt.runs.plan import Phase, Rehearsal, memory_by_phase, predict, remembered

GB = 10**9


@pytest.fixture
def pictures(tmp_path):
    """Eight pictures with one to four objects."""
    root = tmp_path / "pictures"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for index in range(8):
        rng = np.random.default_rng(index)
        mask = np.zeros((48, 60), np.uint8)
        for number in range(1 + index % 4):
            mask[4 + 10 * number : 10 + 10 * number, 10:30] = 1
        image = rng.integers(0, 99, (48, 60, 3), dtype=np.uint8)
        image[mask > 0] += 100
        Image.fromarray(image).save(root / "images" / f"p{index}.png")
        Image.fromarray(mask).save(root / "masks" / f"p{index}.png")
    return root


@pytest.fixture
def arguments(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path / "cache"))
    return [
        "recipe=photos",
        f"data.root={pictures}",
        "model=tiny",
        "peft.blocks=last:1",
        "train.steps=3",
        "eval.overlays=0",
        "device=cpu",
        "precision=fp32",
        f"output.dir={tmp_path / 'runs'}",
    ]


def phase(first=1.0, second=1.5, seconds=(1.0, 1.8), units=(1, 2)):
    return Phase(units, (int(first * GB), int(second * GB)), seconds)


@pytest.fixture
def measured():
    return Rehearsal(
        trained=1000,
        total=50_000,
        start_peak=GB,
        start_seconds=5.0,
        features=phase(1.2, 1.2, (4.0, 4.0), (8, 8)),
        training=phase(2.0, 2.5),
        scoring=phase(1.1, 1.2, (2.0, 4.0), (8, 16)),
        images=40,
        missing=20,
        feature_bytes=10**6,
        in_memory=False,
        later_bytes=0,
        stack=1,
        train=20,
        validation=4,
        test=16,
        deepest=16,
        passes=2,
        threads=1,
    )


@pytest.fixture
def config():
    options = ["train.batch_size=4", "train.accumulate=2", "train.steps=100"]
    return compose("photos", ["data.root=.", "train.validate_every=50", *options])


def test_a_phase_grows_with_its_units():
    found = phase(2.0, 2.5, (1.0, 1.8))
    assert found.peak(1) == 2 * GB
    assert found.peak(2) == 2.5 * GB
    assert found.peak(6) == pytest.approx(4.5 * GB)
    assert found.time(4) == pytest.approx(3.4)
    # Memory that the first measurement left behind never makes more slices cheaper.
    assert phase(2.0, 1.9).peak(6) == 2 * GB


def test_memory_is_that_of_the_largest_phase(config, measured):
    found = memory_by_phase(config, measured)
    assert found == {
        "start": GB,
        "features": int(1.2 * GB),
        "training": pytest.approx(3.5 * GB),
        "scores": int(1.2 * GB),
    }
    assert predict(config, measured).memory_bytes == pytest.approx(3.5 * GB)


def test_features_and_images_in_memory_count(config, measured):
    kept = replace(measured, in_memory=True, later_bytes=GB)
    more = {
        name: size - memory_by_phase(config, measured)[name]
        for name, size in memory_by_phase(config, kept).items()
    }
    assert more == {
        "start": 0,
        **dict.fromkeys(("features", "training", "scores"), GB + 40 * 10**6),
    }


def test_seconds_follow_from_the_numbers_of_slices_and_steps(config, measured):
    found = predict(config, measured)
    assert found.seconds == pytest.approx(
        {
            "start": 5.0,
            "features": 20 * 4.0 / 8,
            "training": 100 * 2 * 3.4,
            "validation": 2 * 4 * 0.25 / 2,
            "scores": 16 * 0.25,
        }
    )
    limited = replace(config, train=replace(config.train, steps=None, max_seconds=60.0))
    assert predict(limited, measured).seconds["training"] == 50.0  # the features took 10


def test_a_loaded_machine_is_named(config, measured):
    assert not predict(config, measured, busy=0.0).notes
    (note,) = predict(config, measured, busy=float(os.cpu_count())).notes
    assert "this machine is loaded" in note


def test_a_rehearsal_survives_json(measured):
    assert Rehearsal.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured


def test_plan_and_run_agree(arguments, tmp_path, capsys):
    assert main(["plan", *arguments, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert not list((tmp_path / "runs").glob("photos*"))  # no run directory
    assert planned["memory_bytes"] == max(planned["memory_by_phase"].values())
    assert set(planned["memory_by_phase"]) == {"start", "features", "training", "scores"}
    assert planned["seconds"]["training"] > 0
    assert planned["feature_place"] == "disk"
    # The plan has computed all eight, and the run will find them.
    assert planned["feature_bytes"] > 0
    assert planned["new_feature_bytes"] == planned["seconds"]["features"] == 0

    result = finetune(compose("photos", arguments[1:]))
    assert planned["trained"] == result.summary["trained_parameters"]
    assert planned["total"] == result.summary["total_parameters"]
    files = list((tmp_path / "runs" / "features").glob("*.safetensors"))
    on_disk = sum(path.stat().st_size for path in files)
    assert planned["feature_bytes"] == pytest.approx(on_disk, rel=0.05)
    # The run says at its start what the plan found.
    log = (result.run_dir / "log.txt").read_text(encoding="utf-8")
    (line,) = [line for line in log.splitlines() if " plan: " in line]
    found = re.search(
        r"about ([\d.]+) GB of memory, [\d.]+ GB of features \(disk; .*\), start \d+ s", line
    )
    assert found
    assert float(found[1]) == pytest.approx(planned["memory_bytes"] / GB, abs=0.06)


def test_a_run_that_is_too_short_to_be_measured_says_how_to_get_a_plan(arguments):
    result = finetune(compose("photos", [*arguments[1:], "train.steps=1", "eval.max_cases=1"]))
    log = (result.run_dir / "log.txt").read_text(encoding="utf-8")
    assert f"plan: {result.summary['trained_parameters']:,} of " in log
    assert "`samadapt plan` with the same arguments predicts memory and time" in log


@pytest.fixture
def first_run(arguments):
    """A run of 12 steps of a kind that never ran, the lines of its log and its steps."""
    result = finetune(compose("photos", [*arguments[1:], "train.steps=12"]))
    log = (result.run_dir / "log.txt").read_text(encoding="utf-8").splitlines()
    lines = (result.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return result, log, [line for line in map(json.loads, lines) if line["kind"] == "train"]


def test_the_first_run_of_a_kind_says_before_its_first_step_what_it_needs(first_run, arguments):
    result, log, steps = first_run
    (place,) = [number for number, line in enumerate(log) if " plan: " in line]
    assert place < next(number for number, line in enumerate(log) if "gradients: present" in line)
    found = re.search(
        r"about ([\d.]+) GB of memory, ([\d.]+) GB of features \(disk; .*\), start \d+ s"
        r"(?:, \w+ \d+ s)*, training (\d+) s.* \(as measured just now\)$",
        log[place],
    )
    assert found
    assert float(found[1]) == pytest.approx(result.summary["peak_memory_bytes"] / GB, rel=0.2)
    assert int(found[3]) <= 3 + 3 * sum(step["seconds"] for step in steps)
    again = finetune(compose("photos", [*arguments[1:], "train.steps=12"]))
    log = (again.run_dir / "log.txt").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in log if " plan: " in line]
    assert "as in the last such run" in line


MEASURED = [
    ["peft.dropout=0.2", "train.ema=0.9", "cache.where=memory"],
    ["prompts=interactive", "cache.enabled=off"],
    ["prompts=semantic", "head=unet", "peft=none", "train.augment=[flip]", "cache.variants=3"],
    ["prompts=semantic", "baseline=unet", "train.augment=[noise]"],
    ["train.steps=null", "train.max_cpu_seconds=500", "train.patience=2"],
]


@pytest.mark.slow
@pytest.mark.parametrize("options", MEASURED, ids=lambda options: options[0])
def test_a_run_that_was_measured_is_the_run_that_was_not(arguments, tmp_path, monkeypatch, options):
    monkeypatch.setattr("samadapt.runs.plan_line.find_run", lambda _: None)
    base = [one for one in arguments[1:] if not one.startswith(("train.steps", "output.dir"))]
    if any("peft=none" in one or "baseline" in one for one in options):
        base = [one for one in base if not one.startswith("peft")]
    base += ["train.steps=12", "train.validate_every=4", "eval.max_cases=2"]

    def weights(name, measured):
        with monkeypatch.context() as patch:
            if not measured:
                patch.setattr("samadapt.runs.plan_line._is_measured", lambda *_: False)
            found = finetune(compose("photos", [*base, *options, f"output.dir={tmp_path / name}"]))
        log = (found.run_dir / "log.txt").read_text(encoding="utf-8")
        assert ("as measured just now" in log) == measured
        (file,) = found.adapter_dir.glob("*.safetensors")
        return file.read_bytes(), found.summary["adapted"]

    assert weights("one", measured=True) == weights("other", measured=False)


def test_a_run_is_predicted_by_the_last_one_of_its_kind(arguments):
    options = [*arguments[1:], "train.steps=4", "eval.max_cases=1"]
    first = finetune(compose("photos", options))
    again = finetune(compose("photos", [*options, "train.steps=2", "seed=3"]))
    other = finetune(compose("photos", [*options, "train.batch_size=2"]))

    def line(run):
        log = (run.run_dir / "log.txt").read_text(encoding="utf-8")
        return next(line for line in log.splitlines() if " plan: " in line)

    assert "as in the last such run" not in line(first)
    found = re.search(r", about ([\d.]+) GB of memory, start \d+ s, .*train (\d+) s", line(again))
    assert found
    peak = first.summary["peak_memory_bytes"] / GB
    assert float(found[1]) == pytest.approx(peak, abs=0.06)
    assert line(again).endswith("(as in the last such run)")
    assert "features 0 s" not in line(again)  # they are all there
    assert "as in the last such run" not in line(other)


def test_a_plan_holds_for_other_steps_and_batches_and_not_for_other_models(
    arguments, monkeypatch, tmp_path
):
    from samadapt.runs.plan import kept_in

    config = compose("photos", arguments[1:])
    same = ("train.steps=9", "train.batch_size=2", "train.lr=1e-5", "seed=3", "eval.max_cases=1")
    other = ("model.image_size=96", "peft.rank=4", "train.recompute=true", "prompts=point")
    for override in same:
        assert kept_in(compose("photos", [*arguments[1:], override])) == kept_in(config)
    for override in other:
        assert kept_in(compose("photos", [*arguments[1:], override])) != kept_in(config)
    kept_in(config).parent.mkdir(parents=True)
    kept_in(config).write_text("{broken", encoding="utf-8")
    assert remembered(config) is None


@pytest.fixture
def rehearsed(measured, monkeypatch):
    """A rehearsal that is not done but known."""
    monkeypatch.setattr("samadapt.runs.rehearsal.rehearse", lambda *_, **__: measured)


@pytest.mark.usefixtures("rehearsed")
def test_the_plan_reads_like_a_table(arguments, capsys):
    assert main(["plan", *arguments]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"parameters +[\d,]+ of [\d,]+ are trained \([\d.]+%\)", shown)
    assert re.search(r"memory +[\d.]+ GB at most, with 1 x 4 slices a step", shown)
    assert re.search(r"features +[\d.]+ GB on disk, of which [\d.]+ GB are still to be", shown)
    assert "run directory" not in shown


@pytest.mark.parametrize("searched", [64, 1])
def test_a_mixture_is_rehearsed_with_slices_that_hold_objects(
    arguments, pictures, monkeypatch, searched
):
    monkeypatch.setattr("samadapt.runs.rehearsal.SEARCHED", searched)
    for index in range(7):
        Image.new("L", (60, 48)).save(pictures / "masks" / f"p{index}.png")
    options = ["prompts=mixed", "data.empty_slices=keep", "data.val_every=0", "quick=true"]
    assert main(["plan", *arguments, *options, "train.validate_cases=0"]) == 0


def test_what_the_run_refuses_the_plan_refuses(arguments, capsys):
    assert main(["plan", *arguments, "data.max_cases=1"]) == 2
    assert "each needs at least one" in capsys.readouterr().err


@pytest.mark.usefixtures("rehearsed")
def test_folds_are_planned_as_one_of_them(arguments, capsys):
    assert main(["plan", *arguments, "folds=3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folds"] == 3


def _in_a_process(command, arguments):
    done = subprocess.run(
        [sys.executable, "-m", "samadapt", command, *arguments, "--json"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="compares with the peak that Linux keeps")
@pytest.mark.parametrize("prompts", ["box", "point", "semantic", "interactive"])
def test_memory_and_disk_are_within_a_fifth_of_the_run(arguments, tmp_path, prompts):
    own = [a for a in arguments if a not in ("model=tiny", "peft.blocks=last:1")]
    own += [f"prompts={prompts}", "model.image_size=168", "eval.max_cases=2", "train.batch_size=6"]
    planned = _in_a_process("plan", own)
    result = _in_a_process("finetune", own)
    lines = (Path(result["run_dir"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    measured = max(line.get("memory_bytes", 0) for line in map(json.loads, lines))
    assert planned["memory_bytes"] == pytest.approx(measured, rel=0.2)
    files = (tmp_path / "runs" / "features").glob("*.safetensors")
    on_disk = sum(path.stat().st_size for path in files)
    assert planned["feature_bytes"] == pytest.approx(on_disk, rel=0.2)


def test_usual_slices_are_spread_over_a_case_or_are_all_of_it():
    from samadapt.data.stacks import Stacks
    from samadapt.data.types import SliceRef
    from samadapt.runs.rehearsal import _usual

    def indices(depths, count, stack=1, **options):
        refs = [
            SliceRef(f"c{n}", index) for n, depth in enumerate(depths) for index in range(depth)
        ]
        stacks = Stacks(stack, lambda case: depths[int(case[1:])])
        return [(ref.case, ref.index) for ref in _usual(refs, count, stacks, **options)]

    assert indices([20], 8) == [("c0", i) for i in (0, 2, 5, 7, 10, 12, 15, 17)]
    assert indices([12], 8) == [("c0", i) for i in range(12)]
    assert indices([2, 12, 90], 8) == [("c1", i) for i in range(12)]  # neither deep nor flat
    assert indices([1] * 5, 2) == [("c2", 0), ("c3", 0)]
    assert indices([1], 8) == [("c0", 0)]
    # Objects are carried through all slices between those that are scored.
    assert indices([20], 8, together=True) == [("c0", i) for i in range(6, 14)]
    assert indices([40], 8, stack=4) == [("c0", i) for i in (0, 1, 2, 3, 20, 21, 22, 23)]
