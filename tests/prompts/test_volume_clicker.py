"""The box and the clicks of the CVPR 2025 protocol, beside the published script's steps."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.measure import label

from samadapt.prompts.volume_clicker import volume_box, volume_click


def published_click(truth, found):
    """The steps of ``CVPR25_iter_eval.py``, on the whole volume."""
    error = truth != found
    if not error.any():
        return None
    errors = label(error, connectivity=3)  # 26 neighbours
    sizes = np.bincount(errors.flat)
    sizes[0] = 0
    largest = errors == np.argmax(sizes)
    edt = distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1, 1:-1]
    np.random.seed(42)  # noqa: NPY002
    best = np.argwhere(edt == edt.max())
    centre = tuple(best[np.random.choice(len(best))].tolist())  # noqa: NPY002
    return centre, int(truth[centre])


def blobs(rng, shape, share):
    field = gaussian_filter(rng.normal(size=shape), rng.uniform(0.5, 2))
    return field > np.quantile(field, 1 - share)


def test_clicks_are_those_of_the_published_steps():
    labels = []
    for number in range(60):
        rng = np.random.default_rng(number)
        shape = tuple(rng.integers(3, 13, 3))
        truth = blobs(rng, shape, 0.3)
        found = truth ^ blobs(rng, shape, rng.uniform(0, 0.4))
        click = volume_click(truth, np.ones(shape, bool), found)
        assert click == published_click(truth, found)
        labels.append(click[1])
    assert 5 < sum(labels) < 55


def test_axes_are_z_y_x_and_the_edge_of_the_volume_is_a_border():
    truth = np.zeros((3, 5, 9), bool)
    truth[0:3, 1:4, 4:9] = True
    known = np.ones_like(truth)
    (z, y, x), positive = volume_click(truth, known, np.zeros_like(truth))
    assert (z, y, positive) == (1, 2, 1)
    assert x in (5, 6, 7)
    assert volume_click(truth, known, truth) is None


def test_parts_that_touch_at_a_corner_are_one_and_unknown_voxels_are_no_error():
    truth = np.zeros((2, 4, 8), bool)
    truth[0, 0, 0] = truth[1, 1, 1] = True  # two voxels of one part, with 26 neighbours
    found = np.zeros_like(truth)
    found[0, 0, 7] = True
    known = np.ones_like(truth)
    voxel, positive = volume_click(truth, known, found)
    assert voxel in ((0, 0, 0), (1, 1, 1))
    assert positive == 1
    known[:, :2, :2] = False
    assert volume_click(truth, known, found) == ((0, 0, 7), 0)


def test_the_box_lies_on_the_slice_of_the_middle_voxel():
    truth = np.zeros((9, 6, 7), bool)
    truth[2, 3, 3] = True
    truth[6:8, 1:4, 2:6] = True  # 24 of 25 voxels
    box = volume_box(truth)
    assert (box.low, box.high, box.middle) == (2, 7, 6)
    assert box.box.tolist() == [2, 1, 6, 4]
