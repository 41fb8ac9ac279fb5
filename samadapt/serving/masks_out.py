"""Masks as clients read them: run lengths, polygons and files on the grid of the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.data.formats.nifti.write import save_labels
from samadapt.data.formats.shared.pictures import save_mask
from samadapt.data.formats.shared.volume_slices import slices_view
from samadapt.errors import PromptError
from samadapt.inference.coco import CocoFile
from samadapt.inference.volumes import Segmentation

if TYPE_CHECKING:
    from samadapt.data.types import Volume
    from samadapt.serving.served_object import ServedObject
    from samadapt.system.arrays import Array


def run_lengths(mask: Array) -> dict[str, Any]:
    """Return a mask (h, w) as COCO's run lengths without compression.

    Returns:
        ``{"size": [h, w], "counts": [...]}``: lengths of runs down the columns, beginning with one
        of background, which may be 0.
    """
    flat = np.concatenate([[0], (mask != 0).ravel(order="F").astype(np.int8), [2]])
    ends = np.flatnonzero(np.diff(flat))
    # A run of background comes first; the 2 at the end closes the last run.
    counts = np.diff(np.concatenate([[0], ends]) if len(ends) else [0])
    return {"size": list(mask.shape), "counts": counts.tolist()}


def from_run_lengths(size: Sequence[int], counts: Sequence[int]) -> Array:
    """Return the mask (h, w) bool of run lengths as ``run_lengths`` returns them.

    Raises:
        PromptError: they do not fill the mask.
    """
    if sum(counts) != size[0] * size[1]:
        raise PromptError(
            f"counts must add up to {size[0]} x {size[1]} = {size[0] * size[1]}; got {sum(counts)}"
        )
    values = np.arange(len(counts)) % 2
    flat: Array = np.repeat(values, counts).astype(bool)
    return flat.reshape(tuple(size), order="F")


def polygons(mask: Array) -> dict[str, Any]:
    """Return the outlines of a mask (h, w) as a GeoJSON geometry, in pixels from the top left.

    A pixel covers a square of side 1, whose corners the outlines cut off. Holes are rings of their
    own.

    Returns:
        A ``Polygon``, or a ``MultiPolygon`` of a mask with several parts, or without any.
    """
    from skimage.measure import find_contours, label

    parts, count = label(mask != 0, return_num=True, connectivity=1)
    found: list[list[list[list[float]]]] = []
    for number in range(1, count + 1):
        rings = find_contours(np.pad(parts == number, 1).astype(np.uint8), 0.5)
        # Of the rings of one part, the outer one encloses the most.
        rings.sort(key=_area, reverse=True)
        # Less the padding; a pixel's centre is half a pixel from its corner.
        found.append([(ring[:, ::-1] - 0.5).round(2).tolist() for ring in rings])
    if len(found) == 1:
        return {"type": "Polygon", "coordinates": found[0]}
    return {"type": "MultiPolygon", "coordinates": found}


def _area(ring: Array) -> float:
    y, x = ring.T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def labels_of(objects: Sequence[ServedObject], classes: Sequence[str]) -> Segmentation:
    """Return the objects of one image as labels and numbers of objects.

    Later objects lie on earlier ones. An object without a class has the first one.

    Args:
        objects: at least one; the models that see them may slice a volume differently.
        classes: names of the classes.

    Returns:
        Labels in the slices (h, w, d) of the first object.
    """
    shape = objects[0].mask.shape
    labels, numbers = np.zeros(shape, np.uint8), np.zeros(shape, np.int32)
    ids = [classes.index(one.label) + 1 if one.label in classes else 1 for one in objects]
    for number, (class_id, one) in enumerate(zip(ids, objects, strict=True), start=1):
        inside = one.mask != 0
        labels[inside], numbers[inside] = class_id, number
    grid = objects[0].view.volume.source
    if grid is None:
        labels, numbers = np.atleast_3d(labels), np.atleast_3d(numbers)
        return Segmentation(labels, instances=numbers, instance_classes=ids)
    return Segmentation(
        slices_view(labels, grid), instances=slices_view(numbers, grid), instance_classes=ids
    )


def file_of(
    found: Segmentation, volume: Volume, name: str, classes: Sequence[str], ending: str
) -> bytes:
    """Return the bytes of a file of labels, on the grid of the image's file.

    Args:
        found: the labels.
        volume: the image as read.
        name: of the image, which COCO refers to.
        classes: names of the classes.
        ending: ``"nii.gz"``, ``"png"`` or ``"json"`` (COCO).

    Raises:
        PromptError: the image has another format.
    """
    if (volume.source is None) == (ending == "nii.gz"):
        wanted = "png or json" if volume.source is None else "nii.gz"
        raise PromptError(f"format: expected {wanted} for this image; got {ending}")
    if ending == "json":
        coco = CocoFile(classes or ["object"])
        coco.add(name, found)
        return coco.text().encode("utf-8")
    with TemporaryDirectory(prefix="samadapt-") as folder:
        path = Path(folder) / f"labels.{ending}"
        if volume.source is None:
            save_mask(found.labels[:, :, 0], path)
        else:
            save_labels(found.labels, volume.source, path)
        return path.read_bytes()
