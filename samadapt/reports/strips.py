"""Strips for the report: a slice as one small picture, image and label maps side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageColor

from samadapt.data.types import IGNORED
from samadapt.reports.overlays import COLOURS, FILL
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from numpy.typing import NDArray


SHORTEST, LONGEST = 220, 460
"""Pixels: the least height of a panel and the most of its longest side, which has precedence."""
GAP = 4
"""Pixels between panels."""

STRIPE = 9
"""Pixels between the lines that hatch ignored pixels, along a row."""
MOST = 40
"""Most slices of a volume that are drawn. Of larger volumes, evenly spaced slices are drawn."""


@dataclass(frozen=True)
class Strip:
    """One drawn slice.

    Attributes:
        index: the number of the slice in the volume.
        picture: the content of a WebP file.
        width: in pixels.
        height: in pixels.
    """

    index: int
    picture: bytes
    width: int
    height: int


def chosen_indices(count: int, always: int, most: int = MOST) -> list[int]:
    """Return at most ``most`` evenly spaced indices of 0..count - 1, with ``always`` among them."""
    if count <= most:
        return list(range(count))
    # Rounded up, so that there are not too many. The steps start where one of them meets `always`.
    step = -(-count // (most - 1))
    return sorted({*range(always % step, count, step)})


def draw_strip(
    index: int,
    image: NDArray[np.uint8],
    maps: Sequence[Array | None],
    spacing: tuple[float, float] = (1.0, 1.0),
) -> Strip:
    """Draw a slice and its label maps side by side.

    Args:
        index: the number of the slice in the volume.
        image: (h, w, 3) of 0..255, after the intensity rule.
        maps: label maps (h, w), each on its own panel; None is left out. 0 is background, and
            ``IGNORED`` is hatched.
        spacing: (row, column) size of a pixel in mm; the drawing keeps their ratio.
    """
    height, width = _size(image.shape[0] * spacing[0], image.shape[1] * spacing[1])
    ground = Image.fromarray(np.ascontiguousarray(image))
    base = np.asarray(ground.resize((width, height), Image.Resampling.BICUBIC))
    panels = [base, *(_painted(base, labels) for labels in maps if labels is not None)]
    gap = np.full((height, GAP, 3), 255, np.uint8)
    row = np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)
    stream = io.BytesIO()
    Image.fromarray(row).save(stream, "WEBP", quality=82, method=2)
    return Strip(index, stream.getvalue(), row.shape[1], row.shape[0])


def _size(height: float, width: float) -> tuple[int, int]:
    scale = max(SHORTEST / height, 1.0) if max(height, width) < LONGEST else 1.0
    scale *= min(1.0, LONGEST / (scale * max(height, width)))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _painted(base: Array, labels: Array) -> Array:
    """Return a copy of an image with every label filled lightly and its border in full colour."""
    from scipy.ndimage import binary_dilation
    from skimage.segmentation import find_boundaries

    height, width = base.shape[:2]
    # IGNORED is -1, which uint8 cannot hold. It counts as background here and is hatched below.
    small = Image.fromarray(np.ascontiguousarray(np.maximum(labels, 0).astype(np.uint8)))
    large = np.asarray(small.resize((width, height), Image.Resampling.NEAREST))
    colours = np.array([(0, 0, 0), *map(ImageColor.getrgb, COLOURS)], np.float32)
    colour = colours[np.where(large, (large.astype(int) - 1) % len(COLOURS) + 1, 0)]
    share = np.where(large > 0, FILL, 0.0)[..., None]
    border = binary_dilation(
        find_boundaries(large, mode="inner")
    )  # two pixels wide, since WebP blurs colour
    share[border & (large > 0)] = 1.0
    painted: Array = np.rint(base * (1 - share) + colour * share).astype(np.uint8)
    if (unknown := labels == IGNORED).any():
        ignored = np.asarray(Image.fromarray(unknown).resize((width, height)))
        stripes = np.add.outer(np.arange(height), np.arange(width)) % STRIPE < 2
        painted[ignored & stripes] = 255
    return painted
