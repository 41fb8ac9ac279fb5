"""List and compare the runs below a folder from the files that each of them wrote.

Nothing here imports torch, and no file is checked as a run checks it: an earlier version may have
written it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from samadapt.errors import ConfigError
from samadapt.runs.run_directory import is_locked
from samadapt.system.plain_yaml import read_plain_yaml

_STAMP = re.compile(r"\d{8}-\d{6}")
MAX_DEPTH = 3
"""Levels below the folder that are searched: output.dir/recipe/run/fold."""

CONFIG, SUMMARY = "config.yaml", Path("eval") / "summary.json"
GROUPS = {"model", "peft", "data", "output"}
"""Groups that the config.yaml of every run has; a file of the same name without them is foreign."""

PLACES = {"output.dir", "output.trackers", "cache.dir", "resume", "recipe", "init_sha256"}
"""Keys that say where a run works, or that follow from others: they are no difference of it."""

MISSING = "-"
"""The value of a key that a run does not have, since its method has other keys."""


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """Return the runs below a folder, the newest first, then the folders that are none.

    Args:
        folder: as ``output.dir``, or a folder above several.

    Returns:
        For each run its folder, recipe, method, date, validation Dice of the best step, Dice of the
        held-out cases before and after training, seconds (None where they are missing), state, and
        the keys in which runs of its recipe differ, with its values. The state is ``finished``,
        ``running``, ``stopped``, ``broken:`` with the file that cannot be read, or, of a folder
        without a run, ``no run:`` with the reason.
    """
    runs: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    configs: list[dict[str, Any]] = []
    for run_dir, why_none in _folders(folder, MAX_DEPTH):
        if why_none:
            others.append(_row(run_dir, {}, {}, f"no run: {why_none}"))
            continue
        config, summary, broken = _content(run_dir)
        # A learning curve and a sweep have no scores of their own; these files are written last.
        has_results = any((run_dir / name).is_file() for name in ("curve.json", "sweep.json"))
        is_finished = bool(summary) or has_results
        state = f"broken: {broken}" if broken else _state(run_dir, is_finished=is_finished)
        runs.append(_row(run_dir, config, summary, state))
        configs.append(flat(config))
    for recipe in {row["recipe"] for row in runs}:
        same = [place for place, row in enumerate(runs) if row["recipe"] == recipe]
        for place, values in zip(same, differences([configs[n] for n in same]), strict=True):
            runs[place]["differs"] = values
    return [*sorted(runs, key=lambda row: str(row["date"]), reverse=True), *others]


def differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each configuration its values of the keys in which they are not all equal.

    Args:
        configs: flat configurations; an empty one could not be read, and is not compared.

    Returns:
        The values by key; a key that a configuration does not have is ``MISSING``.
    """
    read = [config for config in configs if config]
    # In the order of the configurations, so that keys of a group stand together.
    keys = dict.fromkeys(key for config in read for key in config)
    differing = [
        key
        for key in keys
        if key not in PLACES and len({_frozen(config.get(key, MISSING)) for config in read}) > 1
    ]
    return [
        {key: config.get(key, MISSING) for key in differing} if config else {} for config in configs
    ]


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration by dotted key; the name of an option is the group itself."""
    values: dict[str, Any] = {}
    for group, content in config.items():
        if not isinstance(content, Mapping):
            values[str(group)] = content
            continue
        for key, value in content.items():
            values[str(group) if key == "name" else f"{group}.{key}"] = value
    return values


def _frozen(value: Any) -> str:
    """Return a value as text, by which values are compared: lists cannot be in a set."""
    return json.dumps(value, sort_keys=True, default=str)


def _folders(folder: Path, depth: int) -> Iterator[tuple[Path, str]]:
    """Yield the runs, and the folders that are none with the reason."""
    if (folder / CONFIG).is_file():
        yield folder, _why_foreign(folder)
        return
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not _is_own(path))
    except OSError as error:
        yield folder, str(error.strerror)
        return
    found = [pair for path in inner for pair in _folders(path, depth - 1)] if depth else []
    is_top, has_config = depth == MAX_DEPTH, any((path / CONFIG).is_file() for path, _ in found)
    if is_top or has_config:
        yield from found
    else:  # a folder of folders, none of which is a run, is one finding
        yield folder, f"no {CONFIG}"


def _is_own(folder: Path) -> bool:
    """Return whether a folder is a part of samadapt's that holds no runs: the feature cache."""
    return folder.name == "features" or folder.name.startswith(".")


def _why_foreign(run_dir: Path) -> str:
    """Return why a folder with a config.yaml is of another program; empty: it is a run of ours."""
    try:
        content = read_plain_yaml(run_dir / CONFIG)
    except ConfigError:
        return ""  # broken, or foreign: nobody can tell
    if isinstance(content, Mapping) and (set(content) >= GROUPS or "adapter" in content):
        return ""
    return f"{CONFIG} of another program"


def _row(
    run_dir: Path, config: Mapping[str, Any], summary: Mapping[str, Any], state: str
) -> dict[str, Any]:
    # The name of a run starts with its date. A renamed run and a fold have no date in their names.
    stamp = _STAMP.match(run_dir.name)
    written = (run_dir / CONFIG) if (run_dir / CONFIG).is_file() else run_dir
    date = (
        datetime.strptime(stamp[0], "%Y%m%d-%H%M%S")
        if stamp
        else datetime.fromtimestamp(written.stat().st_mtime)
    )
    return {
        "name": str(run_dir),
        "recipe": Path(str(config.get("recipe", ""))).stem,
        "method": _option(config.get("baseline")) or _option(config.get("peft")),
        "date": f"{date:%Y-%m-%d %H:%M}",
        "validation": _number(summary.get("best_validation_dice")),
        "before": _dice(summary, "zero_shot"),
        "after": _dice(summary, "adapted"),
        "seconds": _number(summary.get("seconds")),
        "state": state,
        "differs": {},
    }


def _state(run_dir: Path, *, is_finished: bool) -> str:
    if is_finished:
        return "finished"
    return "running" if is_locked(run_dir) else "stopped"


def _content(run_dir: Path) -> tuple[Mapping[str, Any], Mapping[str, Any], str]:
    """Return configuration and summary of a run, and which of them cannot be read, if one cannot.

    A summary that does not exist yet is empty.
    """
    config: Any = {}
    summary: Any = {}
    broken = ""
    try:
        config = read_plain_yaml(run_dir / CONFIG)
    except ConfigError:
        broken = CONFIG
    try:
        summary = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        broken = broken or SUMMARY.as_posix()
    config = config if isinstance(config, Mapping) else {}
    return config, summary if isinstance(summary, Mapping) else {}, broken


def _option(group: object) -> str:
    """Return the name of the option that a group of a configuration chooses."""
    return str((group.get("name") if isinstance(group, Mapping) else group) or "")


def _dice(summary: Mapping[str, Any], state: str) -> float | None:
    scores = summary.get(state)
    return _number(scores.get("dice")) if isinstance(scores, Mapping) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
