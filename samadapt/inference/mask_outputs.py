"""Write masks without prompts: a coloured PNG, COCO with scores, SA-1B's JSON, or a volume.

====================  ============================================================================
output                content
====================  ============================================================================
``.png``              pictures: the number of the mask of each pixel, with a palette of colours
``.json``             pictures: COCO, an annotation with ``score`` for each mask, all in one file
``.json``, SA-1B      pictures: one file for each, as ``data=sa1b`` reads it beside the picture
``.nii.gz``, ...      volumes: the number of the mask of each voxel, on the grid of the source
====================  ============================================================================

Masks may overlap, since a part of an object has a mask of its own. COCO and SA-1B hold them whole;
in a map of numbers, smaller masks lie on top of larger ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.data.formats.base import write_prediction
from samadapt.data.formats.shared.pictures import PALETTE
from samadapt.data.formats.shared.volume_patterns import stem_of
from samadapt.errors import DataError
from samadapt.inference.mask_coco import MaskCoco, coco_row, mask_entry, write_coco
from samadapt.inference.outputs import COCO, NIFTI, PICTURE
from samadapt.sam.mask_tools import area_of, decode_mask
from samadapt.system import atomic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samadapt.data.types import Volume
    from samadapt.sam.automatic_masks import FoundMask
    from samadapt.system.arrays import Array

MOST_NUMBERS = 65_535
"""Masks that 16 bits can number."""


def write_masks(
    found: Sequence[Sequence[FoundMask]],
    volume: Volume,
    source: Path,
    target: Path,
    category: str,
    *,
    sa1b: bool,
    coco: MaskCoco | None,
) -> None:
    """Write the masks of one image.

    Args:
        found: the masks of each slice; a picture has one slice.
        volume: the image as read.
        source: the file that it was read from.
        target: the output; its ending chooses the format.
        category: name of what the masks show, for COCO.
        sa1b: JSON is that of SA-1B.
        coco: receives the masks if all pictures share the target; None: it is written alone.

    Raises:
        DataError: the format cannot hold the masks, or the file cannot be written.
    """
    is_json = target.suffix.lower() == COCO
    height, width = volume.shape[:2]
    if is_json and sa1b:
        content = as_sa1b(source.name, height, width, found[0])
        atomic.write_text(target, json.dumps(content))
    elif coco is not None:
        coco.add(source.name, height, width, found[0])
    elif is_json:
        row = coco_row(source.name, height, width, found[0])
        write_coco(target, category, lambda: iter([row]))
    else:
        numbers = mask_numbers(found, volume.shape)
        if numbers.max(initial=0) > MOST_NUMBERS:
            raise DataError(
                f"{target}: {numbers.max()} masks were found, and 16 bits number at most "
                f"{MOST_NUMBERS}; write COCO or SA-1B, or raise min_iou"
            )
        deep = numbers.max(initial=0) > np.iinfo(np.uint8).max
        write_prediction(numbers.astype(np.uint16 if deep else np.uint8), volume, target)


def check_fits(volume: Volume, source: Path, target: Path) -> None:
    """Refuse an output that cannot hold the masks of an image, before they are looked for.

    Raises:
        DataError: a volume cannot be written as JSON.
    """
    if target.suffix.lower() == COCO and volume.shape[2] > 1:
        raise DataError(f"{source}: JSON holds pictures; write a volume as {NIFTI}")


def mask_numbers(found: Sequence[Sequence[FoundMask]], shape: tuple[int, int, int]) -> Array:
    """Return int32 numbers (h, w, d) from 1, 0 for none; smaller masks lie on top of larger ones.

    The numbers follow the order of the masks and go on from slice to slice.
    """
    numbers = np.zeros(shape, np.int32)
    first = 1
    for index, masks in enumerate(found):
        by_area = sorted(range(len(masks)), key=lambda k: -area_of(masks[k].runs))
        for k in by_area:
            numbers[:, :, index][decode_mask(masks[k].runs)] = first + k
        first += len(masks)
    return numbers


def preview_file(source: Path, target: Path, *, shared: bool) -> Path:
    """Return the file of a preview: beside the output, named after it.

    Args:
        source: the file of the image.
        target: the output.
        shared: all pictures share the output, so the preview is named after the picture.
    """
    base = source.name if shared else stem_of(target, (NIFTI,))
    return target.with_name(f"{base}_preview{PICTURE}")


def draw_preview(picture: Array, masks: Sequence[FoundMask], path: Path) -> None:
    """Draw masks over a picture (h, w, 3) uint8: half of their colour, and a full outline."""
    from PIL import Image
    from skimage.segmentation import find_boundaries

    drawn = picture.astype(np.float32)
    colours = np.frombuffer(PALETTE, np.uint8).reshape(-1, 3)[1:].astype(np.float32)
    order = sorted(range(len(masks)), key=lambda k: -area_of(masks[k].runs))
    for k in order:  # the smaller ones on top
        mask = decode_mask(masks[k].runs)
        colour = colours[k % len(colours)]
        drawn[mask] = (picture[mask] + colour) / 2
        drawn[find_boundaries(mask, mode="inner")] = colour
    with atomic.file(path) as part:
        Image.fromarray(drawn.astype(np.uint8)).save(part, format="png")


def as_sa1b(file_name: str, height: int, width: int, masks: Sequence[FoundMask]) -> dict[str, Any]:
    """Return the content of SA-1B's JSON of one picture (segment-anything's README, Dataset)."""
    annotations = []
    for number, mask in enumerate(masks, start=1):
        x0, y0, x1, y1 = mask.crop
        annotations.append(
            mask_entry(number, mask)
            | {"point_coords": [mask.point], "crop_box": [x0, y0, x1 - x0, y1 - y0]}
        )
    image = {"image_id": 1, "width": width, "height": height, "file_name": file_name}
    return {"image": image, "annotations": annotations}
