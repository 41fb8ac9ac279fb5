"""``predict``, ``masks`` and ``sweep`` as an array of jobs, tried with submitit's executor."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samadapt.cli import main
from samadapt.commands import predict as predict_command
from samadapt.runs.cluster_job import CommandJob

pytest.importorskip("submitit")
from submitit.helpers import DelayedSubmission

LOCAL = ("launcher=submitit", "launcher.executor=local")
SECONDS = 600
LOOSE = ["points_per_side=3", "min_iou=0", "min_stability=0", "relative_iou=0", "nms=0.99"]
"""Thresholds that some masks of a random model pass."""

Call = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # in the jobs; tests have one thread anyway


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five noisy pictures."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcde":
        values = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def predicting(adapter_at, folder, tmp_path) -> list[str]:
    """The arguments of a prediction that gives labels, maps and objects."""
    adapter = adapter_at(tmp_path / "adapter", classes=["lesion"])
    keys = ["boxes=[[2,3,20,15],[5,5,9,9]]", "uncertainty=true", "objects=true", "device=cpu"]
    return ["predict", f"adapter={adapter}", f"input={folder}", *keys]


@pytest.fixture
def finding(folder) -> list[str]:
    return ["masks", "model=tiny", f"input={folder}", "preview=true", "device=cpu", *LOOSE]


@pytest.fixture
def call(capsys) -> Call:
    """``call(code, "predict", ...)``: what a command prints."""

    def run(code: int, *command: str) -> dict[str, Any]:
        assert main([*command, "--json"]) == code
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


def wait_for(is_true: Callable[[], object], what: str) -> None:
    until = time.monotonic() + SECONDS
    while not is_true():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def files_of(target: Path) -> dict[str, bytes]:
    """Names and contents of an output and what lies beside it, without records of how it began."""
    found = [path for path in target.parent.rglob("*") if path.is_file()]
    kept = [path for path in found if "_rows" not in path.name]
    return {path.name: path.read_bytes() for path in kept if "_jobs" not in path.parent.name}


def in_new_folders(tmp_path: Path, ending: str) -> tuple[Path, Path]:
    one, two = tmp_path / "one" / f"out{ending}", tmp_path / "two" / f"out{ending}"
    for target in (one, two):
        target.parent.mkdir()
    return one, two


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", ".json"])
@pytest.mark.parametrize("command", ["predicting", "finding"])
def test_three_jobs_write_the_files_of_one_call(command, ending, request, tmp_path, call) -> None:
    arguments = request.getfixturevalue(command)
    one, two = in_new_folders(tmp_path, ending)
    expected = call(0, *arguments, f"output={one}")
    submitted = [*arguments, f"output={two}", *LOCAL, "launcher.jobs=3", "launcher.wait=true"]
    result = call(0, *submitted)
    assert files_of(one) == files_of(two)
    assert len(files_of(one)) > 5
    assert (len(result["jobs"]), result["failed"]) == (3, [])
    moved = json.loads(json.dumps(result["files"]).replace(str(two.parent), str(one.parent)))
    assert moved == expected["files"]
    # All is done: nothing is submitted, and the same command here skips all.
    again = call(0, *submitted)
    assert again["jobs"] == []
    assert all(row["skipped"] for row in again["files"])
    here = call(0, *arguments, f"output={two}")
    assert all(row["skipped"] for row in here["files"])
    assert files_of(one) == files_of(two)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["predicting", "finding"])
def test_the_same_command_submits_what_is_missing(command, request, tmp_path, folder, call) -> None:
    """A broken picture and a job that was lost; both are done by the next submission."""
    arguments = request.getfixturevalue(command)
    one, two = in_new_folders(tmp_path, ".json")
    call(0, *arguments, f"output={one}")
    good = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(b"no picture")
    submitted = [*arguments, f"output={two}", *LOCAL, "launcher.jobs=3", "launcher.wait=true"]
    result = call(1, *submitted)
    assert [("error" in row) for row in result["files"]] == [False, True, False, False, False]
    assert len(result["failed"]) == 1  # the job of b.png and e.png
    written = json.loads(two.read_text(encoding="utf-8"))
    assert [one["file_name"] for one in written["images"]] == ["a.png", "c.png", "d.png", "e.png"]
    (folder / "b.png").write_bytes(good)
    result = call(0, *submitted)
    assert len(result["jobs"]) == 1
    assert [row.get("skipped") for row in result["files"]] == [True, None, True, True, True]
    assert files_of(one) == files_of(two)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:subprocess")  # the job outlives the process that submits it
@pytest.mark.parametrize("number", ["SIGUSR2", "SIGKILL"])
def test_a_job_that_is_stopped_goes_on(predicting, tmp_path, folder, call, number) -> None:
    """The warning signal queues it again; after a kill the same command does what is missing."""
    for path in [*folder.iterdir()]:
        for copy in range(40):
            os.link(path, folder / f"{path.stem}{copy}.png")
    one, two = in_new_folders(tmp_path, ".json")
    call(0, *predicting, f"output={one}")
    submitted = [*predicting, f"output={two}", *LOCAL, "launcher.jobs=2"]
    jobs = call(0, *submitted)["jobs"]
    left = two.parent / "out_jobs"
    lines = left / "part_0_of_2.jsonl"
    wait_for(lines.is_file, "the job did not start")
    holder = json.loads((left / "part_0_of_2.holder").read_text(encoding="utf-8"))
    os.kill(holder["pid"], getattr(signal, number))
    logs = [Path(job["log"]) for job in jobs]
    if number == "SIGUSR2":
        wait_for(lambda: len(list(left.glob("*result.pkl"))) == 2, "a job left no result")
        text = logs[0].read_text(encoding="utf-8")
        assert "Requeued job" in text
        assert text.count("Starting with") == 2
        assert "Traceback" not in text
        assert text.count("written before") == 1
    else:
        wait_for(lambda: list(left.glob("*result.pkl")), "the other job left no result")
        assert not two.exists()
        before = lines.read_text(encoding="utf-8").count("\n")
        assert 0 < before < 103
        result = call(0, *submitted, "launcher.wait=true")
        assert len(result["jobs"]) == 1
        assert sum("skipped" in row for row in result["files"]) >= 102 + before - 1
    assert files_of(one) == files_of(two)


@pytest.mark.slow
def test_processes_of_a_job_share_its_part(predicting, tmp_path, call) -> None:
    one, two = in_new_folders(tmp_path, ".json")
    call(0, *predicting, f"output={one}")
    keys = ("launcher.jobs=2", "launcher.tasks_per_node=2", "launcher.wait=true")
    result = call(0, *predicting, f"output={two}", *LOCAL, *keys)
    assert files_of(one) == files_of(two)
    assert len(result["jobs"]) == 2
    assert len(list((two.parent / "out_jobs").glob("*result.pkl"))) == 4


def test_mistakes_are_refused_before_anything_is_queued(
    predicting, finding, tmp_path, folder, capsys
) -> None:
    jobs = (*LOCAL, "launcher.jobs=2")
    target = f"output={tmp_path / 'out'}"
    wrong = [
        ([*predicting, *jobs, f"input={folder / 'a.png'}", "output=a.png"], "is a single image"),
        ([*finding, *jobs, f"input={folder / 'a.png'}", "output=a.png"], "is a single image"),
        ([*predicting, *jobs, target, "launcher.jobs=0"], "launcher.jobs"),
        ([*predicting, target, "launcher.jobs=2"], "without launcher=submitit"),
        ([*predicting, *jobs, target, "precision=auto"], "precision=fp32, bf16 or fp16"),
        ([*predicting, *jobs, target, "keep_largest=[bone]"], "no class 'bone'"),
        ([*predicting, *jobs, target, "adapter=nowhere"], "nowhere"),
        ([*finding, *jobs, target, "crop_layers=9"], "crop_layers"),
        ([*finding, *jobs, "tune=true", "output=x.yaml"], "tune=true runs here"),
        ([*predicting, *jobs, target, "only_part=1", "parts=2"], "give launcher.jobs"),
        ([*predicting, target, "only_part=1"], "parts=N is missing"),
        ([*predicting, target, "parts=2"], "only_part=K"),
        ([*predicting, target, "only_part=2", "parts=2"], "expected 0 to 1"),
        ([*predicting, target, "only_part=0", "parts=2", "overwrite=true"], "other parts have"),
    ]
    for arguments, text in wrong:
        assert main(arguments) == 2, arguments
        assert text in capsys.readouterr().err
        assert not (tmp_path / "out").exists(), arguments


def test_other_outputs_and_a_missing_extra_are_refused(
    predicting, tmp_path, call, capsys, monkeypatch
) -> None:
    target = tmp_path / "out"
    call(0, *predicting, f"output={target}")
    before = sorted(target.rglob("*"))
    assert main([*predicting, f"output={target}", *LOCAL, "tta=flip"]) == 2
    assert "tta: None before, flip now" in capsys.readouterr().err
    assert sorted(target.rglob("*")) == before
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main([*predicting, f"output={target}", *LOCAL]) == 2
    assert "samadapt[slurm]" in capsys.readouterr().err


def test_jobs_are_for_folders_and_sweeps(recipe, make_pictures, capsys) -> None:
    arguments = ["finetune", f"recipe={recipe}", f"data.root={make_pictures()}", *LOCAL]
    assert main([*arguments, "launcher.jobs=2"]) == 2
    assert "folds=5" in capsys.readouterr().err


def test_what_the_jobs_of_a_folder_do(predicting, slurm, tmp_path, call, folder) -> None:
    """One image is done, so its part has no job; overwriting happens when jobs are submitted."""
    target = tmp_path / "out"
    call(0, *predicting, f"output={target}", "only_part=3", "parts=5")
    submitted = [*predicting, f"output={target}", "launcher=submitit", "launcher.jobs=5"]
    result = call(0, *submitted)
    assert [job["job"] for job in result["jobs"]] == ["71_0", "71_1", "71_2", "71_3"]
    assert "output: " + str(target) in predict_command.render(result)
    jobs = [load_job(target / "predict_jobs" / f"71_{n}_submitted.pkl") for n in range(4)]
    typed = (*predicting, f"output={target}")
    assert jobs == [CommandJob((*typed, f"only_part={n}", "parts=5")) for n in (0, 1, 2, 4)]
    result = call(0, *submitted, "overwrite=true", "launcher.jobs=9")
    assert len(result["jobs"]) == len(list(folder.iterdir()))
    job = load_job(target / "predict_jobs" / "71_0_submitted.pkl")
    assert "overwrite=true" not in job.arguments
    # The machine that submits may have no GPU, and need not compute in what the jobs do.
    call(0, *submitted, "overwrite=true", "precision=fp16", "device=cuda")
    assert "precision: fp16" in (target / "predict_settings.yaml").read_text(encoding="utf-8")


def test_a_refusal_of_slurm_leaves_nothing(predicting, slurm, tmp_path, call, capsys) -> None:
    (slurm / "sbatch").write_text(
        "#!/bin/sh\necho sbatch: error: no >&2; exit 1\n", encoding="utf-8"
    )
    (tmp_path / "two").mkdir()
    for target in (tmp_path / "out", tmp_path / "two" / "out.json"):
        assert main([*predicting, f"output={target}", "launcher=submitit"]) == 2
        assert "sbatch: error: no" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "two").iterdir())


def load_job(path: Path) -> CommandJob:
    job: CommandJob = DelayedSubmission.load(path).function
    return job


@pytest.fixture
def sweeping(make_pictures, recipe) -> list[str]:
    pytest.importorskip("optuna")
    keys = ["threads=1", "seeds=1", "peft=lora,ia3", "train.lr=1e-2,1e-3"]
    return ["sweep", f"recipe={recipe}", f"data.root={make_pictures(8)}", *keys]


@pytest.mark.slow
def test_two_jobs_share_a_sweep(sweeping, call) -> None:
    here = call(0, *sweeping)
    there = call(0, *sweeping, *LOCAL, "launcher.jobs=2", "launcher.wait=true")
    assert (len(there["jobs"]), there["failed"]) == (2, [])
    one, two = Path(here["run_dir"]), Path(there["run_dir"])
    assert (one / "config.yaml").read_bytes() == (two / "config.yaml").read_bytes()
    machines = [json.loads((d / "machine.json").read_text(encoding="utf-8")) for d in (one, two)]
    for machine in machines:
        del machine["precision"]["reason"]  # what was measured
    assert machines[0] == machines[1]
    by_values = [
        {str(trial["values"]): trial["validation"] for trial in result["summary"]["trials"]}
        for result in (here, there)
    ]
    assert by_values[0] == by_values[1]
    assert len(by_values[1]) == 4
    winners = [result["summary"]["winner"] for result in (here, there)]
    for key in ("values", "validation", "command"):
        assert winners[0][key] == winners[1][key]
    said = [Path(job["log"]).read_text(encoding="utf-8") for job in there["jobs"]]
    begun = [sum(f"trial {n} of 4 begins" in text for n in range(4)) for text in said]
    assert sum(begun) == 4
    for number in range(4):
        console = (two / "trials" / f"000{number}" / "console.txt").read_text(encoding="utf-8")
        assert console.count("run directory: ") == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:subprocess")  # the job outlives the process that submits it
def test_a_warned_job_of_a_sweep_is_queued_again(sweeping, call) -> None:
    keys = ("train.steps=200", "train.validate_every=50")
    result = call(0, *sweeping[:-1], *keys, *LOCAL)
    run_dir, (job,) = Path(result["run_dir"]), result["jobs"]
    first = run_dir / "trials" / "0000"
    wait_for((first / "checkpoints" / "LATEST").is_file, "no trial has started")
    log = Path(job["log"])
    os.kill(child_of(int(job["job"])), signal.SIGUSR2)
    wait_for(lambda: list(log.parent.glob("*result.pkl")), "the job left no result")
    text = log.read_text(encoding="utf-8")
    assert "Requeued job" in text
    assert text.count("Starting with") == 2
    assert "Traceback" not in text
    metrics = (first / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [json.loads(line) for line in metrics]
    assert [one["step"] for one in lines if one["kind"] == "train"] == list(range(1, 201))
    assert (run_dir / "sweep.json").is_file()


def child_of(pid: int) -> int:
    """The process that runs the command: submitit's job is the one that looks after it."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return int(found[0])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["launcher.tasks_per_node=2"], "would start 2 processes"),
        (["launcher.minute=3"], "did you mean 'launcher.minutes'"),
        (["data.root=nowhere"], "nowhere"),
        (["peft.rank=interval(1,9)"], "give trials=30"),
    ],
)
def test_mistakes_of_a_sweep_are_refused(sweeping, keys, message, tmp_path, capsys) -> None:
    assert main([*sweeping, *LOCAL, "launcher.jobs=2", *keys]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/*"))
