"""The record beside the outputs of a folder that says how they were made.

``NAME_settings.yaml`` holds the model, the options and the folder of the images. A call with the
same ones continues it; a call with others is refused, so that no folder holds outputs of two kinds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from samadapt.errors import ConfigError, DataError
from samadapt.inference.files import PredictionPlan
from samadapt.inference.folder_work import FolderWork
from samadapt.system import atomic, processes
from samadapt.system.plain_yaml import read_plain_yaml
from samadapt.version import __version__


def settings_file(plan: PredictionPlan, command: str) -> Path:
    """Return the record of a folder of outputs, ``COMMAND_settings.yaml``, or of a COCO file."""
    target = plan.target
    if plan.is_coco:
        return target.with_name(f"{target.stem}_settings.yaml")
    return target / f"{command}_settings.yaml"


def keep_settings(
    work: FolderWork,
    settings: Mapping[str, Any],
    *,
    overwrite: bool,
    make_room: Callable[[], None],
) -> bool:
    """Compare how outputs are made with how earlier ones were made, and record it.

    Args:
        work: what to read and write, which begins.
        settings: what decides an output; ``"options"`` are compared one by one.
        overwrite: make all outputs anew, however earlier ones were made.
        make_room: called before the record is written where no earlier outputs are continued. A
            call that is interrupted and continued must not take older files for its own.

    Returns:
        Whether earlier outputs were made in the same way.

    Raises:
        DataError: they were made in another way or from other images, or the record is broken.
    """
    file = settings_file(work.plan, work.command)
    now = {**settings, "input": str(work.plan.images[0].path.parent.resolve())}
    is_known = file.is_file() and not overwrite
    if is_known:
        _check_same(file, now)
    else:
        make_room()
    if work.is_alone or work.part is None:
        work.remove_leftovers()
    atomic.write_text(file, yaml.safe_dump(now, sort_keys=False, allow_unicode=True))
    return is_known


def refuse_single_image(work: FolderWork) -> None:
    """Check that there is something to share if there are several processes or parts.

    Raises:
        ConfigError: there is a single image.
    """
    plan, command, size = work.plan, work.command, processes.count()
    if work.part is not None and not plan.is_folder:
        raise ConfigError(
            f"{command}: only_part={work.part.index} does a part of a folder, and the input is a "
            "single image; leave only_part and parts out"
        )
    if size > 1 and not plan.is_folder:
        raise ConfigError(
            f"{command}: this is one of {size} processes, which share the files of a folder, and "
            "the input is a single image; start one process for it"
        )


def check_processes(plan: PredictionPlan, settings: Mapping[str, Any]) -> None:
    """Check that all processes read the same images and make the same outputs.

    Args:
        plan: what to read and write.
        settings: as for ``keep_settings``.

    Raises:
        ConfigError: naming what differs.
    """
    if processes.count() == 1:
        return
    names = [planned.image.name for planned in plan.images]
    facts = {key: value for key, value in settings.items() if key != "options"}
    facts |= settings["options"]
    facts |= {
        "images": len(names),
        "hash of their names": hashlib.sha256(
            "\n".join(names).encode("utf-8", "replace")
        ).hexdigest()[:12],
        "samadapt": __version__,
        "torch": version("torch"),
    }
    advice = "Start all processes with the same command, files and packages"
    processes.refuse_differences("the models, options or images", facts, advice)


def _check_same(file: Path, now: Mapping[str, Any]) -> None:
    """Compare the record of earlier outputs with what would be done now.

    Raises:
        DataError: naming what differs.
    """
    before = read_plain_yaml(file)
    if not isinstance(before, dict) or not isinstance(before.get("options"), dict):
        raise DataError(f"{file}: expected how earlier outputs were made; it is broken. Remove it")
    differs = [
        f"{key}: {old.get(key)} before, {new.get(key)} now"
        for old, new in ((before["options"], now["options"]), (before, now))
        for key in dict.fromkeys((*new, *old))
        if key != "options" and old.get(key) != new.get(key)
    ]
    if differs:
        raise DataError(
            f"{file}: the outputs here were made in another way ({'; '.join(differs)}). Choose "
            "another output, or write over them with overwrite=true"
        )
