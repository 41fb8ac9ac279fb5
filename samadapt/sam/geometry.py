"""Conversion between the original image and the model's square, in both directions.

This is the only file that knows both frames. Points are (x, y) and boxes are XYXY, in pixels. As in
segment-anything, a coordinate is multiplied by the ratio of the sides, and the image lies at the
top left of the square.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from samadapt.sam.types import Frame

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[Any]

SURE = np.float32(0.999)
"""Probability inside a mask that becomes a mask prompt, as in micro-sam. Its logit is 6.9; SAM's
own logits, for which the prompt encoder is made, are of this size."""


def make_frame(shape: tuple[int, int], size: int, resize: str = "longest") -> Frame:
    """Place an image of ``shape`` (h, w) in a square of ``size`` pixels.

    Args:
        shape: (height, width) of the original image.
        size: side of the model's square.
        resize: ``"longest"`` makes the longest side ``size`` and keeps the aspect (sides are
            rounded half up); ``"shrink"`` does so for larger images only, and smaller ones keep
            their pixels; ``"squash"`` makes both sides ``size``.

    Raises:
        ValueError: a side or the size is not positive, or ``resize`` is unknown.
    """
    height, width = (int(side) for side in shape)
    if min(height, width, size) < 1:
        raise ValueError(
            f"the sides of an image must be positive; got {(height, width)} for size {size}"
        )
    if resize == "squash":
        return Frame((height, width), (size, size), size)
    if resize not in ("longest", "shrink"):
        raise ValueError(f"resize must be 'longest', 'shrink' or 'squash'; got {resize!r}")
    if resize == "shrink" and max(height, width) <= size:
        return Frame((height, width), (height, width), size)
    scale = size * 1.0 / max(height, width)
    resized = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
    return Frame((height, width), resized, size)


def resize_image(image: npt.NDArray[np.uint8], frame: Frame) -> npt.NDArray[np.uint8]:
    """Resize an image to ``frame.resized``, bilinear with antialiasing (PIL).

    Args:
        image: (h, w, 3) uint8, or (h, w, c) with more channels, which are resized one by one.
        frame: the frame of the image.

    Raises:
        ValueError: the image is not uint8 or does not have the size ``frame.original``.
    """
    if image.ndim == 3 and image.shape[2] > 3:
        parts = [
            resize_image(np.repeat(image[..., i, None], 3, axis=2), frame)[..., 0]
            for i in range(image.shape[2])
        ]
        return np.stack(parts, axis=-1)
    if image.dtype != np.uint8 or image.shape != (*frame.original, 3):
        raise ValueError(
            f"image must be uint8 {(*frame.original, 3)}; got {image.dtype} {image.shape}"
        )
    if frame.resized == frame.original:
        return image
    height, width = frame.resized
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def to_model_points(points: npt.ArrayLike, frame: Frame) -> FloatArray:
    """Move points (..., 2) from the original image into the model frame."""
    return _array(points, 2) * _ratio(frame)


def to_original_points(points: npt.ArrayLike, frame: Frame) -> FloatArray:
    """Move points (..., 2) from the model frame back into the original image."""
    return _array(points, 2) / _ratio(frame)


def to_model_boxes(boxes: npt.ArrayLike, frame: Frame) -> FloatArray:
    """Move boxes (..., 4) XYXY from the original image into the model frame."""
    return _array(boxes, 4) * np.tile(_ratio(frame), 2)


def to_original_boxes(boxes: npt.ArrayLike, frame: Frame) -> FloatArray:
    """Move boxes (..., 4) XYXY from the model frame back into the original image."""
    return _array(boxes, 4) / np.tile(_ratio(frame), 2)


def labels_to_model(labels: IntArray, frame: Frame, side: int) -> IntArray:
    """Bring a label image into the model's square, at the resolution of the logits.

    Along an axis that is enlarged, a cell takes the nearest label. Along an axis that shrinks, it
    takes the label that covers most of it, and of equals the smallest. Cells whose centre lies in
    the padding are -1.

    Args:
        labels: (h, w) integers, of size ``frame.original``.
        frame: the frame of the image.
        side: cells along a side of the square; 4g for the logits of the decoder.

    Returns:
        (side, side), of the type of the labels if it is signed, else int64.

    Raises:
        ValueError: the labels are not integers or do not have the size ``frame.original``.
    """
    if labels.shape != frame.original or labels.dtype.kind not in "iub":
        raise ValueError(
            f"labels must be integers {frame.original}; got {labels.dtype} {labels.shape}"
        )
    down = _cell_weights(frame.original[0], frame.resized[0], frame.size, side)
    across = _cell_weights(frame.original[1], frame.resized[1], frame.size, side)
    kind = labels.dtype if labels.dtype.kind == "i" else np.dtype(np.int64)
    values = np.unique(labels)
    best = np.zeros((len(down), len(across)))
    placed = np.full(best.shape, values[0], dtype=kind)
    for value in values:
        covered = down @ (labels == value).astype(np.float32) @ across.T
        better = covered > best * (
            1 + 1e-5
        )  # a margin, so that rounding does not decide between equals
        best[better] = covered[better]
        placed[better] = value
    square = np.full((side, side), -1, dtype=kind)
    square[: len(down), : len(across)] = placed
    return square


def masks_to_model(masks: Any, frame: Frame, side: int) -> npt.NDArray[np.float32]:
    """Turn masks into mask prompts: logits at the resolution of the decoder.

    A cell has the logit of the share of it that the mask covers, between ``1 - SURE`` and ``SURE``.
    The padding is outside.

    Args:
        masks: (p, h, w) bool, of size ``frame.original``.
        frame: the frame of the image.
        side: 4g, cells along a side of the square.

    Returns:
        (p, 1, side, side).
    """
    down = _cell_weights(frame.original[0], frame.resized[0], frame.size, side)
    across = _cell_weights(frame.original[1], frame.resized[1], frame.size, side)
    down, across = (rows / rows.sum(axis=1, keepdims=True) for rows in (down, across))
    shares = np.zeros((len(masks), 1, side, side), np.float32)
    for share, mask in zip(shares, masks, strict=True):
        share[0, : len(down), : len(across)] = down @ mask.astype(np.float32) @ across.T
    shares = np.clip(shares, 1 - SURE, SURE)
    logits: npt.NDArray[np.float32] = np.log(shares / (1 - shares))
    return logits


def nearest_to_model(values: IntArray, frame: Frame, side: int) -> IntArray:
    """Bring an image of numbers into the model's square: each cell takes the pixel at its centre.

    Unlike ``labels_to_model`` its time does not grow with the count of different numbers.

    Args:
        values: (h, w) of size ``frame.original``.
        frame: the frame of the image.
        side: cells along a side of the square.

    Returns:
        (side, side) of the same type; 0 in the padding.
    """
    rows, columns = (
        _centre_pixels(original, resized, frame.size, side)
        for original, resized in zip(frame.original, frame.resized, strict=True)
    )
    square = np.zeros((side, side), values.dtype)
    square[: len(rows), : len(columns)] = values[np.ix_(rows, columns)]
    return square


def _centre_pixels(original: int, resized: int, size: int, side: int) -> IntArray:
    """Return the original pixel under the centre of each cell inside the image, along one axis."""
    cell = size / side
    inside = max(1, min(side, int(np.ceil(resized / cell - 0.5))))
    centres = (np.arange(inside) + 0.5) * cell * original / resized
    pixels: IntArray = np.minimum(centres.astype(int), original - 1)
    return pixels


def _cell_weights(original: int, resized: int, size: int, side: int) -> npt.NDArray[np.float32]:
    """Return how much of each cell each original pixel covers along one axis: (cells, pixels).

    Only the cells inside the image are counted.
    """
    cell = size / side  # pixels of the model frame in a cell
    inside = min(side, int(np.ceil(resized / cell - 0.5)))
    pixels = cell * original / resized  # original pixels in a cell
    edges = np.arange(max(1, inside) + 1) * pixels
    if pixels <= 1:
        nearest = np.minimum(((edges[:-1] + edges[1:]) / 2).astype(int), original - 1)
        weights: npt.NDArray[np.float32] = np.eye(original, dtype=np.float32)[nearest]
        return weights
    pixel = np.arange(original)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    covered: npt.NDArray[np.float32] = np.clip(overlap, 0, None).astype(np.float32)
    return covered


def _ratio(frame: Frame) -> FloatArray:
    """Return the scale (x, y) from the original image to the model frame."""
    height, width = frame.original
    return np.array([frame.resized[1] / width, frame.resized[0] / height])


def _array(values: npt.ArrayLike, last: int) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] != last:
        raise ValueError(f"expected (..., {last}) pixels; got {array.shape}")
    return array
