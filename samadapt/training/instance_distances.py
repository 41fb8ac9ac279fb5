"""What ``head=instances`` learns: how far each pixel is from the centre and border of its object.

Each distance is a share of the largest one in the same object, so that small and large objects ask
for the same values; ``sam/watershed.py`` says what they mean and where they come from. They are
computed on the grid of the loss, from object numbers that were augmented and resized like the
picture, so they are exact there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from samadapt.data.types import IGNORED
from samadapt.errors import DataError
from samadapt.sam.geometry import nearest_to_model
from samadapt.sam.types import at_least_fp32
from samadapt.system.arrays import Array
from samadapt.system.collectives import total
from samadapt.training.mask_losses import LossFunction, LossTerms

if TYPE_CHECKING:
    from samadapt.data.types import Sample
    from samadapt.sam.types import Frame, MaskOutput


def distance_targets(
    samples: Sequence[Sample], frames: Sequence[Frame], classes: Tensor, count: int
) -> Float[Tensor, "b n h w"]:
    """Return class targets and distances in one tensor, as ``with_distances`` takes them apart.

    Args:
        samples: the slices, with object numbers.
        frames: their frames.
        classes: the class targets, (b, h, w) ids or (b, K, h, w) planes.
        count: number K of classes.

    Returns:
        Float32: the plane or the K planes of ``classes``; K distances to the centre; K to the
        border. ``IGNORED`` where a distance is not known: where the class is not, and in pixels of
        the class that belong to no numbered object, such as a crowd.

    Raises:
        DataError: a slice has no object numbers; names it.
    """
    first = classes[:, None] if classes.ndim == 3 else classes
    side = first.shape[-1]
    planes = []
    for sample, frame, own in zip(samples, frames, first.numpy(), strict=True):
        if sample.instances is None:
            raise DataError(
                f"{sample.case}, {sample.part} {sample.index}: head=instances needs the number of "
                "the object of each pixel"
            )
        numbers = nearest_to_model(sample.instances, frame, side)
        distances = object_distances(numbers, _cells_inside(frame, side))
        for distance in distances:
            for class_id in range(1, count + 1):
                plane = own[0] if len(own) == 1 else own[class_id - 1] * class_id
                inside = plane == class_id
                target = np.where(inside & (numbers > 0), distance, 0.0)
                target[(plane < 0) | (inside & (numbers == 0))] = IGNORED
                planes.append(target)
    stacked = torch.from_numpy(np.stack(planes).astype(np.float32))
    shape = (len(samples), 2 * count, side, side)
    return torch.cat([first.float(), stacked.reshape(shape)], dim=1)


def _cells_inside(frame: Frame, side: int) -> tuple[int, int]:
    """Return the cells along both axes that the picture covers, the last one maybe in part."""
    height, width = (min(side, math.ceil(length * side / frame.size)) for length in frame.resized)
    return height, width


def object_distances(numbers: Array, picture: tuple[int, int] | None = None) -> Array:
    """Return the distances of each pixel in its object, as shares of the largest one.

    The centre is the centroid, or the deepest pixel if the centroid lies outside of the object. The
    edge of the picture is no border, because an object that is cut off goes on behind it. Parts of
    an object that do not touch are objects of their own, as they are for the watershed.

    Args:
        numbers: (h, w) number of the object of each pixel, 0 for none.
        picture: (h, w) of the picture at the top left; what lies outside is padding. None: all.

    Returns:
        (2, h, w) float32, 0..1: 1 at the centre and 0 at the pixel farthest from it; 1 at the
        deepest pixel and 0 just outside of the object.
    """
    from scipy.ndimage import distance_transform_edt, find_objects, label

    found = np.zeros((2, *numbers.shape), np.float32)
    limits = numbers.shape if picture is None else picture
    for number, box in enumerate(find_objects(numbers), start=1):
        if box is None:
            continue
        # One pixel more on every side that is not the edge of the picture, so that the distance to
        # what lies around the object is seen.
        wide = tuple(
            slice(max(0, part.start - 1), min(part.stop + 1, limit))
            for part, limit in zip(box, limits, strict=True)
        )
        parts, count = label(numbers[wide] == number, np.ones((3, 3)))
        for part in range(1, count + 1):
            mask = parts == part
            # Without any pixel outside there is no border, and every pixel is equally deep.
            depth = distance_transform_edt(mask) if not mask.all() else np.ones(mask.shape)
            rows, columns = np.nonzero(mask)
            row, column = round(rows.mean()), round(columns.mean())
            if not mask[row, column]:
                deepest = int(np.argmax(depth[mask]))
                row, column = rows[deepest], columns[deepest]
            away = np.hypot(rows - row, columns - column)
            values = found[:, wide[0], wide[1]]
            values[0, rows, columns] = 1 - away / max(1.0, away.max())
            values[1, rows, columns] = depth[mask] / depth.max()
    return found


def with_distances(loss: LossFunction, classes: int) -> LossFunction:
    """Return a loss that also compares distances.

    The sigmoid of each map is compared by binary cross-entropy, whose gradient is the error itself
    and does not vanish where the sigmoid is flat. The sum over all known pixels is divided by the
    number of pixels in objects: few and small objects then weigh as much as many.

    Args:
        loss: of the class logits, which come first.
        classes: number K of classes.

    Returns:
        A function of a ``MaskOutput`` (b, 1, 3K, h, w) and targets of ``distance_targets``.
    """

    def both(output: MaskOutput, targets: Float[Tensor, "b n h w"]) -> LossTerms:
        first, wanted = targets[:, : -2 * classes].long(), targets[:, -2 * classes :]
        terms = loss(output, first[:, 0] if first.shape[1] == 1 else first)
        logits = at_least_fp32(output.logits[:, 0, classes : 3 * classes])
        wanted = wanted.to(logits.dtype)
        known = (wanted >= 0).to(logits.dtype)
        errors = functional.binary_cross_entropy_with_logits(
            logits, wanted.clamp(min=0), known, reduction="sum"
        )
        distance = errors / total((wanted > 0).sum()).clamp(min=1)
        parts = terms.parts | {"distance": distance.detach()}
        return LossTerms(terms.total + distance, parts)

    return both
