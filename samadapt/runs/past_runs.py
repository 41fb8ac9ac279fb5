"""List the runs below a folder from the files that each of them wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from samadapt.errors import ConfigError
from samadapt.runs.run_directory import HOLDER, LOCK
from samadapt.system.plain_yaml import read_plain_yaml

_STAMP = re.compile(r"\d{8}-\d{6}")
MAX_DEPTH = 3
"""Levels below the folder that are searched: output.dir/recipe/run/fold."""


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """Return the runs below a folder, the newest first.

    Args:
        folder: as ``output.dir``, or a folder above several.

    Returns:
        For each run its folder, recipe, method, date, Dice before and after training (None where
        they are missing), and state: ``finished``, ``running``, or ``stopped``.
    """
    rows = [_row(run_dir) for run_dir in _run_dirs(folder, MAX_DEPTH)]
    return sorted(rows, key=lambda row: str(row["date"]), reverse=True)


def _run_dirs(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "config.yaml").is_file():
        yield folder
    elif depth and folder.is_dir():
        for inner in sorted(folder.iterdir()):
            yield from _run_dirs(inner, depth - 1)


def _row(run_dir: Path) -> dict[str, Any]:
    config, summary = _config(run_dir), _summary(run_dir)
    # A learning curve has no scores of its own; this file is written last.
    is_curve = (run_dir / "curve.json").is_file()
    # The name of a run starts with its date. A renamed run and a fold have no date in their names.
    stamp = _STAMP.match(run_dir.name)
    written = (run_dir / "config.yaml").stat().st_mtime
    date = (
        datetime.strptime(stamp[0], "%Y%m%d-%H%M%S") if stamp else datetime.fromtimestamp(written)
    )
    return {
        "name": str(run_dir),
        "recipe": Path(str(config.get("recipe", ""))).stem,
        "method": _option(config.get("baseline")) or _option(config.get("peft")),
        "date": f"{date:%Y-%m-%d %H:%M}",
        "before": _dice(summary, "zero_shot"),
        "after": _dice(summary, "adapted"),
        "state": _state(run_dir, is_finished=bool(summary) or is_curve),
    }


def _state(run_dir: Path, *, is_finished: bool) -> str:
    if is_finished:
        return "finished"
    return "running" if _is_locked(run_dir) else "stopped"


def _config(run_dir: Path) -> Mapping[str, Any]:
    """Return the configuration of a run, unchecked: an earlier version may have written it."""
    try:
        content = read_plain_yaml(run_dir / "config.yaml")
    except ConfigError:
        return {}
    return content if isinstance(content, Mapping) else {}


def _option(group: object) -> str:
    """Return the name of the option that a group of a configuration chooses."""
    return str((group.get("name") if isinstance(group, Mapping) else group) or "")


def _summary(run_dir: Path) -> Mapping[str, Any]:
    try:
        content = json.loads((run_dir / "eval" / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, Mapping) else {}


def _dice(summary: Mapping[str, Any], state: str) -> float | None:
    scores = summary.get(state)
    dice = scores.get("dice") if isinstance(scores, Mapping) else None
    return float(dice) if isinstance(dice, int | float) else None


def _is_locked(run_dir: Path) -> bool:
    """Return whether a process works in a run directory now."""
    if not (run_dir / HOLDER).is_file():
        return False
    try:
        with FileLock(run_dir / LOCK, timeout=0):
            return False  # its process died without removing the file
    except (Timeout, OSError):
        return True
