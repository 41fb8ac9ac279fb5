"""A run killed with ``kill -9`` at any moment and resumed ends bit-equal to one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import traceback
from pathlib import Path

import pytest

from samadapt.cli import main

RUNS, STEPS = 20, 8
NAMES = ("adapter/adapter_model.safetensors", "eval/per_case.csv", "metrics.jsonl")


def forked(arguments: list[str], log: Path) -> int:
    """Run the command line in a copy of this process, which has all modules loaded; its id."""
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        with log.open("a", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(number: int) -> int:
    """Wait for a process; its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def content(run_dir: Path, name: str) -> object:
    """Return what must be equal: bytes, or the lines of metrics without times and memory."""
    if name != "metrics.jsonl":
        return (run_dir / name).read_bytes()
    lines = map(json.loads, (run_dir / name).read_text(encoding="utf-8").splitlines())
    return [{k: v for k, v in x.items() if k not in ("seconds", "memory_bytes")} for x in lines]


def wait_for_lines(run_dir: Path, count: int, process: int) -> None:
    """Wait until ``metrics.jsonl`` has so many lines, or the process has ended, unreaped."""
    path = run_dir / "metrics.jsonl"
    while not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if count == 0 or (path.exists() and path.read_bytes().count(b"\n") >= count):
            return
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="copies this process, which Windows cannot")
def test_20_of_20_killed_runs_end_bit_equal(make_pictures, recipe, tmp_path):
    root, log = make_pictures(6), tmp_path / "log.txt"
    options = [f"recipe={recipe}", f"data.root={root}", f"train.steps={STEPS}", "peft.dropout=0.2"]
    options += ["train.validate_every=4", "train.checkpoint_every=2", "train.augment=[flip,noise]"]
    draw = random.Random(0)

    def start(folder: Path) -> int:
        return forked(["finetune", *options, f"output.dir={folder}"], log)

    def run_of(folder: Path) -> Path | None:
        found = [path.parent for path in folder.glob("small/*/config.yaml")]
        return found[0] if found else None

    main(["finetune", *options, f"output.dir={tmp_path / 'loaded'}"])  # the copies import nothing
    began = time.perf_counter()
    assert ended(start(tmp_path / "whole")) == 0, log.read_text(encoding="utf-8")
    takes = time.perf_counter() - began
    whole = run_of(tmp_path / "whole")
    kills = 0
    for number in range(RUNS):
        folder = tmp_path / f"killed_{number}"
        process = start(folder)
        while (run_dir := run_of(folder)) is None:
            time.sleep(0.001)
        for _ in range(draw.choice((1, 1, 2))):  # some are killed again after they went on
            # by progress and not by time, which says little on a busy machine
            wait_for_lines(run_dir, draw.randint(0, STEPS + 2), process)
            time.sleep(draw.uniform(0, takes / STEPS))
            os.kill(process, signal.SIGKILL)
            kills += ended(process) == -signal.SIGKILL
            process = forked(["finetune", f"resume={run_dir}"], log)
        assert ended(process) == 0, log.read_text(encoding="utf-8")[-4000:]
        for name in NAMES:
            assert content(run_dir, name) == content(whole, name), (number, name)
    assert kills >= RUNS
