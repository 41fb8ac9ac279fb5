"""Objects carried from slice to slice, against volumes whose truth is known."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.errors import PromptError
from samadapt.inference.propagate import Propagation, Walk, plan_walks
from samadapt.prompts.policy import PromptPolicy
from samadapt.prompts.simulate import boxes_of
from samadapt.sam.geometry import make_frame
from samadapt.sam.types import ImagePrompts, MaskOutput

from .conftest import Oracle

DEPTH = 14


def objects_of(numbers):
    return ImagePrompts(np.ones(len(numbers), int), object_numbers=np.array(numbers, int))


@given(
    st.lists(st.sets(st.integers(0, 11), min_size=1, max_size=4), min_size=1, max_size=3),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_nearest_prompted_slice_leads(starts, bounded):
    low, high = (min(map(min, starts)), max(map(max, starts))) if bounded else (0, 11)
    prompts = {
        index: objects_of([k for k, held in enumerate(starts, 1) if index in held])
        for index in range(12)
    }
    up, down = plan_walks(prompts, 12, [low, high] if bounded else None)
    for number, held in enumerate(starts, start=1):
        led = {}
        for walk in up + down:
            if walk.number == number:
                way = range(min(walk.start, walk.limit), max(walk.start, walk.limit) + 1)
                for index in way:
                    assert led.setdefault(index, walk.start) == walk.start
        for index in range(low, high + 1):
            assert led[index] == min(sorted(held), key=lambda start: abs(start - index))
        assert set(led) == set(range(low, high + 1))


@pytest.fixture
def tubes(tmp_path):
    """Two tubes that drift across the slices of an axial volume; one ends and one begins."""
    planes = np.zeros((DEPTH, 15, 9), dtype=np.int16)  # (z, row, column)
    for z in range(2, 10):
        planes[z, 1 + z // 2 : 5 + z // 2, 1:4] = 1
    for z in range(4, 13):
        planes[z, 10 - z // 3 : 13 - z // 3, 5:8] = 2
    # upright slices: rows from anterior to posterior, columns from the patient's right to left
    labels = planes[:, ::-1, ::-1].transpose(2, 1, 0)
    path = tmp_path / "tubes.nii"
    image = labels * 85
    image[0, 0] = np.arange(DEPTH) + 1  # no two slices are alike
    nib.save(nib.Nifti1Image(image, np.diag([1.0, 1, 3, 1])), path)
    return path, labels, planes


def box_on(planes, z, value):
    return boxes_of((planes[z] == value)[None])[0].tolist()


@pytest.mark.parametrize("carry", ["prompt", "mask", "both"])
@pytest.mark.parametrize("kind", ["box", "point"])
def test_two_objects_both_ways_and_no_slice_embedded_twice(make_oracle, tubes, kind, carry):
    path, labels, planes = tubes
    segmenter = make_oracle(kind, classes=["x", "y"])
    first, second = box_on(planes, 8, 1), box_on(planes, 5, 2)
    if kind == "box":
        given = {"boxes": {8: [first], 5: [None, second]}}
    else:
        middles = [[[(b[0] + b[2]) / 2, (b[1] + b[3]) / 2]] for b in (first, second)]
        given = {"points": {8: [middles[0]], 5: [None, middles[1]]}}
    found = segmenter.segment(path, **given, labels=["y", "x"], propagate=True, carry=carry)
    assert np.array_equal(found, np.array([0, 2, 1])[labels])
    seen = [image.numpy().tobytes() for image in segmenter.sam.seen]
    assert len(set(seen)) == len(seen) == len(range(1, 14))  # with a slice beyond each end


def test_a_mask_of_specks_alone_is_carried_by_one_box(make_oracle, tmp_path):
    labels = np.zeros((44, 44, 5), dtype=np.int16)
    for row, column in np.ndindex(2, 2):
        labels[2 + row : 44 : 6, 2 + column : 44 : 6] = 1  # 49 specks of four pixels
    image = labels * 85
    image[0, 0] = np.arange(5) + 1
    nib.save(nib.Nifti1Image(image, np.diag([1.0, 1, 3, 1])), tmp_path / "specks.nii")
    segmenter = make_oracle("box", classes=["x"])
    found = segmenter.segment(tmp_path / "specks.nii", boxes={2: [[0, 0, 44, 44]]}, propagate=True)
    assert found[:, :, 2].any()
    assert found[:, :, 4].any()


def test_without_propagation_the_other_slices_stay_empty(make_oracle, tubes):
    path, labels, planes = tubes
    segmenter = make_oracle("box", classes=["x", "y"])
    found = segmenter.segment(path, boxes={5: [None, box_on(planes, 5, 2)]}, labels="y")
    assert np.array_equal(found[:, :, 5], np.where(labels == 2, 2, 0)[:, :, 5])
    assert not found[:, :, [*range(5), *range(6, DEPTH)]].any()


class Boxed(Oracle):
    """A model that returns which pixels inside a box are not black."""

    def decode(self, embeddings, prompts, *, multimask):
        y, x = torch.meshgrid(*2 * [torch.arange(45) + 0.5], indexing="ij")
        x0, y0, x1, y1 = prompts.boxes[..., None, None].unbind(2)
        inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
        logits = torch.where(inside & (embeddings > 0), 1.0, -1.0)[:, :, None]
        return MaskOutput(logits, logits.mean((-2, -1)))


@pytest.mark.parametrize(("objects", "caught"), [("component", False), ("class", True)])
def test_each_part_of_an_object_gets_its_own_prompt(make_oracle, tmp_path, objects, caught):
    planes = np.zeros((4, 15, 15), dtype=np.int16)
    planes[:, 2:13, 1:4] = planes[:, 2:6, 11:14] = 1
    other = planes.copy()
    other[1:, 9:12, 8:11] = 1  # in the box around both parts, and in neither's
    labels, image = (a[:, ::-1, ::-1].transpose(2, 1, 0) for a in (planes, other))
    path = tmp_path / "parts.nii"
    nib.save(nib.Nifti1Image(image * 85, np.diag([1.0, 1, 3, 1])), path)
    segmenter = make_oracle("box", classes=["x"], sam=Boxed(), objects=objects)
    found = segmenter.segment(path, boxes={0: [[1, 2, 14, 13]]}, propagate=True)
    assert np.array_equal(found, image if caught else labels)


def test_given_bounds_end_the_walk(make_oracle, tubes):
    path, labels, planes = tubes
    segmenter = make_oracle("box", classes=["x"])
    found = segmenter.segment(
        path, boxes={6: [box_on(planes, 6, 1)]}, propagate=True, slices=[4, 7]
    )
    expected = np.where(labels == 1, 1, 0)
    expected[:, :, :4] = expected[:, :, 8:] = 0
    assert np.array_equal(found, expected)
    assert len(segmenter.sam.seen) == 4


def test_an_object_ends_where_little_of_it_is_left(make_oracle, tmp_path):
    planes = np.zeros((9, 15, 15), dtype=np.int16)
    for z, side in enumerate([2, 3, 5, 9, 11, 9, 5, 3, 2]):
        planes[z, 7 - side // 2 : 7 - side // 2 + side, 7 - side // 2 : 7 - side // 2 + side] = 1
    labels = planes[:, ::-1, ::-1].transpose(2, 1, 0)
    path = tmp_path / "cone.nii"
    nib.save(nib.Nifti1Image(labels * 85, np.diag([1.0, 1, 3, 1])), path)
    for share, kept in [(0.0, 9), (0.05, 7), (0.1, 5), (0.5, 3)]:  # of 121 pixels
        found = make_oracle("box", classes=["x"]).segment(
            path, boxes={4: [[2, 2, 13, 13]]}, propagate=True, vanish=share
        )
        assert int(found.any(axis=(0, 1)).sum()) == kept


def test_an_object_that_is_not_there_gives_nothing(make_oracle, tubes):
    path, _, _ = tubes
    found = make_oracle("box", classes=["x"]).segment(
        path, boxes={0: [[1, 1, 8, 14]]}, propagate=True
    )
    assert not found.any()


class Disks(Oracle):
    """A model that returns a disk in each box; it is surer of the object on the right."""

    def decode(self, embeddings, prompts, *, multimask):
        centre = ((prompts.boxes[..., :2] + prompts.boxes[..., 2:]) / 2)[..., None, None]
        y, x = torch.meshgrid(*2 * [torch.arange(45) + 0.5], indexing="ij")
        near = (x - centre[:, :, 0]) ** 2 + (y - centre[:, :, 1]) ** 2 < 12**2
        sure = torch.where(centre[:, :, 0] > 22, 2.0, 1.0)
        logits = torch.where(near, sure, -1.0)[:, :, None]
        return MaskOutput(logits, logits.mean((-2, -1)))


def test_where_objects_from_both_ends_meet_the_higher_logit_wins(make_oracle, tmp_path):
    path = tmp_path / "flat.nii"
    nib.save(nib.Nifti1Image(np.ones((15, 15, 6), np.int16), np.diag([1.0, 1, 3, 1])), path)
    segmenter = make_oracle("box", classes=["x", "y"], sam=Disks())
    left, right = [3, 5, 7, 9], [8, 5, 12, 9]
    found = segmenter.segment(
        path, boxes={0: [left], 5: [None, right]}, labels=["x", "y"], propagate=True
    )
    together = segmenter.segment(path, boxes={2: [left, right]}, labels=["x", "y"])
    expected = together[:, :, 2]
    assert set(np.unique(expected)) == {0, 1, 2}
    assert all(np.array_equal(found[:, :, z], expected) for z in range(6))


def test_progress_counts_to_its_end(make_oracle, tubes):
    path, _, planes = tubes
    said = []
    make_oracle("box", classes=["x"]).segment(
        path,
        boxes={6: [box_on(planes, 6, 1)]},
        propagate=True,
        progress=lambda done, total: said.append((done, total)),
    )
    assert said == [(n, DEPTH) for n in range(1, DEPTH + 1)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"boxes": [[1, 1, 5, 5]]}, r"boxes=\{12: "),
        ({"boxes": {3: [[1, 1, 5, 5]]}, "slices": [4, 8]}, r"must hold every prompted slice"),
        ({"boxes": {3: [[1, 1, 5, 5]]}, "slices": [4]}, r"\[first, last\].*0 to 13; got \[4\]"),
        ({"boxes": {3: [[1, 1, 5, 5]]}, "slices": [0, 14]}, r"0 to 13"),
        ({"boxes": {3: [[1, 1, 5, 5]]}, "carry": "box"}, "carry must be prompt, mask, both"),
        ({"boxes": {3: [[1, 1, 5, 5]]}, "vanish": 1.5}, "vanish must be a share"),
        ({"boxes": {3: [[1, 1, 5, 5]]}, "labels": ["z"]}, "no class 'z'"),
        ({"boxes": {99: [[1, 1, 5, 5]]}}, r"slice indices must be 0 to 13"),
    ],
)
def test_what_cannot_be_carried_says_why(make_oracle, tubes, given, message):
    segmenter = make_oracle("box", classes=["x"])
    with pytest.raises(PromptError, match=message):
        segmenter.segment(tubes[0], **given, propagate=True)
    assert not segmenter.sam.seen


def test_a_picture_has_no_slices_to_go_to(make_oracle):
    image = np.zeros((9, 15), dtype=np.uint8)
    segmenter = make_oracle("box", classes=["x"])
    with pytest.raises(PromptError, match="this is one image"):
        segmenter.segment(image, boxes=[[1, 1, 5, 5]], propagate=True)
    with pytest.raises(PromptError, match="bounds propagate=true"):
        segmenter.segment(image, boxes=[[1, 1, 5, 5]], slices=[0, 0])
    with pytest.raises(PromptError, match="trained without prompts"):
        make_oracle().segment(image, propagate=True)


def test_a_mask_that_is_given_back_is_not_ambiguous(make_oracle):
    """Of several masks for a point the surest is taken; with the last mask there is one answer."""
    seen = []

    class Spy(Oracle):
        def decode(self, embeddings, prompts, *, multimask):
            seen.append(multimask)
            return super().decode(embeddings, prompts, multimask=multimask)

    sam = Spy()
    frame = make_frame((9, 9), sam.image_size)
    point = {"points": np.array([[[4.5, 4.5]]], np.float32), "point_labels": np.ones((1, 1), int)}
    for masks in (None, np.zeros((1, 1, 44, 44), np.float32)):
        prompts = ImagePrompts(np.ones(1, int), **point, mask_logits=masks)
        propagation = Propagation(
            sam, lambda indices: (torch.ones(len(indices), 1, 45, 45), [frame] * len(indices)),
            PromptPolicy("point"), 0.0,
        )  # fmt: skip
        list(propagation({0: prompts}, [Walk(1, 0, 0)], [Walk(1, 0, 0)]))
    assert seen == [True, False]
