"""Into the model's frame and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from samadapt.sam.geometry import (
    labels_to_model,
    make_frame,
    masks_to_model,
    resize_image,
    to_model_boxes,
    to_model_points,
    to_original_boxes,
    to_original_points,
)
from samadapt.sam.types import Frame

sides = st.integers(1, 3000)
frames = st.builds(
    make_frame,
    st.tuples(sides, sides),
    st.sampled_from([64, 256, 1024]),
    st.sampled_from(["longest", "squash"]),
)
pixels = st.floats(-10, 3000)


@given(frames)
def test_the_image_fits_the_square(frame: Frame) -> None:
    assert max(frame.resized) == frame.size
    assert min(frame.resized) >= 1


@given(frames, hnp.arrays(np.float64, (2, 3, 2), elements=pixels))
def test_points_come_back(frame: Frame, points: np.ndarray) -> None:
    back = to_original_points(to_model_points(points, frame), frame)
    np.testing.assert_allclose(back, points, rtol=1e-12, atol=1e-9)


@given(frames, hnp.arrays(np.float64, (5, 4), elements=pixels))
def test_boxes_come_back_and_are_their_corners(frame: Frame, boxes: np.ndarray) -> None:
    placed = to_model_boxes(boxes, frame)
    np.testing.assert_allclose(to_original_boxes(placed, frame), boxes, rtol=1e-12, atol=1e-9)
    corners = to_model_points(boxes.reshape(-1, 2, 2), frame)
    np.testing.assert_array_equal(placed.reshape(-1, 2, 2), corners)


@settings(deadline=None, max_examples=30)
@given(st.tuples(st.integers(20, 1500), st.integers(20, 1500)), st.sampled_from([64, 1024]))
def test_equals_segment_anything(shape: tuple[int, int], size: int) -> None:
    from segment_anything.utils.transforms import ResizeLongestSide

    theirs, frame = ResizeLongestSide(size), make_frame(shape, size)
    assert frame.resized == theirs.get_preprocess_shape(*shape, size)
    points = np.array([[3.5, 7.0], [19.0, 0.0]])
    np.testing.assert_array_equal(
        to_model_points(points, frame), theirs.apply_coords(points, shape)
    )


@pytest.mark.parametrize("shape", [(30, 50), (90, 70), (64, 64), (64, 33), (7, 200)])
def test_images_are_resized_as_segment_anything_does(shape: tuple[int, int]) -> None:
    from segment_anything.utils.transforms import ResizeLongestSide

    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    resized = resize_image(image, make_frame(shape, 64))
    np.testing.assert_array_equal(resized, ResizeLongestSide(64).apply_image(image))


def test_squash_fills_the_square() -> None:
    frame = make_frame((30, 50), 64, "squash")
    assert resize_image(np.zeros((30, 50, 3), np.uint8), frame).shape == (64, 64, 3)


def test_labels_of_the_same_size_are_copied() -> None:
    labels = np.random.default_rng(0).integers(0, 5, (48, 64)).astype(np.int16)
    placed = labels_to_model(labels, make_frame((48, 64), 64), 64)
    np.testing.assert_array_equal(placed[:48], labels)
    assert (placed[48:] == -1).all()
    assert placed.dtype == np.int16


def test_labels_are_enlarged_by_repetition() -> None:
    labels = np.arange(12).reshape(3, 4)
    placed = labels_to_model(labels, make_frame((3, 4), 64), 32)
    np.testing.assert_array_equal(placed[:24], labels.repeat(8, 0).repeat(8, 1))
    assert (placed[24:] == -1).all()


def test_labels_shrink_to_the_majority_of_the_area() -> None:
    labels = np.zeros((64, 64), int)
    labels[:2, :3] = 7  # 6 of the 16 pixels of the first cell
    labels[4:8, 4:6] = 3
    labels[6:8, 6] = 3  # 10 of 16
    placed = labels_to_model(labels, make_frame((64, 64), 64), 16)
    assert placed[0, 0] == 0
    assert placed[1, 1] == 3
    assert (placed == 3).sum() == 1


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from(["longest", "squash"]),
    st.sampled_from([16, 32, 64]),
    st.integers(0, 2**32 - 1),
)
def test_labels_stay_within_the_image_and_its_values(
    shape: tuple[int, int], resize: str, side: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(2, 6, shape)
    frame = make_frame(shape, 64, resize)
    placed = labels_to_model(labels, frame, side)
    assert placed.shape == (side, side)
    assert set(np.unique(placed)) <= {-1, *np.unique(labels)}
    centre = (np.arange(side) + 0.5) * 64 / side
    inside = np.ix_(centre < frame.resized[0], centre < frame.resized[1])
    expected = np.zeros((side, side), bool)
    expected[inside] = True
    near_one = min(frame.resized) < 64 / side  # an image thinner than a cell keeps one
    if not near_one:
        np.testing.assert_array_equal(placed >= 0, expected)


@pytest.mark.parametrize("shape", [(48, 64), (300, 200), (10, 12)])
def test_a_mask_becomes_the_logit_of_its_share_of_each_cell(shape: tuple[int, int]) -> None:
    height, width = shape
    mask = np.zeros(shape, bool)
    mask[height // 4 : height // 2, : width // 2] = True
    frame = make_frame(shape, 64)
    (logits,) = masks_to_model(mask[None], frame, 32)
    assert logits.shape == (1, 32, 32)
    assert logits.dtype == np.float32
    share = 1 / (1 + np.exp(-logits[0].astype(float)))
    assert share.min() == pytest.approx(0.001, rel=1e-3)
    assert share.max() == pytest.approx(0.999, rel=1e-3)
    covered = (share - 0.001).sum() / (0.998 * 32 * 32)
    square = (height // 2 - height // 4) * (width // 2) * (frame.resized[0] / height) ** 2 / 64**2
    assert covered == pytest.approx(square, rel=0.06)
    labels = labels_to_model(mask, frame, 32)
    assert (logits[0][labels == 1] >= 0).all()
    assert (logits[0][labels < 0] < -6).all()


def test_boxes_and_labels_agree() -> None:
    """The labels of a rectangle are where its box is."""
    labels = np.zeros((300, 200), int)
    labels[60:150, 40:120] = 1
    frame = make_frame(labels.shape, 256)
    rows, columns = np.nonzero(labels_to_model(labels, frame, 64) == 1)
    box = to_model_boxes([40, 60, 120, 150], frame) / 4
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(found, box, atol=0.51)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_frame((0, 5), 64), r"must be positive; got \(0, 5\)"),
        (lambda: make_frame((4, 5), 64, "crop"), "'longest', 'shrink' or 'squash'; got 'crop'"),
        (lambda: resize_image(np.zeros((4, 5, 3)), make_frame((4, 5), 64)), "uint8.*float64"),
        (lambda: to_model_points(np.zeros((3, 3)), make_frame((4, 5), 64)), r"\(\.\.\., 2\)"),
        (lambda: to_model_boxes(np.zeros((3, 2)), make_frame((4, 5), 64)), r"\(\.\.\., 4\)"),
        (
            lambda: labels_to_model(np.zeros((5, 4), int), make_frame((4, 5), 64), 16),
            r"integers \(4, 5\); got int64 \(5, 4\)",
        ),
    ],
)
def test_wrong_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_shrink_enlarges_nothing() -> None:
    assert make_frame((20, 28), 32, "shrink").resized == (20, 28)
    assert make_frame((32, 28), 32, "shrink").resized == (32, 28)
    assert make_frame((64, 48), 32, "shrink") == make_frame((64, 48), 32)
