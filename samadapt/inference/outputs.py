"""Write the labels of a prediction in the format that the name of the output chooses.

======================  ========================================================================
ending                  content
======================  ========================================================================
``.png``                pictures: the class id of each pixel, with a palette of colours
``.json``               pictures: COCO, an annotation for each object (``coco.py``)
``.nii.gz``, ``.nii``   volumes: class ids on the grid of the source; also ``.nrrd``, ``.mha``
``.dcm``                DICOM series: a segmentation object (``dicom_seg.py``)
======================  ========================================================================

Classes that may overlap are written as one file of zeros and ones for each class.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samadapt.data.formats.base import FormatReader, write_prediction
from samadapt.errors import DataError
from samadapt.inference.coco import CocoFile
from samadapt.inference.dicom_seg import SEG, save_segmentation
from samadapt.system import atomic

if TYPE_CHECKING:
    from samadapt.data.types import Volume
    from samadapt.inference.volumes import Segmentation
    from samadapt.system.arrays import Array

COCO = ".json"
NIFTI = ".nii.gz"
PICTURE = ".png"


def output_endings(reader: FormatReader) -> tuple[str, ...]:
    """Return the endings of the files that may hold labels of what a reader reads."""
    endings = type(reader).output_suffixes
    if reader.name == "dicom":
        return (*endings, SEG)
    return (*endings, COCO) if PICTURE in endings else endings


def write_labels(
    found: Segmentation,
    volume: Volume,
    source: Path,
    target: Path,
    classes: Sequence[str],
    *,
    overlapping: bool,
    coco: CocoFile | None,
) -> Path | None:
    """Write what was found in one image, and its probabilities if there are any.

    Args:
        found: labels, and probabilities or objects if they were asked for.
        volume: the image as read.
        source: the file or folder it was read from.
        target: the output; its ending chooses the format.
        classes: class names.
        overlapping: a pixel may belong to several classes.
        coco: receives the objects if the target is COCO JSON; it is written by the caller.

    Returns:
        The file of the probabilities, or None.

    Raises:
        DataError: the format cannot hold the labels, or the file cannot be written.
    """
    try:
        if coco is not None:
            coco.add(source.name, found)
        elif target.suffix.lower() == SEG:
            save_segmentation(found.labels, volume, source, classes, target)
        elif overlapping:
            paths = mask_files(target, classes).values()
            for labels, path in zip(found.maps, paths, strict=True):
                write_prediction((labels > 0).astype(np.uint8), volume, path)
        else:
            write_prediction(found.labels, volume, target)
        if found.probabilities is None:
            return None
        return _write_probabilities(found.probabilities, volume, source, target)
    # Its message names the file and the reason already.
    except atomic.WriteError:
        raise
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error})") from error


def mask_files(target: Path, classes: Sequence[str]) -> dict[str, Path]:
    """Return the file of each class, for classes that may overlap.

    ``labels.nii.gz`` becomes ``labels_whole.nii.gz``. Letters that a file name cannot hold are
    replaced by ``_``; of equal names the later ones end in their number.
    """
    ending = NIFTI if target.name.lower().endswith(NIFTI) else target.suffix
    base = target.name[: len(target.name) - len(ending)]
    files: dict[str, Path] = {}
    for number, name in enumerate(classes, start=1):
        plain = re.sub(r"[^\w.+-]", "_", name)
        path = target.with_name(f"{base}_{plain}{ending}")
        if path in files.values():
            path = target.with_name(f"{base}_{plain}_{number}{ending}")
        files[name] = path
    return files


def _write_probabilities(probabilities: Array, volume: Volume, source: Path, target: Path) -> Path:
    """Write (K, h, w, d) beside the labels: a 4D NIfTI file, or ``.npz`` for a picture."""
    base = target.name
    for end in (NIFTI, target.suffix):
        base = base.removesuffix(end)
    if target.suffix.lower() == COCO:  # one file for all pictures of a folder
        base = source.name
    if volume.source is None:
        path = target.with_name(f"{base}_probabilities.npz")
        with atomic.file(path) as part:
            # A picture has one slice: (K, h, w) is stored.
            np.savez_compressed(part, probabilities=probabilities[..., 0])
        return path
    from samadapt.data.formats.nifti.write import save_shares

    path = target.with_name(f"{base}_probabilities.nii.gz")
    save_shares(probabilities, volume.source, path)
    return path
