"""Decoding packed prompts equals decoding one prompt of one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.errors import ConfigError, PromptError
from samadapt.sam import decode
from samadapt.sam.embed import embed
from samadapt.sam.geometry import make_frame, to_model_boxes, to_model_points
from samadapt.sam.types import ImagePrompts, Prompts

SHAPES = [(40, 30), (64, 64), (25, 90)]


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]


def objects(boxes=None, points=None, point_labels=None, class_ids=None):
    boxes = None if boxes is None else np.array(boxes, np.float32).reshape(-1, 4)
    points = None if points is None else np.array(points, np.float32)
    count = len(boxes if boxes is not None else points)
    ids = np.ones(count, np.int64) if class_ids is None else np.array(class_ids)
    labels = None if points is None else np.array(point_labels)
    return ImagePrompts(ids, None, boxes, points, labels)


def one_by_one(sam, embedding, frame, prompts, threshold=0.0):
    """Return the labels from a plain loop over the prompts of one image."""
    best = np.full(frame.original, threshold)
    labels = np.zeros(frame.original, np.uint8)
    for index in range(len(prompts)):
        given = {}
        if prompts.boxes is not None:
            boxes = to_model_boxes(prompts.boxes[index], frame)
            given["boxes"] = torch.tensor(boxes, dtype=torch.float32)[None, None]
        if prompts.points is not None:
            points = to_model_points(prompts.points[index], frame)
            given["points"] = torch.tensor(points, dtype=torch.float32)[None, None]
            given["point_labels"] = torch.tensor(prompts.point_labels[index])[None, None]
        with torch.no_grad():
            low = sam.decode(embedding[None], Prompts(**given), multimask=False).logits
        logits = sam.postprocess(low, frame)[0, 0, 0].numpy()
        labels = np.where(logits > best, prompts.class_ids[index], labels)
        best = np.maximum(best, logits)
    return labels


def label_maps(sam, embeddings, frames, prompts, **options):
    found = decode.segment_objects(sam, embeddings, frames, prompts, **options)
    return [item.class_ids_at(numbers) for item, (numbers, _) in zip(prompts, found, strict=True)]


def test_objects_of_many_images_equal_a_loop_over_prompts(any_sam, images, monkeypatch):
    monkeypatch.setattr(decode, "OBJECTS_PER_DECODE", 6)
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 12, (9, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 15, (9, 2))], axis=1)
    points, labels = rng.uniform(2, 24, (9, 3, 2)), rng.integers(0, 2, (9, 3))
    prompts = [
        objects(boxes, class_ids=[1, 2, 3, 1, 2, 3, 1, 2, 3]),  # more than one decoder call holds
        objects(boxes[:2], class_ids=[2, 1]),
        objects(np.zeros((0, 4))),
        objects(points=points[:2], point_labels=labels[:2]),
        objects(points=points[:1, :1], point_labels=[[1]]),
        objects(boxes[:3], points[:3], labels[:3], [1, 2, 3]),
    ]
    six = [images[index % 3] for index in range(6)]
    embeddings, frames = embed(any_sam, six)
    calls = []
    plain = type(any_sam).decode

    def counted(self, embeddings, prompts, *, multimask):
        calls.append(len(embeddings) * prompts.count)
        assert not multimask
        return plain(self, embeddings, prompts, multimask=multimask)

    monkeypatch.setattr(type(any_sam), "decode", counted)
    found = label_maps(any_sam, embeddings, frames, prompts)
    assert max(calls) <= 6
    assert len(calls) <= 6  # of 17 prompts
    monkeypatch.undo()
    assert any(labels.any() for labels in found)
    assert not found[2].any()
    for index, labels in enumerate(found):
        expected = one_by_one(any_sam, embeddings[index], frames[index], prompts[index])
        assert (labels != expected).mean() < 2e-3, index


def test_threshold_moves_the_edge(tiny_sam, images):
    embeddings, frames = embed(tiny_sam, images[:1])
    box = [objects([[5, 5, 25, 30]])]
    areas = [
        int(label_maps(tiny_sam, embeddings, frames, box, threshold=t)[0].sum())
        for t in (-1e9, 0.0, 1e9)
    ]
    assert areas[0] == SHAPES[0][0] * SHAPES[0][1]
    assert areas[0] > areas[1] > areas[2] == 0


def test_semantic_is_the_argmax_with_background_at_zero(any_sam, images):
    embeddings, frames = embed(any_sam, images)
    found = decode.segment_semantic(any_sam, embeddings, frames, 2)
    for index, (labels, frame) in enumerate(zip(found, frames, strict=True)):
        with torch.no_grad():
            output = any_sam.decode(embeddings[index : index + 1], Prompts(), multimask=True)
        logits = any_sam.postprocess(output.logits, frame)[0, 0, :2].numpy()
        expected = np.concatenate([np.zeros_like(logits[:1]), logits]).argmax(axis=0)
        assert labels.shape == frame.original
        assert (labels != expected).mean() < 2e-3
    assert len(np.unique(np.concatenate([labels.ravel() for labels in found]))) > 1
    with pytest.raises(ConfigError, match="got 3 tokens for 4 classes"):
        decode.segment_semantic(any_sam, embeddings, frames, 4)


def test_a_background_token_is_one_of_the_argmax(tiny_sam, images):
    embeddings, frames = embed(tiny_sam, images)
    found = decode.segment_semantic(tiny_sam, embeddings, frames, 3, background_token=True)
    for index, (labels, frame) in enumerate(zip(found, frames, strict=True)):
        each = []
        for multimask in (False, True):
            with torch.no_grad():
                output = tiny_sam.decode(
                    embeddings[index : index + 1], Prompts(), multimask=multimask
                )
            each.append(tiny_sam.postprocess(output.logits, frame)[0, 0])
        assert (labels != torch.cat(each).argmax(dim=0).numpy()).mean() < 2e-3
        assert len(np.unique(labels)) > 1


@given(st.lists(st.integers(1, 3), max_size=3), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_where_objects_overlap_the_higher_logit_wins(counts, seed):
    """The objects come in several parts, so that not all masks are in memory at once."""
    rng = np.random.default_rng(seed)
    parts = [torch.tensor(rng.normal(size=(count, 4, 5))) for count in counts]
    numbers = decode.merge_objects(parts, (4, 5), 0.3)
    assert numbers.shape == (4, 5)
    together = np.concatenate([np.full((1, 4, 5), 0.3), *parts])
    assert np.array_equal(numbers, together.argmax(axis=0))


@pytest.mark.parametrize("kind", ["boxes", "points"])
def test_each_object_may_be_an_item_of_its_own(any_sam, images, kind):
    """The oracle gap decodes items of several images; item i belongs to image ``owner[i]``."""
    embeddings, frames = embed(any_sam, images)
    rng, owner = np.random.default_rng(4), [2, 0, 0, 1]
    items = []
    for number in range(4):
        corner = rng.uniform(0, 10, 2)
        if kind == "boxes":
            items.append(objects([[*corner, *(corner + 12)]], class_ids=[1 + number % 2]))
        else:
            items.append(objects(None, [[corner]], [[1]], [1 + number % 2]))
    best = decode.object_logits(any_sam, embeddings, frames, items, images=owner, multimask=True)
    tokens = decode.object_logits(
        any_sam, embeddings, frames, items, images=owner, token_of_class=True
    )
    for item, image, first, second in zip(items, owner, best, tokens, strict=True):
        given = decode.to_tensors([item], [frames[image]], 4 * any_sam.embedding_size)
        with torch.no_grad():
            output = any_sam.decode(embeddings[image : image + 1], given, multimask=True)
        choices = int(output.iou[0, 0].argmax()), int(item.class_ids[0]) - 1
        for (logits, iou), token in zip((first, second), choices, strict=True):
            torch.testing.assert_close(
                logits[0, 0], output.logits[0, 0, token], atol=1e-4, rtol=1e-4
            )
            torch.testing.assert_close(iou[0], output.iou[0, 0, token], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (ImagePrompts(np.ones(1, int)), "1 objects need boxes, points or masks"),
        (ImagePrompts(np.ones(1, int), masks=np.zeros((2, 4, 5), bool)), r"masks must be \(1, h"),
        (ImagePrompts(np.ones(1, int), boxes=np.zeros((2, 4))), r"boxes must be \(1, 4\)"),
        (ImagePrompts(np.ones(1, int), points=np.zeros((1, 2, 2))), "given together"),
        (
            ImagePrompts(np.ones(1, int), None, None, np.zeros((1, 2)), np.zeros(1)),
            r"points must be \(1, k, 2\)",
        ),
        (
            ImagePrompts(np.ones(1, int), None, None, np.zeros((1, 2, 2)), np.zeros((1, 3))),
            r"point_labels must be \(1, 2\)",
        ),
        (ImagePrompts(np.zeros(1, int), boxes=np.zeros((1, 4))), "class_ids must be 1 to 255"),
    ],
)
def test_wrong_prompts_are_refused_naming_the_image(tiny_sam, images, prompts, message):
    embeddings, frames = embed(tiny_sam, images[:2])
    right = objects([[1, 1, 9, 9]])
    with pytest.raises(PromptError, match=f"image 1: .*{message}"):
        decode.segment_objects(tiny_sam, embeddings, frames, [right, prompts])
    with pytest.raises(PromptError, match="got 2, 2 and 1"):
        decode.segment_objects(tiny_sam, embeddings, frames, [right])


@pytest.mark.parametrize("count", [0, 1, 32, 33, 70])
def test_any_number_of_objects_is_merged_as_if_at_once(any_sam, count):
    frame = make_frame((23, 31), any_sam.image_size)
    side = 4 * any_sam.embedding_size
    low = torch.randn(count, 1, side, side, generator=torch.manual_seed(0))
    found = decode.object_numbers(any_sam, low, frame, 0.5)
    assert found.shape == (23, 31)
    if not count:
        assert not found.any()
        return
    planes = any_sam.postprocess(low[None], frame)[0, :, 0].numpy()
    expected = np.where(planes.max(0) > 0.5, planes.argmax(0) + 1, 0)
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 1
