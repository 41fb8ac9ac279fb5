"""From the start of a process to an answer, or to the first training step."""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.harness import Call, Comparison, Timed

COMMAND = [sys.executable, "-m", "samadapt"]
RECIPE = ("recipe=medical", "cache.where=disk")
PATIENCE = 900.0
"""Seconds after which a run without a finished step counts as failed."""


def rows() -> Iterator[Comparison]:
    """Yield commands that answer without torch, and ``finetune`` on a cached data set."""
    for arguments in (["--help"], ["ls"], ["show", "recipe=medical"]):
        name = " ".join(["samadapt", *arguments])
        yield Comparison(name, {"samadapt": partial(command, arguments)}, memory=False)
    for behind in (False, True):
        name = f"samadapt finetune {' '.join(RECIPE)}, to the {'end' if behind else 'start'} of "
        call = partial(first_step, RECIPE, behind=behind)
        yield Comparison(f"{name}the first step", {"samadapt": call}, memory=False)


def command(arguments: Sequence[str]) -> Call:
    """Build a call that runs a command, which must succeed."""

    def call() -> None:
        subprocess.run([*COMMAND, *arguments], check=True, capture_output=True)

    return call


def first_step(arguments: Sequence[str], *, behind: bool) -> Call:
    """Build a call that runs ``finetune`` and stops it after its first step.

    The first call fills the cache; the calls after it find the data set cached.

    Args:
        arguments: arguments of the command line.
        behind: count the first step as well, instead of only what comes before it.
    """
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def call() -> Timed:
        runs = Path(tempfile.mkdtemp(dir=folder))
        places = [f"cache.dir={json.dumps(folder + '/features')}"]
        places.append(f"output.dir={json.dumps(str(runs))}")
        started = time.perf_counter()
        process = subprocess.Popen(
            [*COMMAND, "finetune", *arguments, *places],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            taken, step = _wait_for_step(process, runs, started)
        finally:
            process.kill()
            process.communicate()
        return Timed(taken if behind else taken - step)

    return call


def _wait_for_step(
    process: subprocess.Popen[bytes], runs: Path, started: float
) -> tuple[float, float]:
    """Return the seconds until the first step was done, and the seconds of that step."""
    while (taken := time.perf_counter() - started) < PATIENCE:
        for path in runs.glob("*/*/metrics.jsonl"):
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n") and (values := json.loads(line))["kind"] == "train":
                    return taken, values["seconds"]
        if process.poll() is not None:
            message = process.stderr.read().decode()[-2000:] if process.stderr else ""
            raise RuntimeError(f"finetune ended before its first step:\n{message}")
        time.sleep(0.01)
    raise RuntimeError(f"no step within {PATIENCE:.0f} s")
