"""HD95 and NSD, with the conventions of DeepMind's ``surface-distance`` and its values.

Surfaces consist of elements between voxel corners (marching cubes; marching squares in 2D). Each
element is weighted by its area (in 2D its length), so that the direction and the anisotropy of the
grid have no influence. MONAI's ``compute_hausdorff_distance`` gives every surface voxel the same
weight, and therefore differs. The distances are computed in ``evaluation/surface_distances.py``.

If one mask is empty there is no distance. HD95 is then the diagonal of the case's image and NSD is
0. The row has the flag ``truth_empty`` or ``prediction_empty``, which the summary counts.
"""

from __future__ import annotations

from samadapt.evaluation.scores.base import ClassMasks, Score, register

PERCENT = 95.0


def hd95(masks: ClassMasks) -> float:
    """Return the larger of the two directed 95th percentiles of the surface distances.

    The percentile of one direction is the smallest distance within which at least 95 % of that
    surface's area lies. It is not interpolated.
    """
    if not (masks.prediction_voxels and masks.truth_voxels):
        return masks.diagonal
    return masks.distances.hausdorff(PERCENT)


def nsd(masks: ClassMasks) -> float:
    """Return the share of both surfaces' area that is within the tolerance of the other one."""
    if not (masks.prediction_voxels and masks.truth_voxels):
        return 0.0
    return masks.distances.overlap(masks.tolerance)


register(
    Score("hd95", "HD95", hd95, best="low", kind="length", in_table="interval"),
    Score("nsd", "NSD", nsd, in_table="mean"),
)
