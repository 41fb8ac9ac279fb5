"""A run that several processes share: one run directory, the results of one process, clear ends."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from together import SECONDS, Together, alone, shared

pytestmark = pytest.mark.slow


def weights_of(result: dict) -> dict[str, np.ndarray]:
    return load_file(Path(result["adapter_dir"]) / "adapter_model.safetensors")


def is_close(first: dict, other: dict) -> bool:
    """fp32 weights after a few steps of AdamW, whose steps are as large as the rate."""
    one, two = weights_of(first), weights_of(other)
    assert one.keys() == two.keys()
    return max(float(np.abs(one[name] - two[name]).max()) for name in one) < 2e-3


def lines_of(run_dir: str | Path) -> list[dict]:
    path = Path(run_dir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("prompts", ["box", "semantic"])
def test_one_run_directory_with_the_results_of_one_process(recipe, make_pictures, prompts):
    options = [f"recipe={recipe}", f"data.root={make_pictures(9)}", f"prompts={prompts}"]
    two = shared("finetune", *options)
    one = alone("finetune", *options)
    assert len(list((recipe.parent / "runs" / "small").iterdir())) == 2
    steps = [line["step"] for line in lines_of(two["run_dir"]) if line["kind"] == "train"]
    assert steps == [1, 2, 3, 4]
    losses = [
        [line["loss"] for line in lines_of(run["run_dir"]) if line["kind"] == "train"]
        for run in (one, two)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    assert is_close(one, two)
    assert one["summary"]["cases"] == two["summary"]["cases"]
    log = (Path(two["run_dir"]) / "log.txt").read_text(encoding="utf-8")
    assert log.count("gradients: present") == 1


def test_the_first_run_says_what_each_process_will_need(recipe, make_pictures):
    options = [f"recipe={recipe}", f"data.root={make_pictures(9)}", "train.steps=12"]
    two, one = shared("finetune", *options), alone("finetune", *options)
    log = (Path(two["run_dir"]) / "log.txt").read_text(encoding="utf-8")
    (line,) = [line for line in log.splitlines() if " plan: " in line]
    assert line.endswith("(as measured just now)")
    found = re.search(r"about ([\d.]+) GB of memory in each process", line)
    assert found
    assert float(found[1]) == pytest.approx(two["summary"]["peak_memory_bytes"] / 1e9, rel=0.2)
    assert is_close(one, two)  # the measurement changes nothing


def test_an_adapter_is_scored_digit_for_digit(recipe, make_pictures):
    root = make_pictures(9)
    trained = alone("finetune", f"recipe={recipe}", f"data.root={root}")
    asked = [f"adapter={trained['adapter_dir']}", f"data.root={root}", "all_cases=true"]
    asked += [f"output.dir={recipe.parent / 'scores'}", "precision=fp32"]
    files = []
    for result in (alone("evaluate", *asked), shared("evaluate", *asked)):
        folder = Path(result["run_dir"]) / "eval"
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        assert summary.pop("seconds") > 0
        assert summary.pop("peak_memory_bytes") > 0
        files.append((summary, (folder / "per_case.csv").read_bytes()))
    assert files[0] == files[1]


class Watched(Together):
    """Processes that print the names of the threads that are left after the run."""

    program = (
        "-c",
        (
            "import sys; from pathlib import Path; from samadapt.cli import main; "
            "code = main(sys.argv[1:]); threads = Path('/proc/self/task').glob('*/comm'); "
            "print(*sorted(path.read_text().strip() for path in threads), file=sys.stderr); "
            "sys.exit(code)"
        ),
    )


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads the threads from /proc")
def test_no_thread_of_gloo_outlives_the_run(recipe, make_pictures):
    """One that works while Python ends aborts the program: now and then, where little follows."""
    options = [f"recipe={recipe}", f"data.root={make_pictures(9)}", "eval.max_cases=1"]
    ends = Watched(*[["finetune", *options]] * 2).end()
    assert [code for code, _, _ in ends] == [0, 0], ends
    for _, _, error in ends:
        assert "gloo" not in error.splitlines()[-1]


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_every_feature_is_computed_once(recipe, make_pictures, cache):
    result = shared(
        "finetune", f"recipe={recipe}", f"data.root={make_pictures(9)}", f"cache.where={cache}"
    )
    log = (Path(result["run_dir"]) / "log.txt").read_text(encoding="utf-8")
    assert "features: 9 computed, 0 reused" in log


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(recipe, make_pictures, before, after):
    """SIGTERM reaches one process; both stop with one checkpoint, and the run can go on."""
    options = [f"recipe={recipe}", f"data.root={make_pictures(9)}", "train.validate_every=0"]
    options += ["train.checkpoint_every=0", "train.steps=60"]
    whole = alone("finetune", *options)
    running = Together(*[["finetune", *options]] * before, size=before)
    runs = recipe.parent / "runs" / "small"
    run_dir = next_run(runs, Path(whole["run_dir"]))
    wait_for_lines(run_dir, 3)
    running.started[-1].send_signal(signal.SIGTERM)
    ends = running.end()
    assert {code for code, _, _ in ends} == {128 + signal.SIGTERM}, ends
    assert sum("all saved; continue with" in error for _, _, error in ends) == 1
    step = lines_of(run_dir)[-1]["step"]
    assert step < 60
    saved = sorted(path.name for path in (run_dir / "checkpoints").glob("step_*"))
    assert [int(name.removeprefix("step_")) for name in saved] == [step]
    resumed = (shared if after == 2 else alone)("finetune", f"resume={run_dir}")
    trained = [line["step"] for line in lines_of(run_dir) if line["kind"] == "train"]
    assert trained == list(range(1, 61))
    one, two = weights_of(whole), weights_of(resumed)
    away = max(float(np.abs(one[name] - two[name]).max()) for name in one)
    largest = max(float(np.abs(value).max()) for value in one.values())
    assert away < 0.02 * largest


def test_a_killed_process_ends_the_others_within_a_minute(recipe, make_pictures):
    options = [f"recipe={recipe}", f"data.root={make_pictures(9)}", "train.steps=100000"]
    running = Together(*[["finetune", *options]] * 2)
    run_dir = next_run(recipe.parent / "runs" / "small")
    wait_for_lines(run_dir, 3)
    running.started[1].kill()
    killed = time.monotonic()
    (code, _, error), _ = running.end()
    assert time.monotonic() - killed < 60
    assert code == 1
    assert "lost the others" in error
    assert "Traceback" not in error


def test_differences_between_processes_are_named(recipe, make_pictures):
    root = make_pictures(9)
    options = ["finetune", f"recipe={recipe}", f"data.root={root}"]
    ends = Together(options, [*options, "train.warmup_steps=3"]).end()
    assert [code for code, _, _ in ends] == [2, 2]
    assert "train.warmup_steps: 1 in process 0, 3 in process 1" in ends[0][2]
    assert ends[1][2] == ""  # the same message is not shown twice

    other = recipe.parent / "other"
    shutil.copytree(root, other)
    for path in list(other.rglob("*8*.png")):
        path.unlink()
    ends = Together(options, [*options[:2], f"data.root={other}"]).end()
    assert [code for code, _, _ in ends] == [2, 2]
    assert "the data differ between the processes" in ends[0][2]
    assert not list((recipe.parent / "runs" / "small").glob("*"))


def test_small_batches_and_other_commands_are_refused(recipe, make_pictures):
    options = ["finetune", f"recipe={recipe}", f"data.root={make_pictures(9)}"]
    (first, other) = Together(*[[*options, "train.batch_size=1"]] * 2).end()
    assert (first[0], other[0]) == (2, 2)
    assert "train.batch_size=1 is 1 for 2 processes" in first[2]
    ends = Together(["curve", *options[1:], "cases=2,4"], size=2).end()
    assert ends[0][0] == 2
    assert "this is one of 2 processes" in ends[0][2]


def next_run(runs: Path, *known: Path) -> Path:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        found = [path for path in runs.glob("*") if path not in known]
        if found:
            return found[0]
        time.sleep(0.1)
    raise AssertionError("no run was started")


def wait_for_lines(run_dir: Path, count: int) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        if (run_dir / "metrics.jsonl").is_file() and len(lines_of(run_dir)) >= count:
            return
        time.sleep(0.1)
    raise AssertionError(f"{run_dir} did not train")
