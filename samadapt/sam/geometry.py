"""Between the original image and the model's square; the only file that knows both frames.

Points are (x, y) in pixels, boxes XYXY, as segment-anything scales them: a coordinate is multiplied
by the ratio of the sides, and the image lies at the top left of the square.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from samadapt.sam.types import Frame

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[Any]


def make_frame(shape: tuple[int, int], size: int, resize: str = "longest") -> Frame:
    """Place an image of ``shape`` (h, w) in a square of ``size`` pixels.

    Args:
        shape: (height, width) of the original image.
        size: side of the model's square.
        resize: ``"longest"``: the longest side becomes ``size``, the aspect stays (each side
            rounded half up); ``"squash"``: both sides become ``size``.

    Raises:
        ValueError: if a side or the size is not positive, or ``resize`` is unknown.
    """
    height, width = (int(side) for side in shape)
    if min(height, width, size) < 1:
        raise ValueError(f"an image needs positive sides; got {(height, width)} for size {size}")
    if resize == "squash":
        return Frame((height, width), (size, size), size)
    if resize != "longest":
        raise ValueError(f"resize must be 'longest' or 'squash'; got {resize!r}")
    scale = size * 1.0 / max(height, width)
    resized = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
    return Frame((height, width), resized, size)


def resize_image(image: npt.NDArray[np.uint8], frame: Frame) -> npt.NDArray[np.uint8]:
    """Resize an image (h, w, 3) to ``frame.resized``, bilinear with antialiasing (PIL).

    An image of more than three channels (h, w, c) is resized channel by channel.

    Raises:
        ValueError: if the image is not uint8 RGB of ``frame.original``.
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
    """Bring points (..., 2) from the original frame into the model's."""
    return _array(points, 2) * _ratio(frame)


def to_original_points(points: npt.ArrayLike, frame: Frame) -> FloatArray:
    """Bring points (..., 2) from the model's frame back into the original."""
    return _array(points, 2) / _ratio(frame)


def to_model_boxes(boxes: npt.ArrayLike, frame: Frame) -> FloatArray:
    """Bring boxes (..., 4) XYXY from the original frame into the model's."""
    return _array(boxes, 4) * np.tile(_ratio(frame), 2)


def to_original_boxes(boxes: npt.ArrayLike, frame: Frame) -> FloatArray:
    """Bring boxes (..., 4) XYXY from the model's frame back into the original."""
    return _array(boxes, 4) / np.tile(_ratio(frame), 2)


def labels_to_model(labels: IntArray, frame: Frame, side: int) -> IntArray:
    """Bring a label image into the model's square at the resolution of the logits.

    Nearest along an axis that is enlarged; along one that shrinks, each cell takes the label that
    covers most of it (the smallest of equals). Cells with their centre in the padding are -1.

    Args:
        labels: (h, w) integers of ``frame.original``.
        frame: the image's frame.
        side: cells along the square, 4g for the decoder's logits.

    Returns:
        (side, side), of the input's type if signed, else int64.

    Raises:
        ValueError: if the labels are not integers of ``frame.original``.
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
        better = covered > best * (1 + 1e-5)  # float noise must not break ties
        best[better] = covered[better]
        placed[better] = value
    square = np.full((side, side), -1, dtype=kind)
    square[: len(down), : len(across)] = placed
    return square


def _cell_weights(original: int, resized: int, size: int, side: int) -> npt.NDArray[np.float32]:
    """Weights (cells inside the image, original) of the pixels along one axis."""
    cell = size / side  # model pixels
    inside = min(side, int(np.ceil(resized / cell - 0.5)))
    pixels = cell * original / resized  # original pixels a cell
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
    """(x, y) scale from the original frame to the model's."""
    height, width = frame.original
    return np.array([frame.resized[1] / width, frame.resized[0] / height])


def _array(values: npt.ArrayLike, last: int) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] != last:
        raise ValueError(f"expected (..., {last}) pixels; got {array.shape}")
    return array
