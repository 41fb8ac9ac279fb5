"""Where the masks of a folder are written, and which of them an earlier call has written already.

A folder of masks keeps the options and the model that made them, in ``masks_settings.yaml``, or
``NAME_settings.yaml`` beside a COCO file. A call with the same ones continues it; a call with
others is refused, so that no folder holds masks of two kinds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from samadapt.errors import DataError
from samadapt.inference.files import PlannedImage, PredictionPlan
from samadapt.inference.mask_coco import MaskCoco, rows_file
from samadapt.inference.outputs import COCO
from samadapt.system import atomic
from samadapt.system.plain_yaml import read_plain_yaml

SETTINGS = "masks_settings.yaml"
"""File in a folder of masks that says how they were found."""


@dataclass(frozen=True)
class MaskStore:
    """What an earlier call has written.

    Attributes:
        done: names of the images whose masks are written.
        coco: the COCO file that all pictures share; None: every image has its own output.
    """

    done: frozenset[str] = frozenset()
    coco: MaskCoco | None = None


def with_format(plan: PredictionPlan, wanted: str | None) -> PredictionPlan:
    """Return a plan whose outputs have the ending of a format, ``"coco"`` or ``"sa1b"``.

    Raises:
        DataError: the output that the user named does not fit the format.
    """
    if wanted is None:
        return plan
    if wanted == "coco" or not plan.is_folder:
        if not plan.is_coco:
            raise DataError(f"{plan.target}: format={wanted} writes a {COCO} file; name one")
        return plan
    if plan.is_coco:
        raise DataError(
            f"{plan.target}: format=sa1b writes a file for each picture; name a folder as output"
        )
    images = [
        replace(one, output=one.output.with_suffix(COCO)) if isinstance(one.output, Path) else one
        for one in plan.images
    ]
    return replace(plan, images=images)


def open_store(
    plan: PredictionPlan, settings: dict[str, Any], category: str, *, overwrite: bool
) -> MaskStore:
    """Return what an earlier call has written for a plan, and record how masks are found now.

    Args:
        plan: what to read and write. A single image is always done anew.
        settings: what decides the masks of an image; ``MaskFinder.settings``.
        category: name of what the masks show.
        overwrite: do all images anew.

    Raises:
        DataError: the masks that are there were found in another way or in other images, or the
            record is broken.
    """
    if not plan.is_folder:
        return MaskStore()
    target = plan.target
    file = target.with_name(f"{target.stem}_settings.yaml") if plan.is_coco else target / SETTINGS
    settings = {**settings, "input": str(plan.images[0].path.parent.resolve())}
    known = file.is_file() and not overwrite
    if known:
        _check_same(file, settings)
    else:
        # Before the record says how masks are found now: a call that is interrupted and continued
        # must not take older files for its own.
        _make_room(plan, overwrite=overwrite)
    atomic.write_text(file, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    if plan.is_coco:
        coco = MaskCoco(target, category)
        return MaskStore(frozenset(coco.done), coco)
    return MaskStore(frozenset(_written(plan.images)) if known else frozenset())


def _make_room(plan: PredictionPlan, *, overwrite: bool) -> None:
    """Make the folder of the outputs, and remove outputs that are there if that was asked for.

    Raises:
        DataError: files are there that would be written over.
    """
    outputs = [one.output for one in plan.images if isinstance(one.output, Path)]
    shared = [plan.target, rows_file(plan.target)]
    there = [path for path in (shared if plan.is_coco else outputs) if path.is_file()]
    if there and not overwrite:
        raise DataError(
            f"{there[0]}: this file is there, and nothing beside it says how its masks were found. "
            "Choose another output, or write over it with overwrite=true"
        )
    for path in there:
        path.unlink()
    if not plan.is_coco:
        plan.target.mkdir(exist_ok=True)


def _written(images: list[PlannedImage]) -> list[str]:
    """Return the names of the images whose outputs exist."""
    return [
        planned.path.name
        for planned in images
        if isinstance(planned.output, Path) and planned.output.is_file()
    ]


def _check_same(file: Path, now: dict[str, Any]) -> None:
    """Compare the record of earlier masks with what would be done now.

    Raises:
        DataError: naming what differs.
    """
    before = read_plain_yaml(file)
    if not isinstance(before, dict) or not isinstance(before.get("options"), dict):
        raise DataError(f"{file}: expected how earlier masks were found; it is broken. Remove it")
    differs = [
        f"{key}: {old.get(key)} before, {new[key]} now"
        for old, new in ((before["options"], now["options"]), (before, now))
        for key in new
        if key != "options" and old.get(key) != new[key]
    ]
    if differs:
        raise DataError(
            f"{file}: the masks here were found in another way ({'; '.join(differs)}). Choose "
            "another output, or write over them with overwrite=true"
        )
