"""HD95 and NSD against surface-distance, MONAI and brute force over all surface points."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from samadapt.errors import DataError
from samadapt.evaluation.case_scores import score_case
from samadapt.evaluation.surface_distances import surface_distances

SPACINGS = st.sampled_from([0.3, 0.4, 0.977, 1.0, 1.25, 3.0])
pytestmark = [
    # surface-distance 0.1 calls scipy by names of old
    pytest.mark.filterwarnings("ignore:Please import `:DeprecationWarning"),
    # MONAI's, of its own argument
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),
]


def masks(min_dims=2):
    return array_shapes(min_dims=min_dims, max_dims=3, max_side=6).flatmap(
        lambda shape: st.tuples(
            arrays(bool, shape), arrays(bool, shape), st.tuples(*[SPACINGS] * len(shape))
        )
    )


def theirs(prediction, truth, spacing, tolerance):
    package = pytest.importorskip("surface_distance")
    found = package.compute_surface_distances(truth, prediction, spacing)
    return (
        package.compute_robust_hausdorff(found, 95),
        package.compute_surface_dice_at_tolerance(found, tolerance),
    )


def ours(prediction, truth, spacing, tolerance):
    found = surface_distances(prediction, truth, spacing)
    return found.hausdorff(95), found.overlap(tolerance)


EXAMPLES = pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])


@EXAMPLES
def test_scores_are_those_of_surface_distance(count):
    @given(masks(), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
    @settings(max_examples=count, deadline=None)
    def check(drawn, tolerance):
        prediction, truth, spacing = drawn
        assume(prediction.any())
        assume(truth.any())
        expected = theirs(prediction, truth, spacing, tolerance)
        assert ours(prediction, truth, spacing, tolerance) == pytest.approx(expected, abs=1e-6)

    check()


def brute_force(prediction, truth, spacing, tolerance):
    """Every corner between voxels of both kinds against every other one, by the definition.

    The area of a corner in 2D from the pattern of its four pixels, without tables: a single
    pixel cuts the corner with half a diagonal, two neighbours with a straight piece, two opposite
    ones with two halves.
    """

    def contour(mask):
        found = []
        padded = np.pad(mask, 1)
        for row, column in product(*[range(n - 1) for n in padded.shape]):
            block = padded[row : row + 2, column : column + 2]
            count = int(block.sum())
            if count in (0, 4):
                continue
            half = math.hypot(*spacing) / 2
            if count == 2 and block[0].sum() == 1 and block[:, 0].sum() == 1:
                length = 2 * half
            elif count == 2:
                length = spacing[1] if block[0].sum() in (0, 2) else spacing[0]
            else:
                length = half
            found.append((row * spacing[0], column * spacing[1], length))
        return found

    one, other = contour(prediction), contour(truth)
    directed, near, total = [], 0.0, 0.0
    for points, others in ((one, other), (other, one)):
        pairs = sorted(
            (min(math.hypot(y - v, x - u) for v, u, _ in others), length) for y, x, length in points
        )
        whole = math.fsum(length for _, length in pairs)
        reached = 0.0
        for distance, length in pairs:
            reached += length
            if reached >= 0.95 * whole * (1 - 1e-12):
                directed.append(distance)
                break
        near += math.fsum(length for distance, length in pairs if distance <= tolerance + 1e-9)
        total += whole
    return max(directed), near / total


SMALL = array_shapes(min_dims=2, max_dims=2, max_side=5).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


@EXAMPLES
def test_scores_are_those_of_brute_force(count):
    @given(SMALL, st.tuples(SPACINGS, SPACINGS))
    @settings(max_examples=count, deadline=None)
    def check(drawn, spacing):
        prediction, truth = drawn
        assume(prediction.any())
        assume(truth.any())
        tolerance = 0.61  # no sum of steps is near it
        hausdorff, overlap = ours(prediction, truth, spacing, tolerance)
        expected = brute_force(prediction, truth, spacing, tolerance)
        assert overlap == pytest.approx(expected[1], abs=1e-9)
        if hausdorff != pytest.approx(expected[0], abs=1e-9):
            # Where exactly 95 % of the length is reached, the last bit of a sum decides; the
            # brute force's answer is then the one on the other side of the step.
            found = surface_distances(prediction, truth, spacing)
            both = [found.hausdorff(percent) for percent in (95 - 1e-9, 95 + 1e-9)]
            assert min(abs(value - expected[0]) for value in both) < 1e-9

    check()


def test_nsd_is_monais_where_it_weighs_by_area_too():
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(3)
    for spacing in ((1.0, 1.0, 1.0), (0.7, 0.7, 2.5)):
        block = np.zeros((14, 13, 9), bool)
        block[2:11, 3:10, 1:7] = True
        truth = block & (rng.random(block.shape) < 0.98)
        prediction = np.roll(truth, (1, -1, 1), (0, 1, 2))
        pair = [torch.from_numpy(m)[None, None].float() for m in (prediction, truth)]
        wanted = metrics.compute_surface_dice(
            *pair, [1.3], include_background=True, spacing=spacing, use_subvoxels=True
        )
        assert ours(prediction, truth, spacing, 1.3)[1] == pytest.approx(float(wanted), abs=1e-6)


def test_hd95_is_monais_hausdorff_where_all_distances_are_equal():
    """Weights do not matter between two planes that are 3 voxels apart."""
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    truth, prediction = np.zeros((2, 20, 20, 12), bool)
    truth[:, :, 2], prediction[:, :, 5] = True, True
    pair = [torch.from_numpy(m)[None, None].float() for m in (prediction, truth)]
    for percent in (95, 100):
        wanted = metrics.compute_hausdorff_distance(
            *pair, include_background=True, percentile=percent, spacing=(1.0, 1.0, 2.0)
        )
        found = surface_distances(prediction, truth, (1.0, 1.0, 2.0)).hausdorff(percent)
        assert found == pytest.approx(float(wanted))


def test_where_the_mask_lies_does_not_matter():
    rng = np.random.default_rng(1)
    prediction, truth = rng.integers(0, 2, (2, 6, 5, 4)).astype(np.uint8)
    large = np.zeros((2, 40, 30, 20), np.uint8)
    large[0, 21:27, 3:8, 16:20], large[1, 21:27, 3:8, 16:20] = prediction, truth
    spacing = (0.8, 0.8, 2.0)
    (one,) = score_case("a", prediction, truth, ["x"], spacing_mm=spacing)
    (other,) = score_case("a", large[0], large[1], ["x"], spacing_mm=spacing)
    assert one.values == other.values
    (turned,) = score_case(
        "a",
        large[0].transpose(2, 0, 1),
        large[1].transpose(2, 0, 1),
        ["x"],
        spacing_mm=(2, 0.8, 0.8),
    )
    assert turned.values == pytest.approx(other.values)


def test_one_slice_is_measured_in_2d_but_has_a_volume():
    truth, prediction = np.zeros((2, 20, 30, 1), np.uint8)
    truth[4:12, 5:15], prediction[4:12, 8:18] = 1, 1
    (flat,) = score_case("a", prediction, truth, ["x"], spacing_mm=(0.5, 0.5, 4.0))
    assert flat.values["hd95"] == pytest.approx(1.5)
    assert flat.values["volume_error_abs"] == 0
    assert flat.length_unit == "mm"
    (smaller,) = score_case("a", prediction * 0, truth, ["x"], spacing_mm=(0.5, 0.5, 4.0))
    assert smaller.values["volume_error_abs"] == pytest.approx(80 * 0.5 * 0.5 * 4 / 1000)
    assert smaller.values["hd95"] == pytest.approx(math.hypot(10, 15))


def test_an_empty_mask_has_no_surface():
    with pytest.raises(DataError, match="not empty"):
        surface_distances(np.zeros((3, 3), bool), np.ones((3, 3), bool), (1.0, 1.0))
