"""Batches: prompts and targets in one frame, the same number of objects, a sampler that resumes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.data.types import IGNORED, Sample
from samadapt.errors import DataError
from samadapt.prompts.annotations import given_prompts
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.geometry import make_frame
from samadapt.system import processes
from samadapt.system.launchers import Place
from samadapt.training.batches import Sampler, choose_objects, make_batch
from samadapt.training.keyed_random import BatchRandom

SIDE, SIZE = 32, 64


def frame_of(shape):
    return make_frame(shape, SIZE)


def batch_of(samples, kind="box", seed=0, **policy):
    rng = np.random.default_rng(seed)
    random = BatchRandom.of(rng, len(samples))
    return make_batch(samples, PromptPolicy(kind, **policy), frame_of, SIDE, random)


def one_object(shape, rows, columns, **given):
    labels = np.zeros(shape, np.int16)
    labels[rows, columns] = 1
    return Sample("a", 0, np.zeros((*shape, 3), np.uint8), labels, **given)


@pytest.mark.parametrize("shape", [(40, 100), (100, 40), (64, 64)])
def test_targets_lie_where_the_prompts_are(shape):
    rows, columns = slice(4, 16), slice(shape[1] - 20, shape[1] - 4)
    sample = one_object(shape, rows, columns)
    batch = batch_of([sample], jitter=0.0)
    x0, y0, x1, y1 = (batch.prompts.boxes[0, 0] * SIDE / SIZE).tolist()
    target = batch.targets[0, 0]
    covered_rows, covered_columns = (torch.nonzero((target == 1).any(axis)) for axis in (1, 0))
    assert abs(covered_columns.min().item() - x0) <= 1
    assert abs(covered_columns.max().item() + 1 - x1) <= 1
    assert abs(covered_rows.min().item() - y0) <= 1
    assert abs(covered_rows.max().item() + 1 - y1) <= 1
    scale = SIDE / max(shape)
    inside = (target >= 0).sum().item()
    assert inside == round(shape[0] * scale + 1e-9) * round(shape[1] * scale + 1e-9)
    points = batch_of([sample], "point").prompts
    x, y = (points.points[0, 0, 0] * SIDE / SIZE).tolist()
    assert x0 <= x <= x1
    assert y0 <= y <= y1


def test_every_image_has_the_same_number_of_objects(tools):
    samples = [tools.make_sample(i, objects=n) for i, n in enumerate([1, 3, 2])]
    batch = batch_of(samples)
    assert batch.prompts.boxes.shape == (3, 3, 4)
    assert batch.targets.shape == (3, 3, SIDE, SIDE)
    assert batch.names == ["case0[0]", "case1[0]", "case2[0]"]
    boxes = [np.unique(b.numpy(), axis=0) for b in batch_of(samples, jitter=0.0).prompts.boxes]
    assert [len(b) for b in boxes] == [1, 3, 2]  # none is drawn twice while another is left
    for image in range(3):
        for target in batch.targets[image]:
            assert (target == 1).any()


@pytest.mark.parametrize("most", [1, 4, 7])
def test_at_most_so_many_objects_of_an_image_are_drawn(most):
    labels = np.zeros((12, 40), np.int16)
    labels[::3, ::4] = 1
    crowd = Sample("crowd", 3, np.zeros((12, 40, 3), np.uint8), labels)
    batch = batch_of([crowd], jitter=0.0, max_objects=most)
    assert batch.prompts.boxes.shape == (1, most, 4)
    assert len(np.unique(batch.prompts.boxes[0].numpy(), axis=0)) == most
    other = batch_of([crowd], jitter=0.0, seed=1, max_objects=most)
    assert not torch.equal(other.prompts.boxes, batch.prompts.boxes)
    assert batch_of([crowd]).prompts.boxes.shape == (1, 4, 4)  # the default


def test_the_chance_of_an_object_grows_with_its_diameter():
    """With equal chances, a disc among 24 specks is in 4 of 25 draws of four objects."""
    labels = np.zeros((40, 60), np.int16)
    labels[::6, 24::9] = 1
    labels[5:25, 0:20] = 1
    specks = Sample("specks", 0, np.zeros((40, 60, 3), np.uint8), labels)
    rng, policy = np.random.default_rng(0), PromptPolicy("box")
    draws = [choose_objects([specks], policy, BatchRandom.of(rng, 1))[0][0] for _ in range(300)]
    areas = np.array([draw.truth.sum(axis=(1, 2)) for draw in draws])
    assert len(np.unique(draws[0].boxes, axis=0)) == 4
    assert 0.75 < (areas == 400).any(axis=1).mean() < 0.99
    seen = {tuple(box) for draw in draws for box in np.round(draw.boxes - draw.boxes % 1)}
    assert (areas == 1).any(axis=1).all()  # small objects are still trained on
    assert len(seen) > 20


def test_semantic_targets_are_the_classes(tools):
    samples = [tools.make_sample(i, objects=2) for i in range(2)]
    batch = batch_of(samples, "semantic")
    assert batch.targets.shape == (2, SIDE, SIDE)
    assert batch.targets.dtype == torch.int64
    assert set(batch.targets.unique().tolist()) == {-1, 0, 1, 2}
    assert batch.prompts.boxes is None
    assert batch.prompts.points is None


def test_a_slice_without_an_object_is_named(tools):
    empty = replace(tools.make_sample(0), labels=np.zeros((24, 40), np.int16), index=7)
    with pytest.raises(DataError, match=r"case0, slice 7: no object .*prompts\.min_area"):
        batch_of([tools.make_sample(1), empty])


def test_annotations_are_prompts_with_mask_targets():
    boxes = np.array([[59, 3, 81, 17]], np.float32)
    sample = one_object((50, 100), slice(4, 16), slice(60, 80), boxes=boxes)
    batch = batch_of([sample])
    assert batch.prompts.boxes.tolist() == [[pytest.approx((boxes * 0.64)[0].tolist(), rel=1e-6)]]
    assert (batch.targets == 1).sum() > 0


def test_a_mask_prompt_is_a_rough_mask_on_the_grid_of_the_targets():
    sample = one_object((40, 64), slice(4, 30), slice(10, 40))
    batch = batch_of([sample], "mask", mask_noise=0.0)
    assert batch.prompts.points is None
    assert batch.prompts.boxes is None
    logits, target = batch.prompts.masks[0, 0, 0], batch.targets[0, 0]
    assert logits.shape == target.shape == (SIDE, SIDE)
    inside = target > 0
    assert torch.equal(logits > 0, inside)  # the object, and nothing in the padding
    assert float(logits.max()) == pytest.approx(6.9, abs=0.1)
    assert float(logits.min()) == pytest.approx(-6.9, abs=0.1)
    rough = [batch_of([sample], "mask", seed=n).prompts.masks[0, 0, 0] > 0 for n in range(8)]
    wrong = [int((mask ^ inside).sum()) for mask in rough]
    assert min(wrong) > 0
    assert max(wrong) < inside.sum()
    assert len(set(wrong)) > 1


def test_scribbles_of_a_batch_all_have_a_part_outside_or_none_has():
    samples = [one_object((40, 64), slice(4, 30), slice(10, 40))] * 2
    samples.append(one_object((40, 64), slice(8, 12), slice(2, 60)))
    shapes = set()
    for seed in range(12):
        prompts = batch_of(samples, "scribble", seed=seed, scribble_points=6).prompts
        shapes.add(tuple(prompts.points.shape))
        labels = prompts.point_labels.unique(dim=0)
        assert labels.tolist() in ([[[1] * 6]], [[[1] * 6 + [0] * 6]])
        places = (prompts.points * SIDE / SIZE).long()
        targets = batch_of(samples, "scribble", seed=seed).targets
        for image in range(3):
            under = targets[image, 0][places[image, 0, :, 1], places[image, 0, :, 0]]
            assert (under[:6] == 1).float().mean() > 0.8  # a cell holds four pixels
            assert (under[6:] == 0).float().mean() > 0.8 or len(under) == 6
    assert shapes == {(3, 1, 6, 2), (3, 1, 12, 2)}
    never = batch_of(samples, "scribble", scribble_outside=0.0).prompts
    assert never.points.shape == (3, 1, 8, 2)


@pytest.mark.parametrize("kind", ["scribble", "mask"])
def test_drawings_take_the_place_of_annotated_prompts(kind):
    boxes = np.array([[59, 3, 81, 17]], np.float32)
    annotated = one_object((50, 100), slice(4, 16), slice(60, 80), boxes=boxes)
    plain = one_object((50, 100), slice(4, 16), slice(60, 80))
    prompts = batch_of([annotated, plain], kind).prompts
    assert prompts.boxes is None
    assert (prompts.masks is None) == (kind == "scribble")
    assert (prompts.points is None) == (kind == "mask")


def test_images_with_boxes_go_with_images_with_points():
    boxes = np.array([[59, 3, 81, 17]], np.float32)
    points = np.array([[70, 10], [5, 5]], np.float32)
    with_boxes = one_object((50, 100), slice(4, 16), slice(60, 80), boxes=boxes)
    with_points = one_object(
        (50, 100), slice(4, 16), slice(60, 80), points=points, point_labels=np.array([1, 0])
    )
    prompts = batch_of([with_boxes, with_points]).prompts
    assert prompts.boxes.shape == (2, 1, 4)
    assert prompts.boxes[1, 0].tolist() == pytest.approx(
        [60 * 0.64, 4 * 0.64, 80 * 0.64, 16 * 0.64]
    )
    assert prompts.point_labels.tolist() == [[[-1, -1]], [[1, 0]]]
    unannotated = one_object((50, 100), slice(4, 16), slice(60, 80))
    prompts = batch_of([with_boxes, unannotated], "point").prompts
    assert prompts.boxes.shape == (2, 1, 4)
    assert prompts.point_labels.tolist() == [[[-1]], [[1]]]


@given(st.integers(1, 23), st.integers(1, 7), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_an_epoch_visits_each_index_once_and_resumes(length, size, seed):
    sampler = Sampler(length, size, seed)
    drawn = [index for _ in range(3 * length) for index in sampler.next()]
    for epoch in range(3 * size):
        part = drawn[epoch * length : (epoch + 1) * length]
        assert sorted(part) == list(range(length))
    other = Sampler(length, size, seed)
    other.drawn = 2 * size
    assert other.next() == drawn[2 * size : 3 * size]


def test_epochs_and_seeds_differ():
    first = [i for _ in range(2) for i in Sampler(50, 50, 0).next()]
    sampler = Sampler(50, 50, 0)
    epochs = sampler.next(), sampler.next()
    assert epochs[0] == first[:50]
    assert epochs[0] != epochs[1]
    assert Sampler(50, 50, 1).next() != epochs[0]


def test_processes_share_an_epoch_without_overlap(monkeypatch):
    shards = [Sampler(24, 6, 5) for _ in range(3)]

    def share_of(rank):
        monkeypatch.setattr(processes, "_place", Place(rank, 3))
        return shards[rank].next()

    together = [[share_of(rank) for rank in range(3)] for _ in range(4)]
    monkeypatch.undo()
    everything = [index for step in together for part in step for index in part]
    assert sorted(everything) == list(range(24))
    alone = Sampler(24, 6, 5)
    for step in together:
        assert sorted(i for part in step for i in part) == sorted(alone.next())
    assert [shard.drawn for shard in shards] == [24] * 3


@pytest.mark.parametrize("kind", ["box", "point", "semantic"])
def test_targets_are_unknown_at_ignored_pixels(kind):
    sample = one_object((SIZE // 2, SIZE // 2), slice(4, 12), slice(6, 20))
    sample.labels[10:20, 3:30] = IGNORED
    target = batch_of([sample], kind).targets[0]
    assert set(target.unique().tolist()) == {IGNORED, 0, 1}
    np.testing.assert_array_equal(target.reshape(sample.labels.shape).numpy(), sample.labels)


MEMBERS = np.array([[0, 1, 1, 1], [0, 1, 0, 1]], bool)  # whole: 1, 2, 3; core: 1, 3


def nested(**changes):
    """Value 2 surrounds 1, and 3 lies elsewhere; ``MEMBERS`` makes regions of them."""
    sample = one_object((SIZE // 2, SIZE // 2), slice(2, 14), slice(3, 15), members=MEMBERS)
    sample.labels[sample.labels > 0] = 2
    sample.labels[5:9, 6:10] = 1
    sample.labels[20:26, 20:28] = 3
    return replace(sample, **changes)


def test_regions_are_objects_each():
    batch = batch_of([nested()], "box", jitter=0.0)
    boxes = (batch.prompts.boxes[0] / 2).round().int().tolist()  # back to the picture's pixels
    expected = {(3, 2, 15, 14), (20, 20, 28, 26), (6, 5, 10, 9)}  # the second is whole and core
    assert {tuple(box) for box in boxes} == expected
    assert len(boxes) == 4
    for (x0, y0, x1, y1), target in zip(boxes, batch.targets[0], strict=True):
        mask = torch.zeros(SIDE, SIDE, dtype=torch.int64)
        mask[y0:y1, x0:x1] = 1
        assert torch.equal(target, mask)


def test_semantic_targets_of_regions_are_planes():
    sample = nested(known=np.array([True, False]))
    sample.labels[0] = IGNORED
    targets = batch_of([sample], "semantic").targets
    assert targets.shape == (1, 2, SIDE, SIDE)
    np.testing.assert_array_equal(targets[0, 0, 1:].numpy(), (sample.labels > 0)[1:])
    assert (targets[0, 0, 0] == IGNORED).all()
    assert (targets[0, 1] == IGNORED).all()


@pytest.mark.parametrize("kind", ["box", "point"])
def test_a_class_that_is_not_annotated_is_not_prompted(kind):
    sample = nested(known=np.array([False, True]))
    batch = batch_of([sample], kind)
    assert len(batch.targets[0]) == 2  # the two parts of the core
    given = replace(
        nested(known=np.array([True, False])),
        boxes=np.array([[3, 2, 15, 14], [6, 5, 10, 9]], np.float32),
        prompt_classes=np.array([1, 2]),
    )
    assert given_prompts(given).class_ids.tolist() == [1]
    assert batch_of([given]).prompts.boxes.shape == (1, 1, 4)


def test_annotated_objects_start_with_their_box_or_a_point_of_their_truth():
    boxes = np.array([[59, 3, 81, 17], [2, 30, 12, 40]], np.float32)
    sample = one_object((50, 100), slice(4, 16), slice(60, 80), boxes=boxes)
    sample = replace(sample, prompt_classes=np.array([1, 1]))  # the second box is empty
    batch = batch_of([sample], "interactive")
    order = batch.prompts.boxes[0, :, 0].argsort(descending=True)
    given = batch.prompts.boxes[0, order] * 100 / SIZE
    assert np.allclose(given, boxes, atol=1e-3)  # without noise, as they were drawn
    labels = batch.prompts.point_labels[0, order, 0].tolist()
    assert labels == [1, -1]
    x, y = (batch.prompts.points[0, order][0, 0] * 100 / SIZE).tolist()
    assert 60 < x < 80
    assert 4 < y < 16
    assert batch.round_count == 11
    assert batch_of([sample], "box").round_count == 1


def test_points_are_padded_as_in_all_processes(monkeypatch):
    """A point that is none is a token too, so it must not depend on who else is in the process."""
    sample = one_object((SIZE // 2, SIZE // 2), slice(4, 12), slice(6, 20))
    alone = batch_of([sample], "point").prompts
    monkeypatch.setattr(processes, "gather", lambda own: [own, 3] if own == 1 else [own])
    padded = batch_of([sample], "point").prompts
    assert padded.points.shape == (1, 1, 3, 2)
    assert padded.point_labels.tolist() == [[[1, -1, -1]]]
    assert torch.equal(padded.points[:, :, :1], alone.points)
