"""``predict`` and ``masks`` of a folder in two processes: the files of one, and what goes on."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from together import SECONDS, Together, alone, shared

from samadapt.system.atomic import PREFIX

pytestmark = pytest.mark.slow

LOOSE = ["points_per_side=3", "min_iou=0", "min_stability=0", "relative_iou=0", "nms=0.99"]
"""Thresholds that some masks of a random model pass."""


@pytest.fixture
def folder(tmp_path):
    """Five noisy pictures and one that is broken."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "abdef":
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(
            folder / f"{name}.png"
        )
    (folder / "c.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def predicting(adapter_at, folder, tmp_path):
    """The arguments of a prediction that gives labels, maps and objects."""
    adapter = adapter_at(tmp_path / "adapter", classes=["lesion"])
    keys = ["boxes=[[2,3,20,15],[5,5,9,9]]", "uncertainty=true", "objects=true", "device=cpu"]
    return ["predict", f"adapter={adapter}", f"input={folder}", *keys]


@pytest.fixture
def finding(folder):
    return ["masks", "model=tiny", f"input={folder}", "preview=true", "device=cpu", *LOOSE]


def together(*command):
    """What the first of two processes prints; the broken picture makes both end with 1."""
    (first, out, errors), (other, nothing, said) = Together(*[[*command, "--json"]] * 2).end()
    assert (first, other) == (1, 1), errors + said
    assert nothing == said == ""
    assert errors.count("c.png: cannot be read") == 1
    return json.loads(out)


def single(*command):
    (code, out, errors), *_ = Together([*command, "--json"], size=1).end()
    assert code == 1, errors
    return json.loads(out)


def files_of(target):
    """Names and contents of an output and what lies beside it, without the lines of each file."""
    found = [path for path in target.parent.rglob("*") if path.is_file()]
    return {path.name: path.read_bytes() for path in found if "_rows" not in path.name}


def rows_of(result):
    """Rows without the folder of the output."""
    return json.loads(json.dumps(result["files"]).replace(str(Path(result["output"]).parent), ""))


@pytest.mark.parametrize("ending", ["", ".json"])
@pytest.mark.parametrize("command", ["predicting", "finding"])
def test_two_processes_write_the_files_of_one(command, ending, request, tmp_path):
    arguments = request.getfixturevalue(command)
    one, two = tmp_path / "one" / f"out{ending}", tmp_path / "two" / f"out{ending}"
    for target in (one, two):
        target.parent.mkdir()
    expected = single(*arguments, f"output={one}")
    result = together(*arguments, f"output={two}")
    assert files_of(one) == files_of(two)
    assert len(files_of(one)) > 5
    assert rows_of(result) == rows_of(expected)
    assert [row["input"][-5] for row in result["files"]] == list("abcdef")
    again = together(*arguments, f"output={two}")
    assert [row.get("skipped") for row in again["files"]] == [True, True, None, True, True, True]
    if command == "predicting":
        assert [row.get("objects") for row in again["files"]] == [
            row.get("objects") for row in result["files"]
        ]
    assert files_of(one) == files_of(two)


@pytest.mark.parametrize("command", ["predicting", "finding"])
def test_killed_processes_are_continued_by_any_number(command, request, folder, tmp_path):
    """Both processes are killed without a warning; one process does what is missing."""
    arguments = request.getfixturevalue(command)
    (folder / "c.png").unlink()
    for path in [*folder.iterdir()]:
        for number in range(12):
            os.link(path, folder / f"{path.stem}{number}.png")
    one, two = tmp_path / "one" / "out.json", tmp_path / "two" / "out.json"
    for target in (one, two):
        target.parent.mkdir()
    alone(*arguments, f"output={one}")
    running = Together(*[[*arguments, f"output={two}"]] * 2)
    parts = [two.with_name(f"out_rows{rank}.jsonl") for rank in ("", ".1")]
    until = time.monotonic() + SECONDS
    while not all(part.is_file() for part in parts) and time.monotonic() < until:
        time.sleep(0.01)
    for process in running.started:
        process.kill()
    running.end()
    assert all(part.is_file() for part in parts)
    assert not two.exists()
    # What a process may leave that is killed while it writes, and what another command may write.
    (two.parent / f"{PREFIX}0a1b2c3d-a.png_uncertainty.png").write_bytes(b"half")
    (two.parent / f"{PREFIX}0a1b2c3d-other.png").write_bytes(b"half")
    result = alone(*arguments, f"output={two}")
    done = [row for row in result["files"] if row.get("skipped")]
    assert 2 <= len(done) < len(result["files"])
    (two.parent / f"{PREFIX}0a1b2c3d-other.png").unlink()
    assert files_of(one) == files_of(two)
    assert not parts[1].exists()


def test_refusals_are_said_once(predicting, folder, tmp_path):
    target = tmp_path / "out"
    together(*predicting, f"output={target}")
    for command, message in [
        ([*predicting, f"output={target}", "tta=flip"], "tta: None before, flip now"),
        ([*predicting, f"input={folder / 'a.png'}", "output=a.png"], "is a single image"),
        (["masks", f"{predicting[1]}", "tune=true", "output=x.yaml"], "this command runs as one"),
    ]:
        (first, _, said), (other, _, nothing) = Together(command, command).end()
        assert (first, other) == (2, 2), said + nothing
        assert message in said
        assert nothing == ""
    ends = Together(
        [*predicting, f"output={tmp_path / 'new'}"],
        [*predicting, f"output={tmp_path / 'new'}", "fill_holes=true"],
    ).end()
    assert [code for code, _, _ in ends] == [2, 2]
    assert "fill_holes" in ends[0][2]
    assert not (tmp_path / "new").exists()


def test_a_lost_process_is_named_and_the_rest_goes_on(predicting, folder, tmp_path):
    target = tmp_path / "out"
    shared_keys = [*predicting, f"output={target}"]
    (folder / "c.png").unlink()
    for number in range(60):
        os.link(folder / "a.png", folder / f"g{number}.png")
    running = Together(shared_keys, shared_keys)
    until = time.monotonic() + SECONDS
    while not (target / "predict_rows.1.jsonl").is_file() and time.monotonic() < until:
        time.sleep(0.01)
    running.started[1].kill()
    (code, _, said), _ = running.end()
    assert code == 1
    assert "lost the others" in said
    result = shared(*shared_keys)
    assert sum("skipped" in row for row in result["files"]) > 30
