"""What head=instances learns: distances in objects, on the grid of the loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from samadapt.data.types import IGNORED, Sample
from samadapt.errors import DataError
from samadapt.sam.geometry import labels_to_model, make_frame, nearest_to_model
from samadapt.sam.types import MaskOutput
from samadapt.training.augment import flip
from samadapt.training.batches import semantic_targets
from samadapt.training.instance_distances import distance_targets, object_distances, with_distances
from samadapt.training.mask_losses import semantic_loss


def disc(side: int, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] - side // 2
    return (np.hypot(rows, columns) < radius).astype(np.int32)


@pytest.fixture
def sample():
    """Class 1 with objects 5 and 9, class 2 with object 7 and a crowd without a number."""
    labels, instances = np.zeros((24, 16), np.int16), np.zeros((24, 16), np.int32)
    for number, class_id, rows, columns in (
        (5, 1, slice(2, 9), slice(2, 7)),
        (9, 1, slice(2, 9), slice(7, 14)),
        (7, 2, slice(12, 19), slice(3, 10)),
        (0, 2, slice(20, 23), slice(10, 15)),
    ):
        labels[rows, columns], instances[rows, columns] = class_id, number
    return Sample("c", 0, np.zeros((24, 16, 3), np.uint8), labels, instances=instances)


def targets_of(sample: Sample, side: int) -> np.ndarray:
    frames = [make_frame(sample.labels.shape, side)]
    classes = semantic_targets([sample], frames, side)
    return distance_targets([sample], frames, classes, 2)[0].numpy()


def test_small_and_large_objects_ask_for_the_same_values():
    for radius in (5, 15):
        centre, border = object_distances(disc(41, radius))
        assert centre[20, 20] == border[20, 20] == 1
        inside = disc(41, radius) > 0
        assert centre[inside].min() == 0
        assert 0 < border[inside].min() <= 1 / (radius - 1)
        assert not centre[~inside].any()
        assert not border[~inside].any()
        halfway = 20 + radius // 2
        assert centre[20, halfway] == pytest.approx(0.5, abs=0.12)


def test_the_edge_of_the_picture_is_no_border():
    cut = disc(41, 15)[20:]  # half of a disc lies outside, above the picture
    _, border = object_distances(cut)
    assert border[0, 20] == border.max() == 1
    _, padded = object_distances(np.pad(cut, ((0, 5), (0, 5))), cut.shape)
    assert np.array_equal(padded[:21, :41], border)


def test_the_centre_of_a_concave_object_lies_in_it():
    ring = disc(41, 18) - disc(41, 9)
    centre, _ = object_distances(ring)
    assert ring[np.unravel_index(centre.argmax(), ring.shape)]
    assert centre.max() == 1


def test_parts_that_do_not_touch_have_a_centre_each():
    numbers = np.zeros((10, 20), np.int32)
    numbers[2:7, 2:7] = numbers[2:7, 12:17] = 3
    centre, _ = object_distances(numbers)
    assert centre[4, 4] == centre[4, 14] == 1


def test_an_object_that_fills_the_picture_is_equally_deep_everywhere():
    centre, border = object_distances(np.ones((6, 6), np.int32))
    assert (border == 1).all()
    assert np.isfinite(centre).all()


def test_targets_are_planes_of_each_class_and_unknown_where_no_object_is_known(sample):
    targets = targets_of(sample, 24)
    assert targets.shape == (1 + 2 * 2, 24, 24)
    assert np.array_equal(targets[0, :, :16], sample.labels)
    one, two = targets[1], targets[2]
    assert one[5, 4] == two[15, 6] == 1  # the centres of 5 and 7
    assert one[15, 6] == two[5, 4] == 0
    assert (targets[1:, :, 16:] == IGNORED).all()  # the padding
    crowd = (slice(20, 23), slice(10, 15))
    assert (two[crowd] == IGNORED).all()
    assert (one[crowd] == 0).all()
    border = targets[3]
    assert border[5, 6] < border[5, 5]  # 5 and 9 touch here
    assert border[5, 7] < border[5, 8]


def test_targets_follow_a_flip_and_another_size(sample):
    assert np.array_equal(
        targets_of(flip(sample), 24)[:, :, :16], targets_of(sample, 24)[:, :, 15::-1]
    )
    half = targets_of(sample, 12)
    assert half[1].max() == half[2].max() == 1
    assert 0 < (half[1] > 0).sum() < (targets_of(sample, 24)[1] > 0).sum()


def test_unknown_classes_have_no_distance(sample):
    partly = replace(sample, known=np.array([True, False]))
    targets = targets_of(partly, 24)
    assert targets.shape == (2 + 2 * 2, 24, 24)
    assert (targets[3] == IGNORED).all()
    assert targets[2].max() == 1


def test_a_slice_without_numbers_is_refused(sample):
    with pytest.raises(DataError, match="needs the number of the object"):
        targets_of(replace(sample, instances=None), 24)


def test_the_loss_is_lowest_at_the_targets_and_ignores_what_is_not_known(sample):
    targets = torch.from_numpy(targets_of(sample, 24))[None]
    base = semantic_loss(2)
    loss = with_distances(base, 2)
    wanted = targets[:, 1:].clamp(1e-4, 1 - 1e-4)
    logits = torch.cat([torch.zeros(1, 2, 24, 24), torch.logit(wanted)], 1)[:, None]
    logits = logits.clone().requires_grad_()
    terms = loss(MaskOutput(logits, logits.new_zeros(1, 1, 6)), targets)
    alone = base(MaskOutput(logits[:, :, :2], logits.new_zeros(1, 1, 2)), targets[:, 0].long())
    torch.testing.assert_close(terms.total, alone.total + terms.parts["distance"])
    terms.total.backward()
    distances = logits.grad[0, 0, 2:]
    assert distances.abs().max() < 1e-5
    worse = (logits.detach() + 0.5).requires_grad_()
    higher = loss(MaskOutput(worse, worse.new_zeros(1, 1, 6)), targets)
    assert float(higher.parts["distance"]) > float(terms.parts["distance"])
    higher.total.backward()
    assert not worse.grad[0, 0, 2:][targets[0, 1:] < 0].any()
    assert worse.grad[0, 0, 2:][targets[0, 1:] >= 0].abs().min() > 0


@pytest.mark.parametrize("side", [24, 40])
def test_nearest_pixels_are_those_of_labels_where_nothing_shrinks(side):
    numbers = np.random.default_rng(0).integers(0, 9, (24, 17)).astype(np.int32)
    frame = make_frame(numbers.shape, side)
    square = labels_to_model(numbers, frame, side)
    assert np.array_equal(nearest_to_model(numbers, frame, side), np.maximum(square, 0))
