"""Volumes that are predicted from one prompted slice: the masks of a walk written out by hand."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from samadapt.data.types import Sample, SliceRef
from samadapt.evaluation.evaluate import SlicePredictor, evaluate_cases
from samadapt.prompts.policy import PromptPolicy
from samadapt.runs.carried_objects import carry_objects
from samadapt.runs.run_slices import carried_through
from samadapt.sam.embed import embed, frame_of, to_pixels
from samadapt.sam.geometry import to_model_boxes
from samadapt.sam.tracking import Tracker
from samadapt.sam.types import Prompts
from samadapt.sam.video_memory import MemoryBank
from samadapt.sam.weights.loading import load_sam

DEPTH, FIRST = 4, 3
BOX = [4, 6, 26, 30]


@pytest.fixture(scope="module")
def sam():
    """The random SAM 2 with a memory, which finds an object wherever it is asked for one."""
    found = load_sam("tiny_h")
    found.mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(50.0)
    return found


@pytest.fixture
def slices():
    """Slices 3 to 6 of a case, of which 3 and 4 hold an object."""
    rng = np.random.default_rng(0)
    samples = []
    for index in range(FIRST, FIRST + DEPTH):
        labels = np.zeros((32, 32), np.int16)
        if index < FIRST + 2:
            labels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 1
        image = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        samples.append(Sample("a", index, image, labels))
    return samples


def predictor_of(sam, slices, **options):
    read = {SliceRef(one.case, one.index): one for one in slices}.__getitem__
    predictor = SlicePredictor(
        sam=sam,
        first_trainable_block=-1,
        features=partial(to_pixels, sam),
        policy=PromptPolicy("box", clip=2),
        classes=1,
        autocast=nullcontext,
        carry=partial(carry_objects, read=read),
        **options,
    )
    return predictor, read


@torch.no_grad()
def walked(sam, images, start):
    """The masks of a walk both ways from a box on one slice, by the tracker alone."""
    embeddings, frames = embed(sam, images)
    placed = torch.tensor(to_model_boxes(np.array([BOX], np.float32), frames[0]))[None].float()
    tracker = Tracker(sam, len(images))
    seed = tracker.prompted(embeddings[start][None], Prompts(boxes=placed), multimask=False)
    found = {start: seed.logits}
    for way in (range(start + 1, len(images)), range(start - 1, -1, -1)):
        bank = MemoryBank({start: seed.memory})
        for index in way:
            one = tracker.tracked(embeddings[index][None], bank, index, way.step)
            found[index] = one.logits
    frame = frame_of(sam, images[0])
    masks = [sam.postprocess(found[i][None], frame)[0, 0, 0] > 0 for i in range(len(images))]
    return np.stack(masks)


def test_an_object_is_prompted_once_and_carried_past_its_end(sam, slices):
    predictor, _ = predictor_of(sam, slices)
    labels = np.stack([one.labels[0] for one in predictor.carry(predictor, slices)])
    # The object has as many voxels on both slices, so its middle voxel is on the second.
    assert np.array_equal(labels > 0, walked(sam, [one.image for one in slices], 1))
    assert labels[2:].any()  # there the truth is empty


def test_slices_between_those_that_are_scored_are_passed_too(sam, slices):
    predictor, _ = predictor_of(sam, slices)
    scored = [slices[1], slices[3]]
    labels = [one.labels[0] > 0 for one in predictor.carry(predictor, scored)]
    masks = walked(sam, [one.image for one in slices[1:]], 0)
    assert np.array_equal(labels, masks[[0, 2]])


def test_classes_that_may_overlap_have_a_map_each(sam, slices):
    predictor, _ = predictor_of(sam, slices)
    alone = [one.labels[0] for one in predictor.carry(predictor, slices)]
    both = replace(predictor, classes=2, independent=True)
    found = both.carry(both, slices)
    assert all(one.labels.shape == (2, 32, 32) for one in found)
    assert np.array_equal([one.labels[0] for one in found], alone)
    assert not any(one.labels[1].any() for one in found)


def test_a_volume_is_scored_by_what_is_carried_through_it(sam, slices):
    predictor, read = predictor_of(sam, slices)
    refs = [SliceRef(one.case, one.index) for one in slices]
    scores = evaluate_cases(predictor, refs, read, ["one"], overlap_only=True)
    predicted = walked(sam, [one.image for one in slices], 1)
    truth = np.stack([one.labels > 0 for one in slices])
    dice = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
    assert scores.summary["dice"] == pytest.approx(dice)
    boxed = evaluate_cases(replace(predictor, carry=None), refs, read, ["one"], overlap_only=True)
    assert boxed.summary["dice"] != pytest.approx(dice)


def test_a_validation_goes_past_the_ends_of_objects():
    def refs(case, *indices):
        return [SliceRef(case, index) for index in indices]

    every = [*refs("a", *range(6)), *refs("b", *range(4))]
    data = SimpleNamespace(slices=lambda split, empty, step: every)
    found = carried_through(data, refs("a", 2, 3), refs("b", 1, 2))
    assert found == refs("b", *range(4))
    # A case that trains as well is left at the first and the last slice that was chosen.
    assert carried_through(data, refs("a", 5), refs("a", 1, 3)) == refs("a", 1, 2, 3)
