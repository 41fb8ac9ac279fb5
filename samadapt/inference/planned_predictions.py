"""Segment the images of a plan: each is read once, segmented, and its labels are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.errors import DataError
from samadapt.inference.coco import CocoFile
from samadapt.inference.dicom_seg import SEG
from samadapt.inference.drawn_files import with_drawn_files
from samadapt.inference.files import (
    PlannedImage,
    PredictionPlan,
    each_planned,
    read_planned,
    stem_of,
)
from samadapt.inference.outputs import COCO, NIFTI, mask_files, write_labels
from samadapt.system import processes

if TYPE_CHECKING:
    from samadapt.data.formats.base import ReaderOptions
    from samadapt.inference.options import PredictionOptions
    from samadapt.inference.prediction_store import PredictionStore
    from samadapt.inference.volumes import Progress, VolumePredictor


def predict_planned(
    predictor: VolumePredictor,
    plan: PredictionPlan,
    options: PredictionOptions,
    how: ReaderOptions,
    progress: Callable[[str], Progress] | None = None,
    store: PredictionStore | None = None,
) -> list[dict[str, Any]]:
    """Segment the images of a plan and write their labels.

    Args:
        predictor: the adapter in use.
        plan: from ``plan_prediction``; of a part of a folder, with the images of the part.
        options: prompts and options.
        how: how images are read.
        progress: called with the name of each image; returns what is called after each slice.
        store: what an earlier call has written; these images are skipped. None: all are done.

    Returns:
        One row per image; ``Segmenter.predict_file`` says what it holds. In a folder it also holds
        ``"input"``, and an image that failed has an ``"error"`` and does not stop the others. A row
        of an earlier call has ``"skipped": True``.

    Raises:
        UserError: the single image of a plan cannot be done.
    """

    def predict(planned: PlannedImage, target: Path, show: Progress | None) -> dict[str, Any]:
        inputs = "" if store is None else store.inputs(planned)
        row = _predict(predictor, planned, target, options, how, show, is_coco=plan.is_coco)
        if store is not None:
            store.add(planned, inputs, row)
        return row

    done = {} if store is None else store.done
    rows = each_planned(plan, predict, progress, command="predict", done=done)
    # One COCO file holds all pictures, so it is written after the last one.
    write = coco_writer(predictor.classes, plan.target) if plan.is_coco else None
    if store is not None:
        store.finish(rows, write)
    elif write is not None:
        contents = [row.pop("coco") for row in rows if "coco" in row]
        processes.by_first(partial(write, contents))
    return rows


def coco_writer(
    classes: Sequence[str], target: Path
) -> Callable[[Sequence[Mapping[str, Any]]], None]:
    """Return what writes the COCO file of a folder, given what COCO holds of each picture."""

    def write(contents: Sequence[Mapping[str, Any]]) -> None:
        coco = CocoFile(classes)
        for one in contents:
            coco.extend(one["images"], one["annotations"])
        coco.write(target)

    return write


def _predict(
    predictor: VolumePredictor,
    planned: PlannedImage,
    target: Path,
    options: PredictionOptions,
    how: ReaderOptions,
    progress: Progress | None,
    *,
    is_coco: bool,
) -> dict[str, Any]:
    """Read, segment and write one image; return what COCO holds of it as ``"coco"``."""
    volume = read_planned(planned.image, how)
    options = with_drawn_files(options, volume, how, stem_of(planned))
    coco = CocoFile(predictor.classes) if is_coco else None
    if coco is not None and volume.shape[2] > 1:
        raise DataError(f"{planned.path}: COCO JSON holds pictures; write a volume as {NIFTI}")
    found = predictor.segment(volume, options, progress, instances=coco is not None)
    beside = write_labels(
        found,
        volume,
        planned.path,
        target,
        predictor.classes,
        overlapping=predictor.overlapping,
        coco=coco,
    )
    bins = len(predictor.classes) + 1
    counts = np.zeros(bins, np.int64)
    # Slice by slice, because counting takes eight bytes per voxel.
    for plane in (plane for labels in found.maps for plane in np.moveaxis(labels, 2, 0)):
        counts += np.bincount(plane.ravel(), minlength=bins)
    voxels = {name: int(counts[k]) for k, name in enumerate(predictor.classes, start=1)}
    row: dict[str, Any] = {"output": target, "shape": volume.shape, "voxels": voxels}
    if predictor.overlapping and target.suffix.lower() not in (SEG, COCO):
        row["masks"] = mask_files(target, predictor.classes)
    if options.objects:
        row["objects"] = [one.to_dict() for one in found.objects.values()]
        if reason := predictor.uncalibrated(options):
            row["no_confidence"] = reason
    if volume.findings:
        row["warnings"] = [str(finding) for finding in volume.findings]
    if coco is not None:
        row["coco"] = {"images": coco.images, "annotations": coco.annotations}
    return row | beside
