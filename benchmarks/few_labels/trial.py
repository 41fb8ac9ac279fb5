"""Run one cell as a user would, in a process of its own, and say what it cost and reached."""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.few_labels.domains import DOMAINS
from benchmarks.few_labels.plan import Cell, recipe_file
from benchmarks.process import git, run_module
from samadapt.evaluation.case_scores import CaseClassScore
from samadapt.reports.tables import read_per_case
from samadapt.version import __version__

SCORES = ("dice", "iou", "hd95", "nsd")
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
REFUSED = 2
"""Exit code of samadapt for a mistake in the command line, such as a key that does not exist."""


class RefusedError(Exception):
    """samadapt refuses the command line of a cell: nothing was measured."""


def arguments(cell: Cell, data: Path, work: Path) -> list[str]:
    """Return the arguments of ``samadapt finetune`` for a cell.

    Args:
        cell: what is trained.
        data: the data root.
        work: an empty folder. Features are kept in it, so none of an earlier run is there for free.
    """
    domain = DOMAINS[cell.domain]
    recipe, *keys = cell.keys
    return [
        f"recipe={recipe_file(recipe.partition('=')[2])}",
        *keys,
        f"data.root={json.dumps(str(data / cell.domain))}",
        f"data.held_out={json.dumps(str(domain.held_out_file))}",
        f"data.train_cases={domain.training_cases(data, cell.labels, cell.draw)}",
        f"output.dir={json.dumps(str(work / 'runs'))}",
        f"cache.dir={json.dumps(str(work / 'features'))}",
        "eval.overlays=0",
    ]


def run_cell(cell: Cell, data: Path, work: Path) -> dict[str, Any]:
    """Train and score a cell, and return its row.

    Raises:
        RefusedError: samadapt does not take the command line, for example because a key does not
            exist yet; the message is samadapt's.
    """
    place = work / f"{cell.arm}-{cell.domain}-{cell.labels}-{cell.draw}-{cell.budget}"
    shutil.rmtree(place, ignore_errors=True)  # what a killed process left
    place.mkdir(parents=True)
    command = ["finetune", *arguments(cell, data, place), "--json"]
    environment = {**os.environ, **dict.fromkeys(ONE_THREAD, "1")}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = run_module("samadapt", *command, folder=place, environment=environment)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    if done.returncode == REFUSED:
        shutil.rmtree(place, ignore_errors=True)
        raise RefusedError(done.stderr.strip().splitlines()[-1])
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **vars(cell),
        "digest": cell.digest,
        "keys": list(cell.keys),
        "cases": DOMAINS[cell.domain].training_cases(data, cell.labels, cell.draw),
        "cpu_seconds": round(_cpu(after) - _cpu(before), 1),
        "wall_seconds": round(wall, 1),
        **this_machine(),
    }
    if done.returncode:
        row |= {"error": done.stderr.strip()[-2000:], "exit_code": done.returncode}
    else:
        row |= scores_of(json.loads(done.stdout), with_base=cell.draw == 0)
    shutil.rmtree(place, ignore_errors=True)
    return row


def scores_of(result: Mapping[str, Any], *, with_base: bool) -> dict[str, Any]:
    """Return what a row holds about the scores of a run.

    Args:
        result: what ``samadapt finetune --json`` printed.
        with_base: also every case of the base model, which is the same for each draw.
    """
    summary, run_dir = result["summary"], Path(result["run_dir"])
    rows = read_per_case(run_dir / "eval")
    adapted, base = summary["adapted"], summary["zero_shot"]
    splits = json.loads((run_dir / "splits.json").read_text(encoding="utf-8"))
    found = {
        **{score: adapted[score] for score in SCORES},
        "per_class": {
            name: {score: entry[score] for score in SCORES}
            for name, entry in adapted["per_class"].items()
        },
        "unit": adapted["detail"]["hd95"]["unit"],
        "labelled": splits["train"],
        "steps": summary.get("best_step"),
        "run_seconds": round(summary["seconds"], 1),
        # What the budget limits: features, steps and validations, without reading and final scores.
        "training_cpu_seconds": (summary["time"] or {}).get("used_cpu_seconds"),
        "columns": ["case", "class", *SCORES],
        "per_case": [_line(row) for row in rows["adapted"]],
    }
    if base is not None:
        found["zero_shot"] = {score: base[score] for score in SCORES}
        if with_base:
            found["zero_shot"]["per_case"] = [_line(row) for row in rows["zero_shot"]]
    return found


def _line(row: CaseClassScore) -> list[Any]:
    values = [row.values[score] for score in SCORES]
    return [row.case, row.class_name, *(None if math.isnan(x) else round(x, 5) for x in values)]


def _cpu(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


@cache
def this_machine() -> dict[str, Any]:
    """Return what was measured, and where."""
    return {
        "commit": git("rev-parse", "--short=12", "HEAD") or "unknown",
        "samadapt": __version__,
        "processor": _processor(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
