"""Random changes of a training slice: of image, labels and annotated prompts together.

All slices of a stack change in the same way, so that their pixels still correspond. Only noise is
drawn for each slice.

Geometric changes come first: flip, quarter turns, then rotation and scale in one resampling (so the
image is interpolated only once), then crop. Changes of intensity follow: bias field, gamma and
brightness, noise, colour. Each named change happens with probability 1/2. Labels take the value of
the nearest pixel, so that no new value appears and ignored pixels stay ignored. Pixels from outside
the image are black and background, like SAM's own padding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from samadapt.data.types import Sample

Keeps = Callable[["Sample"], bool]

ROTATION = 15.0  # degrees in both directions: the way a patient lies, not another view
SCALE = 1.25  # largest factor up or down; people differ by less in size
ZOOM = 2.0  # largest factor for pictures: how near the camera was, which objects were chosen
CROP = 0.75  # smallest remaining share of a side
GAMMA, BRIGHTNESS = 1.5, 1.2  # largest factors up or down; nnU-Net uses 1.5 and 1.25
NOISE = 0.05  # largest standard deviation, as a share of black to white
BIAS = 0.15  # largest coefficient; one place is then typically twice as bright as another
HUE = 0.04  # largest turn of the hue, as a share of the circle: another lamp or stain
SATURATION, CONTRAST = 1.5, 1.3  # largest factors up or down, about the mean for the contrast


def augment(
    stack: Sequence[Sample],
    names: Sequence[str],
    rng: np.random.Generator,
    keeps: Keeps = lambda sample: True,
) -> list[Sample]:
    """Apply each named change with probability 1/2.

    Args:
        stack: a training slice, or the slices that the encoder sees together.
        names: some of ``"flip"`` (left and right), ``"rotate90"``, ``"rotate"``, ``"scale"``,
            ``"zoom"`` (a wider range than scale), ``"crop"``, ``"intensity"`` (gamma and
            brightness), ``"noise"``, ``"bias_field"`` (of MRI coils), ``"colour"`` (hue,
            saturation and contrast).
        rng: source of randomness.
        keeps: returns whether a slice can be trained on. A geometric change is not made if it
            makes a usable slice unusable, or moves an annotated prompt out of the image.
    """
    slices = list(stack)

    def wanted(name: str) -> bool:
        return name in names and rng.random() < 0.5

    def accept(changed: list[Sample]) -> list[Sample]:
        pairs = zip(slices, changed, strict=True)
        fine = all(_has_its_prompts(new) and (keeps(new) or not keeps(old)) for old, new in pairs)
        return changed if fine else slices

    if wanted("flip"):
        slices = [flip(sample) for sample in slices]
    if wanted("rotate90"):
        turns = int(rng.integers(1, 4))
        slices = [turn90(sample, turns) for sample in slices]
    angle = rng.uniform(-ROTATION, ROTATION) if wanted("rotate") else 0.0
    factor = _factor(SCALE, rng) if wanted("scale") else 1.0
    factor = _factor(ZOOM, rng) if wanted("zoom") else factor
    if (angle, factor) != (0.0, 1.0):
        slices = accept([turn(sample, angle, factor) for sample in slices])
    if wanted("crop"):
        slices = accept(crop(slices, rng))
    changes = [name for name in ("bias_field", "intensity", "noise", "colour") if wanted(name)]
    if not changes:
        return slices
    shaded = shade(np.stack([sample.image for sample in slices]), changes, rng)
    return [replace(sample, image=image) for sample, image in zip(slices, shaded, strict=True)]


def vary(
    stack: Sequence[Sample],
    names: Sequence[str],
    seed: int,
    variant: int,
    keeps: Keeps = lambda sample: True,
) -> list[Sample]:
    """Return one of a stack's fixed variants: 0 is the stack itself, the others are augmented.

    A variant depends only on the seed, the case, the slice number and the variant's number. Its
    features can therefore be computed before training, and found again in another run.
    """
    if variant == 0:
        return list(stack)
    # The name of the first slice seeds the generator, so that every stack changes differently.
    identity = hashlib.sha256(f"{stack[0].case}\0{stack[0].index}".encode()).digest()
    words = np.frombuffer(identity, np.uint32).tolist()
    return augment(stack, names, np.random.default_rng([seed, variant, *words]), keeps)


def flip(sample: Sample) -> Sample:
    """Mirror image, labels, boxes and points from left to right."""
    width = sample.labels.shape[1]
    place = lambda xy: np.stack([width - xy[:, 0], xy[:, 1]], axis=1)  # noqa: E731
    return _moved(sample, lambda plane: plane[:, ::-1], place)


def turn90(sample: Sample, turns: int) -> Sample:
    """Turn image, labels, boxes and points counter-clockwise by quarters of a circle."""
    height, width = sample.labels.shape
    # Of points (x, y): one turn takes the right edge to the top.
    places: dict[int, Callable[[Array], Array]] = {
        1: lambda xy: np.stack([xy[:, 1], width - xy[:, 0]], axis=1),
        2: lambda xy: np.array([width, height]) - xy,
        3: lambda xy: np.stack([height - xy[:, 1], xy[:, 0]], axis=1),
    }
    return _moved(sample, lambda plane: np.rot90(plane, turns), places[turns])


def turn(sample: Sample, degrees: float, factor: float) -> Sample:
    """Rotate counter-clockwise about the centre of the image, and enlarge by a factor.

    An annotated box becomes the smallest upright box around its rotated corners.
    """
    import torch
    from monai.transforms.spatial.array import Affine

    height, width = sample.labels.shape
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    back = np.eye(3)  # maps (row, column) from the centre of the result to the source
    back[:2, :2] = np.array([[cosine, sine], [-sine, cosine]]) / factor

    def resample(planes: Array, mode: str) -> Array:
        sampler = Affine(affine=back, mode=mode, padding_mode="zeros", image_only=True)
        return np.asarray(sampler(torch.from_numpy(planes.astype(np.float32))))

    def move(plane: Array) -> Array:
        if plane.ndim == 2:
            near: Array = resample(plane[None], "nearest")[0]
            return near
        return np.moveaxis(_bytes(resample(np.moveaxis(plane, 2, 0), "bilinear")), 0, 2)

    # The same map forward, for (x, y) instead of (row, column).
    forth, centre = np.linalg.inv(back[:2, :2])[::-1, ::-1], np.array([width, height]) / 2
    return _moved(sample, move, lambda xy: (xy - centre) @ forth.T + centre)


def crop(stack: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    """Cut out a random window; if the stack has labelled pixels, it contains one of them."""
    shape = stack[0].labels.shape
    marked = np.argwhere(np.any([sample.labels > 0 for sample in stack], axis=0))
    target = np.asarray(rng.choice(marked) if len(marked) else rng.integers(shape))
    window = []
    for side, inside in zip(shape, target.tolist(), strict=True):
        length = max(1, round(side * rng.uniform(CROP, 1)))
        start = int(rng.integers(max(0, inside - length + 1), min(inside, side - length) + 1))
        window.append(slice(start, start + length))
    corner = np.array([window[1].start, window[0].start])
    return [_moved(s, lambda plane: plane[tuple(window)], lambda xy: xy - corner) for s in stack]


def shade(images: Array, changes: Sequence[str], rng: np.random.Generator) -> Array:
    """Change the intensities of images; grey images (three equal channels) stay grey.

    Args:
        images: (n, h, w, 3) uint8; all get the same bias field, gamma and brightness.
        changes: some of ``"bias_field"``, ``"intensity"``, ``"noise"`` and ``"colour"``, in this
            order. Of images that are grey or have other channels than red, green and blue, colour
            changes the contrast alone.
        rng: source of randomness.
    """
    import torch
    from monai.transforms.intensity.array import (
        AdjustContrast,
        RandBiasField,
        RandGaussianNoise,
        ScaleIntensity,
    )

    is_grey = bool((images == images[..., :1]).all())
    planes = np.moveaxis(images[..., :1] if is_grey else images, 3, 1).astype(np.float32) / 255
    values: Any = torch.from_numpy(planes.reshape(-1, *planes.shape[2:]))
    for change in changes:
        if change == "intensity":
            brightness = ScaleIntensity(minv=None, maxv=None, factor=_factor(BRIGHTNESS, rng) - 1)
            values = brightness(AdjustContrast(gamma=_factor(GAMMA, rng))(values))
            continue
        if change == "colour":
            values = _recolour(values, rng, channels=planes.shape[1])
            continue
        drawn: RandBiasField | RandGaussianNoise = RandGaussianNoise(std=NOISE, prob=1)
        if change == "bias_field":
            drawn = RandBiasField(degree=3, coeff_range=(-BIAS, BIAS), prob=1)
        drawn.set_random_state(seed=int(rng.integers(2**31)))
        values = drawn(values)
    shaded = np.moveaxis(_bytes(np.asarray(values) * 255).reshape(planes.shape), 1, 3)
    return np.ascontiguousarray(np.broadcast_to(shaded, images.shape))


def _recolour(values: Any, rng: np.random.Generator, *, channels: int) -> Any:
    """Change hue, saturation and contrast.

    Args:
        values: (n c, h, w) float, 0 to 1.
        rng: source of randomness; the same values are drawn whatever the channels are.
        channels: number c of channels. Hue and saturation change if they are red, green and blue.
    """
    import torch
    from skimage.color import hsv2rgb, rgb2hsv

    hue, saturation = rng.uniform(-HUE, HUE), _factor(SATURATION, rng)
    contrast = _factor(CONTRAST, rng)
    planes = np.clip(np.asarray(values), 0, 1)
    if channels == 3:
        hsv = rgb2hsv(planes.reshape(-1, 3, *planes.shape[1:]), channel_axis=1)
        hsv[:, 0] = (hsv[:, 0] + hue) % 1
        hsv[:, 1] = np.clip(hsv[:, 1] * saturation, 0, 1)
        planes = hsv2rgb(hsv, channel_axis=1).reshape(planes.shape)
    mean = planes.mean()
    return torch.from_numpy(((planes - mean) * contrast + mean).astype(np.float32))


def _moved(
    sample: Sample, move: Callable[[Array], Array], place: Callable[[Array], Array]
) -> Sample:
    """Return a sample after a geometric change.

    Args:
        sample: a slice.
        move: changes the image (h, w, 3), the labels and the object numbers (h, w).
        place: moves points (n, 2) (x, y) accordingly. Boxes are clipped at the border.
    """

    def moved(plane: Array) -> Array:
        return np.ascontiguousarray(move(plane), dtype=plane.dtype)

    image, labels = moved(sample.image), moved(sample.labels)
    instances = None if sample.instances is None else moved(sample.instances)
    boxes, points = sample.boxes, sample.points
    if boxes is not None:
        corners = boxes[:, [[0, 1], [2, 1], [0, 3], [2, 3]]]
        placed = place(corners.reshape(-1, 2)).reshape(-1, 4, 2)
        limits = np.array(labels.shape[::-1])
        low, high = (np.clip(edge, 0, limits) for edge in (placed.min(axis=1), placed.max(axis=1)))
        boxes = np.concatenate([low, high], axis=1).astype(np.float32)
    if points is not None:
        points = place(points).astype(np.float32)
    return replace(
        sample, image=image, labels=labels, instances=instances, boxes=boxes, points=points
    )


def _has_its_prompts(sample: Sample) -> bool:
    """Whether every annotated box still covers a pixel and every point lies in the image."""
    boxes, points, limits = sample.boxes, sample.points, sample.labels.shape[::-1]
    covers = boxes is None or bool((boxes[:, 2:] - boxes[:, :2] >= 1).all())
    return covers and (points is None or bool(((points >= 0) & (points < limits)).all()))


def _factor(most: float, rng: np.random.Generator) -> float:
    """Draw a factor between 1 / most and most, uniform in its logarithm."""
    return math.exp(rng.uniform(-math.log(most), math.log(most)))


def _bytes(values: Array) -> Array:
    clipped: Array = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    return clipped
