"""The simulated user of the CVPR 2025 challenge on interactive segmentation of volumes.

The challenge "Foundation Models for Interactive 3D Biomedical Image Segmentation" gives a model a
box and then five clicks on each object (``CVPR25_iter_eval.py`` and ``get_boxes.py`` of
JunMa11/CVPR-MedSegFMCompetition). Axes are (z, y, x), z being the slice.

- The box bounds the object across the slices, and on the middle slice: the one that holds the
  middle voxel, if voxels are counted slice by slice.
- A click lands in the largest connected part of the error, missed and exceeding voxels together,
  with 26 neighbours; the first one in the order of the axes if several are largest. There it lands
  on the voxel with the largest distance to the nearest voxel outside, in voxels. Of several it is
  drawn at random with the seed 42, anew for each click.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samadapt.prompts.simulate import boxes_of
from samadapt.system.arrays import Array

SEED = 42


@dataclass(frozen=True)
class VolumeBox:
    """The box of an object in a volume.

    Attributes:
        low: first slice of the object.
        high: last slice of the object.
        middle: the slice on which ``box`` lies.
        box: (4,) float32 XYXY in pixels of that slice.
    """

    low: int
    high: int
    middle: int
    box: Array


def volume_box(truth: Array) -> VolumeBox:
    """Return the exact box of an object (d, h, w) bool, which is not empty."""
    slices = np.nonzero(truth)[0]  # of each voxel, in ascending order
    middle = int(slices[len(slices) // 2])
    return VolumeBox(int(slices[0]), int(slices[-1]), middle, boxes_of(truth[middle][None])[0])


def volume_click(
    truth: Array, known: Array, found: Array
) -> tuple[tuple[int, int, int], int] | None:
    """Click into the largest error.

    Args:
        truth: (d, h, w) bool, the object.
        known: (d, h, w) bool, the voxels whose truth is known; the others are no error.
        found: (d, h, w) bool, its mask so far.

    Returns:
        The voxel (z, y, x) and its label: 1 inside, 0 outside. None if there is no error.
    """
    from scipy.ndimage import distance_transform_edt, find_objects, label

    parts, count = label((truth != found) & known, structure=np.ones((3, 3, 3)))
    if not count:
        return None
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    box = find_objects(parts, largest)[largest - 1]
    # The distance transform runs on the part's box, padded so that the volume's edge is a border.
    depth = distance_transform_edt(np.pad(parts[box] == largest, 1))[1:-1, 1:-1, 1:-1]
    deepest = np.argwhere(depth == depth.max())
    # The published script draws from numpy's global generator after numpy.random.seed(42).
    drawn = np.random.RandomState(SEED).choice(len(deepest))
    z, y, x = (int(side.start + step) for side, step in zip(box, deepest[drawn], strict=True))
    return (z, y, x), int(truth[z, y, x])
