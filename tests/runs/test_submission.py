"""``launcher=submitit``: jobs of a cluster, tried with submitit's executor for this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from samadapt.cli import main
from samadapt.commands.finetune import render
from samadapt.runs.cluster_job import CommandJob

pytest.importorskip("submitit")
from submitit.helpers import DelayedSubmission

LOCAL = ("launcher=submitit", "launcher.executor=local")
SECONDS = 600
RESULTS = ("adapter/adapter_model.safetensors", "eval/per_case.csv", "splits.json")


@pytest.fixture
def pictures(make_pictures, monkeypatch) -> Path:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # in the jobs; tests have one thread anyway
    root: Path = make_pictures()
    return root


@pytest.fixture
def submit(recipe, pictures, capsys) -> Callable[..., dict]:
    """``submit("key=value", ...)``: the result of a submitted ``finetune``."""

    def start(*options: str, code: int = 0) -> dict:
        named = () if "resume=" in "".join(options) else (f"recipe={recipe}",)
        command = ["finetune", *named, *options, f"data.root={pictures}", *LOCAL, "--json"]
        assert main(command) == code
        found: dict = json.loads(capsys.readouterr().out)
        return found

    return start


def wait_for(is_true: Callable[[], object], what: str) -> None:
    until = time.monotonic() + SECONDS
    while not is_true():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def same_files(run_dir: str | Path, other: str | Path, names=RESULTS) -> bool:
    return all(
        (Path(run_dir) / name).read_bytes() == (Path(other) / name).read_bytes() for name in names
    )


def steps_of(run_dir: Path) -> list[int]:
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return [line["step"] for line in lines if line["kind"] == "train"]


@pytest.mark.slow
def test_a_submitted_run_is_that_of_the_same_command_here(run, submit, pictures) -> None:
    here = run(pictures)
    there = submit("launcher.wait=true")
    assert there["run_dir"] != str(here.run_dir)
    # The launcher is no part of what the result depends on.
    assert same_files(there["run_dir"], here.run_dir, ("config.yaml", *RESULTS))
    assert there["summary"]["adapted"] == here.summary["adapted"]
    assert there["adapter_dir"] == str(Path(there["run_dir"]) / "adapter")
    (job,) = there["jobs"]
    assert "run directory" in Path(job["log"]).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:subprocess")  # the job outlives the process that submits it
def test_the_warning_signal_saves_and_queues_again(run, submit, pictures) -> None:
    options = ("train.steps=40", "train.validate_every=0")
    submitted = submit(*options)
    run_dir, log = Path(submitted["run_dir"]), Path(submitted["jobs"][0]["log"])
    wait_for((run_dir / "metrics.jsonl").is_file, "the job did not start")
    holder = json.loads((run_dir / ".holder.json").read_text(encoding="utf-8"))
    os.kill(holder["pid"], signal.SIGUSR2)
    wait_for(lambda: list(log.parent.glob("*result.pkl")), "the job left no result")
    text = log.read_text(encoding="utf-8")
    assert "all saved; continue with" in text
    assert "Requeued job" in text
    assert text.count("Starting with") == 2
    assert "Traceback" not in text
    assert steps_of(run_dir) == list(range(1, 41))
    assert same_files(run_dir, run(pictures, *options).run_dir)


@pytest.mark.slow
def test_folds_are_jobs_and_the_last_one_pools(run, submit, pictures) -> None:
    here = run(pictures, "folds=2", "train.steps=2")
    there = submit("folds=2", "train.steps=2", "launcher.wait=true")
    assert len(there["jobs"]) == 2
    pooled = ("eval/per_case.csv", "fold_0/adapter/adapter_model.safetensors")
    assert same_files(there["run_dir"], here.run_dir, pooled)
    for name in ("adapted", "zero_shot", "paired"):
        assert there["summary"][name] == here.summary[name]
    assert (Path(there["run_dir"]) / "report.html").is_file()
    # Only what is missing is submitted, and the job that trains it pools.
    shutil.rmtree(Path(there["run_dir"]) / "fold_1")
    (Path(there["run_dir"]) / "eval" / "per_case.csv").unlink()
    again = submit(f"resume={there['run_dir']}", "launcher.wait=true")
    assert len(again["jobs"]) == 1
    assert same_files(again["run_dir"], here.run_dir, pooled)


@pytest.mark.slow
def test_processes_of_a_job_share_the_run(submit) -> None:
    there = submit("launcher.tasks_per_node=2", "launcher.wait=true")
    run_dir = Path(there["run_dir"])
    assert steps_of(run_dir) == [1, 2, 3, 4]
    assert len(list(run_dir.parent.iterdir())) == 1
    assert len(list((run_dir / "jobs").glob("*result.pkl"))) == 2


@pytest.mark.slow
def test_a_job_that_fails_is_named(submit, tmp_path) -> None:
    weights = tmp_path / "broken.pth"
    weights.write_text("no weights", encoding="utf-8")
    options = ("model.name=vit_b", f"model.checkpoint={weights}", "launcher.wait=true")
    failed = submit(*options, code=1)
    (job,) = failed["jobs"]
    assert failed["failed"] == [job["job"]]
    assert "summary" not in failed
    assert "broken.pth" in Path(job["log"]).read_text(encoding="utf-8")
    assert f"resume={failed['run_dir']}" in render(failed)


def test_mistakes_are_refused_before_anything_is_queued(
    recipe, make_pictures, tmp_path, capsys
) -> None:
    wrong = {
        "data.root": (f"data.root={tmp_path / 'nowhere'}", "nowhere"),
        "keys of the run": ("train.steps=-1", "train.steps"),
        "keys of the launcher": ("launcher.minute=3", "did you mean 'launcher.minutes'"),
        "the warning": ("launcher.minutes=2", "launcher.warning_seconds=120"),
        "machines": ("launcher.nodes=2", "launcher.executor=local"),
        "folds": ("only_fold=1", "resume=RUN_DIR"),
    }
    root = make_pictures()
    for option, text in wrong.values():
        arguments = ["finetune", f"recipe={recipe}", f"data.root={root}", *LOCAL, option]
        assert main(arguments) == 2
        assert text in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/*"))


def test_without_slurm_the_executor_is_named(recipe, make_pictures, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", "")
    arguments = ["finetune", f"recipe={recipe}", f"data.root={make_pictures()}"]
    assert main([*arguments, "launcher=submitit"]) == 2
    assert "launcher.executor=local" in capsys.readouterr().err


def test_without_submitit_the_extra_is_named(recipe, make_pictures, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["finetune", f"recipe={recipe}", f"data.root={make_pictures()}", *LOCAL]) == 2
    assert "samadapt[slurm]" in capsys.readouterr().err


def test_what_slurm_is_asked_for(recipe, make_pictures, slurm, capsys) -> None:
    keys = (
        "partition=gpu nodes=2 gpus_per_node=4 cpus_per_task=8 memory_gb=64 minutes=600 at_once=2 "
        "setup=['module load cuda'] sbatch={constraint: a100}"
    )
    options = [f"launcher.{key}" for key in re.split(r" (?=\w+=)", keys)]
    arguments = ["finetune", f"recipe={recipe}", f"data.root={make_pictures()}", "folds=3"]
    assert main([*arguments, "launcher=submitit", *options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [job["job"] for job in result["jobs"]] == ["71_0", "71_1", "71_2"]
    lines = (slurm / "script").read_text(encoding="utf-8").splitlines()
    asked = dict(line[10:].partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    expected = {
        "partition": "gpu", "nodes": "2", "gpus-per-node": "4", "ntasks-per-node": "4",
        "cpus-per-task": "8", "mem": "65536MB", "time": "600", "array": "0-2%2",
        "signal": "USR2@120", "constraint": "a100",
    }  # fmt: skip
    assert {key: asked[key] for key in expected} == expected
    assert "module load cuda" in lines
    (srun,) = (line for line in lines if line.startswith("srun"))
    assert "--cpus-per-task=8" in srun
    run_dir = Path(result["run_dir"])
    assert (run_dir / "config.yaml").is_file()
    commands = [load_job(run_dir / "jobs" / f"71_{n}_submitted.pkl").arguments for n in range(3)]
    assert commands == [("finetune", f"resume={run_dir}", f"only_fold={n}") for n in range(3)]


def load_job(path: Path) -> CommandJob:
    job: CommandJob = DelayedSubmission.load(path).function
    return job


def test_a_refusal_of_slurm_is_shown_and_leaves_no_run(
    recipe, make_pictures, slurm, tmp_path, capsys
) -> None:
    reason = "sbatch: error: invalid partition specified: gpus"
    (slurm / "sbatch").write_text(f"#!/bin/sh\necho {reason} >&2; exit 1\n", encoding="utf-8")
    arguments = ["finetune", f"recipe={recipe}", f"data.root={make_pictures()}"]
    assert main([*arguments, "launcher=submitit", "launcher.partition=gpus"]) == 2
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/*"))
