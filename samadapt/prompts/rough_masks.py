"""Rough masks: the ground truth of an object, disturbed as a quick hand or another model would.

A rough mask is a mask prompt. Four things are wrong with it, in this order. All lengths are shares
of the largest width of the object, which is twice the depth of its deepest pixel, times the amount:

1. It is shifted, up to half of that along each axis.
2. Its border lies too far inside or outside everywhere, up to a quarter (eroded or dilated).
3. Its border is wavy: a smooth random field moves it further, with a quarter as standard deviation.
4. It has up to two round holes, with a radius of up to a half.

An object never vanishes: if nothing would be left, the mask is the object itself.
"""

from __future__ import annotations

import numpy as np

from samadapt.system.arrays import Array

SEED = 85
"""Seed of the masks of an evaluation. With the place and the size of an object it decides how the
object's mask is disturbed, so the mask does not depend on what else is scored."""

HOLES = 2
"""Largest number of holes in a mask."""

WAVES = 2
"""Waves of the border's field over the largest width of the object."""


def rough_masks(masks: Array, amount: float, rng: np.random.Generator | None = None) -> Array:
    """Disturb masks.

    Args:
        masks: (p, h, w) bool.
        amount: how much, as a share of the objects' width; 0: the masks are exact.
        rng: source of the noise. Without it the noise follows from each mask alone.

    Returns:
        (p, h, w) bool.
    """
    rough = [_rough(mask, amount, _generator_of(mask) if rng is None else rng) for mask in masks]
    return np.stack(rough) if rough else masks.copy()


def _generator_of(mask: Array) -> np.random.Generator:
    """Return a generator that is the same whenever this mask is disturbed."""
    return np.random.default_rng([SEED, int(mask.sum()), int(mask.argmax())])


def _rough(mask: Array, amount: float, rng: np.random.Generator) -> Array:
    """Disturb one mask (h, w)."""
    from scipy.ndimage import distance_transform_edt, shift

    if not amount or not mask.any():
        return mask.copy()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    inner = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    width = 2 * float(distance_transform_edt(inner).max())
    # The border moves by at most half a width of shift, a quarter of offset and about three
    # standard deviations of the field; the crop has room for that.
    room = int(np.ceil(1.5 * amount * width)) + 1
    crop = np.pad(inner, room)
    # Distance to the border in pixels, positive inside; zero lies between the pixels.
    distance = distance_transform_edt(crop) - distance_transform_edt(~crop)
    distance -= 0.5 * np.sign(distance)
    unit = amount * width
    distance = shift(distance, rng.uniform(-0.5, 0.5, size=2) * unit, order=1, mode="nearest")
    waves = _smooth_field(crop.shape, width / WAVES, rng)
    rough = distance + unit * (rng.uniform(-0.25, 0.25) + 0.25 * waves) > 0
    for _ in range(int(rng.integers(HOLES + 1))):
        centre = rng.choice(np.argwhere(crop))
        radius = rng.uniform(0, 0.5) * unit
        y, x = np.ogrid[: crop.shape[0], : crop.shape[1]]
        rough &= (y - centre[0]) ** 2 + (x - centre[1]) ** 2 > radius**2
    # The crop goes back into the image, and what lies beyond the image's edge is cut off. It starts
    # `margin` pixels above and to the left of the object, and so does the padded image.
    margin = room + 1
    padded = np.zeros([side + 2 * margin for side in mask.shape], dtype=bool)
    padded[rows[0] :, columns[0] :][: crop.shape[0], : crop.shape[1]] = rough
    placed = padded[margin:-margin, margin:-margin]
    return placed if placed.any() else mask.copy()


def _smooth_field(shape: tuple[int, ...], length: float, rng: np.random.Generator) -> Array:
    """Return a smooth random field of a shape (h, w) with mean 0 and standard deviation 1.

    Args:
        shape: (h, w).
        length: distance in pixels over which the field changes.
        rng: source of the noise.
    """
    from skimage.transform import resize

    # At least two cells along each side, so that there is something to interpolate.
    cells = [max(2, int(np.ceil(side / max(length, 1)))) for side in shape]
    field: Array = resize(rng.normal(size=cells), shape, order=3, mode="edge")
    spread = float(field.std())
    return (field - field.mean()) / spread if spread else field
