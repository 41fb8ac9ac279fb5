"""The largest component and filled holes, against MONAI's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import FillHoles, KeepLargestConnectedComponent

from samadapt.evaluation.postprocess import postprocess


def blobs(seed, shape):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 5, tuple(-(-side // 3) for side in shape))
    coarse[coarse > 3] = 0
    for axis in range(3):
        coarse = coarse.repeat(3 if shape[axis] > 1 else 1, axis)
    noise = rng.random(shape) < 0.1
    labels = coarse[: shape[0], : shape[1], : shape[2]]
    return np.where(noise, 0, labels).astype(np.uint8)


@pytest.mark.parametrize("shape", [(17, 14, 12), (61, 65, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_monai(shape, seed):
    labels = blobs(seed, shape)
    squeezed = labels[:, :, 0] if shape[2] == 1 else labels
    for keep, fill in [([1, 2, 3], []), ([2], []), ([], [1, 3]), ([1, 2, 3], [1, 2, 3])]:
        expected = torch.as_tensor(squeezed.copy())[None]
        if keep:
            largest = KeepLargestConnectedComponent(
                applied_labels=keep, connectivity=squeezed.ndim, independent=True
            )
            expected = largest(expected)
        if fill:
            expected = FillHoles(applied_labels=fill, connectivity=1)(expected)
        found = labels.copy()
        postprocess(found, keep, fill)
        assert np.array_equal(found.reshape(squeezed.shape), np.asarray(expected[0]))


def test_an_island_in_a_hole_goes_before_the_hole_is_filled():
    labels = np.zeros((9, 9, 1), dtype=np.uint8)
    labels[1:8, 1:8] = 1
    labels[2:7, 2:7] = 0
    labels[4, 4] = 1
    labels[3, 3] = 2
    postprocess(labels, [1], [1])
    expected = np.zeros((9, 9), dtype=np.uint8)
    expected[1:8, 1:8] = 1
    expected[3, 3] = 2  # another class in the hole is no hole
    assert np.array_equal(labels[:, :, 0], expected)


def test_a_volumes_holes_are_cavities_and_components_touch_at_corners():
    labels = np.zeros((6, 6, 6), dtype=np.uint8)
    labels[1:5, 1:5, 1:5] = 1
    labels[2:4, 2:4, 2:4] = 0  # a cavity
    labels[5, 5, 5] = 1  # touches at a corner
    tunnel = labels.copy()
    tunnel[2:4, 2:4] = 0
    postprocess(labels, [1], [1])
    assert labels.sum() == 4**3 + 1
    before = tunnel.copy()
    postprocess(tunnel, [1], [1])
    assert np.array_equal(tunnel, before)


def test_absent_classes_and_empty_maps_stay():
    labels = np.zeros((4, 5, 3), dtype=np.uint8)
    postprocess(labels, [1, 2], [3])
    assert not labels.any()
    labels[1, 1, 1] = 2
    postprocess(labels, [1, 9], [9])
    assert labels.sum() == 2
