"""Write the labels of a prediction in the format that the name of the output chooses.

======================  ========================================================================
ending                  content
======================  ========================================================================
``.png``                pictures: the class id of each pixel, with a palette of colours
``.json``               pictures: COCO, an annotation for each object (``coco.py``)
``.nii.gz``, ``.nii``   volumes: class ids on the grid of the source; also ``.nrrd``, ``.mha``
``.dcm``                DICOM series: a segmentation object (``dicom_seg.py``)
======================  ========================================================================

Classes that may overlap are written as one file of zeros and ones for each class. An adapter that
separates objects (``head=instances``) also writes their numbers, as ``NAME_instances.png``.
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
    from samadapt.data.types import SourceGrid, Volume
    from samadapt.inference.volumes import Segmentation
    from samadapt.system.arrays import Array

COCO = ".json"
NIFTI = ".nii.gz"
PICTURE = ".png"
MOST_OBJECTS = 65_535
"""The largest number that a PNG of 16 bits holds."""


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
) -> dict[str, Path]:
    """Write what was found in one image, and the maps that were asked for beside it.

    Args:
        found: labels, and what else was asked for.
        volume: the image as read.
        source: the file or folder it was read from.
        target: the output; its ending chooses the format.
        classes: class names.
        overlapping: a pixel may belong to several classes.
        coco: receives the objects if the target is COCO JSON; it is written by the caller.

    Returns:
        The files of the maps by name: probabilities, uncertainty, mutual_information; and instances
        if the model separates objects.

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
        return _write_beside(found, volume.source, source, target)
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


def _write_beside(
    found: Segmentation, grid: SourceGrid | None, source: Path, target: Path
) -> dict[str, Path]:
    """Write the maps that were asked for beside the labels; return their files by name.

    The probabilities (K, h, w, d) are a 4D NIfTI file, or ``.npz`` for a picture. A map of the
    uncertainty (h, w, d) is a NIfTI file of float32, or for a picture a grey PNG, white for 1. The
    numbers of separated objects are a PNG of 16 bits, as ``data.instances=true`` reads them; COCO
    JSON holds the objects already.
    """
    from samadapt.data.formats.nifti.write import save_map, save_shares

    base = target.name
    for end in (NIFTI, target.suffix):
        base = base.removesuffix(end)
    if target.suffix.lower() == COCO:  # one file for all pictures of a folder
        base = source.name
    written = {}
    if found.probabilities is not None:
        ending = ".npz" if grid is None else NIFTI
        path = written["probabilities"] = target.with_name(f"{base}_probabilities{ending}")
        if grid is None:
            with atomic.file(path) as part:
                # A picture has one slice: (K, h, w) is stored.
                np.savez_compressed(part, probabilities=found.probabilities[..., 0])
        else:
            save_shares(found.probabilities, grid, path)
    if found.distances is not None and found.instances is not None and target.suffix != COCO:
        path = written["instances"] = target.with_name(f"{base}_instances{PICTURE}")
        _save_numbers(found.instances[..., 0], path)
    for name in ("uncertainty", "mutual_information"):
        values = getattr(found, name)
        if values is None:
            continue
        ending = PICTURE if grid is None else NIFTI
        path = written[name] = target.with_name(f"{base}_{name}{ending}")
        if grid is None:
            _save_grey(values[..., 0], path)
        else:
            save_map(values, grid, path)
    return written


def _save_numbers(numbers: Array, path: Path) -> None:
    """Write object numbers (h, w) as a 16-bit grey PNG; 0 is background.

    Raises:
        DataError: there are more objects than 16 bits can number.
    """
    from PIL import Image

    if numbers.max(initial=0) > MOST_OBJECTS:
        raise DataError(
            f"{path}: {numbers.max()} objects were found, and a PNG of 16 bits numbers at most "
            f"{MOST_OBJECTS}; write COCO JSON (output={path.stem}.json)"
        )
    with atomic.file(path) as part:
        Image.fromarray(numbers.astype(np.uint16)).save(part, format="png")


def _save_grey(shares: Array, path: Path) -> None:
    """Write shares (h, w), 0..1, as an 8-bit grey PNG: black for 0 and white for 1."""
    from PIL import Image

    picture = Image.fromarray(np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8))
    with atomic.file(path) as part:
        picture.save(part)
