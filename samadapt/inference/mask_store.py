"""Where the masks of a folder are written, and which of them an earlier call has written already.

A folder of masks keeps the options and the model that made them, in ``masks_settings.yaml``, or
``NAME_settings.yaml`` beside a COCO file. A call with the same ones continues it; a call with
others is refused, so that no folder holds masks of two kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samadapt.errors import DataError
from samadapt.inference.files import PlannedImage, PredictionPlan
from samadapt.inference.folder_work import FolderWork
from samadapt.inference.mask_coco import MaskCoco, written_files
from samadapt.inference.output_settings import keep_settings
from samadapt.inference.outputs import COCO
from samadapt.system import processes


@dataclass(frozen=True)
class MaskStore:
    """What an earlier call has written.

    Attributes:
        done: names of the images whose masks are written.
        coco: the COCO file that all pictures share; None: every image has its own output.
        work: the folder, or the part of it, that is done; None: a single image.
    """

    done: frozenset[str] = frozenset()
    coco: MaskCoco | None = None
    work: FolderWork | None = None

    def done_rows(self, plan: PredictionPlan) -> dict[str, dict[str, Any]]:
        """Return a row for each image of a plan whose masks are written, by name."""
        return {
            planned.image.name: {"output": str(planned.output), "skipped": True}
            for planned in plan.images
            if planned.path.name in self.done and isinstance(planned.output, Path)
        }

    def finish(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the COCO file if there is to be one.

        Of a folder in parts, the part that ends last does so for all.

        Args:
            rows: those of all images of the work.

        Raises:
            WriteError: the file cannot be written.
        """
        work = self.work
        if work is None:
            return

        def write_coco() -> None:
            if self.coco is not None:
                self.coco.finish([planned.path.name for planned in work.plan.images])

        def end() -> None:
            if work.part is None:
                write_coco()
            work.finish(rows, lambda _: write_coco())

        processes.by_first(end)


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
    work: FolderWork, settings: dict[str, Any], category: str, *, overwrite: bool
) -> MaskStore:
    """Return what an earlier call has written for a plan, and record how masks are found now.

    Args:
        work: what to read and write. A single image is always done anew.
        settings: what decides the masks of an image; ``MaskFinder.settings``.
        category: name of what the masks show.
        overwrite: do all images anew.

    Raises:
        DataError: the masks that are there were found in another way or in other images, or the
            record is broken.
        HeldError: another call is at work on them.
    """
    if not work.plan.is_folder:
        return MaskStore()
    done = processes.by_first(lambda: _open_folder(work, settings, overwrite=overwrite))
    if work.plan.is_coco:
        coco = MaskCoco(work.plan.target, category, work)
        return MaskStore(frozenset(coco.done), coco, work)
    return MaskStore(done, None, work)


def _open_folder(work: FolderWork, settings: dict[str, Any], *, overwrite: bool) -> frozenset[str]:
    """Record how masks are found; return the images whose outputs an earlier call has written."""
    with work.begins():
        is_known = keep_settings(
            work,
            settings,
            overwrite=overwrite,
            make_room=lambda: _make_room(work, overwrite=overwrite),
        )
    return frozenset(_written(work.own.images) if is_known else ())


def _make_room(work: FolderWork, *, overwrite: bool) -> None:
    """Remove outputs that are there if that was asked for.

    Raises:
        DataError: files are there that would be written over.
    """
    plan = work.plan
    outputs = [one.output for one in plan.images if isinstance(one.output, Path)]
    files = [*written_files(plan.target), *work.line_files()] if plan.is_coco else outputs
    there = [path for path in files if path.is_file()]
    if there and not overwrite:
        raise DataError(
            f"{there[0]}: this file is there, and nothing beside it says how its masks were found. "
            "Choose another output, or write over it with overwrite=true"
        )
    for path in there:
        path.unlink()


def _written(images: list[PlannedImage]) -> list[str]:
    """Return the names of the images whose outputs exist."""
    return [
        planned.path.name
        for planned in images
        if isinstance(planned.output, Path) and planned.output.is_file()
    ]
