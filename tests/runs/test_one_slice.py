"""Ways of carrying objects: pixels of each object on each slice, as a walk written out finds."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from samadapt.data.types import IGNORED, Sample, SliceRef
from samadapt.evaluation.evaluate import SlicePredictor
from samadapt.inference.propagate import plan_walks
from samadapt.inference.spool import Spool
from samadapt.prompts.policy import PromptPolicy
from samadapt.runs.one_slice import PromptedVolume, ways_of
from samadapt.sam.embed import to_pixels
from samadapt.sam.weights.loading import load_sam

SIDE, DEPTH, FIRST = 32, 6, 2


@pytest.fixture(scope="module")
def sam():
    """The random SAM 2 with a memory, which finds an object wherever it is asked for one."""
    found = load_sam("tiny_h")
    found.mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(50.0)
    return found


@pytest.fixture
def volume(sam):
    """Slices 2 to 7, the fifth of them not scored; an object on the first two and one on one."""
    rng, labels = np.random.default_rng(0), np.zeros((DEPTH, SIDE, SIDE), np.int16)
    labels[:2, 4:30, 6:26] = 1
    labels[3, 8:20, 8:20] = 2
    labels[5, :4] = IGNORED
    samples = {}
    for place, plane in enumerate(labels):
        image = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
        samples[FIRST + place] = Sample("a", FIRST + place, image, plane)
    seen = []

    def pixels(images):
        seen.extend(images)
        return to_pixels(sam, images)

    data = SimpleNamespace(classes=["one", "two"], sample=lambda ref: samples[ref.index])
    predictor = SlicePredictor(
        sam=sam,
        first_trainable_block=-1,
        features=pixels,
        policy=PromptPolicy("box"),
        classes=2,
        autocast=nullcontext,
    )
    refs = [SliceRef("a", FIRST + place) for place in (0, 1, 2, 3, 5)]
    with Spool() as spool:
        yield PromptedVolume(data, predictor, refs, spool), seen


def test_each_way_scores_every_object_and_a_slice_is_embedded_once(volume, sam):
    prompted, seen = volume
    assert ways_of(sam) == ["prompt", "mask", "memory"]
    found = {way: prompted.scores(way) for way in ways_of(sam)}
    assert len(seen) == DEPTH  # the slice that is not scored is passed too
    for way, scores in found.items():
        assert [(one.way, one.case, one.class_name, one.number) for one in scores] == [
            (way, "a", "one", 1),
            (way, "a", "two", 2),
        ]
        assert [one.slice_index for one in scores] == [FIRST + 1, FIRST + 3]
        assert [one.outside for one in scores] == [3, 4]
        # What the prompt finds does not depend on what follows.
        assert [one.dice[0] for one in scores] == [one.dice[0] for one in found["prompt"]]
    walked = [tuple(one.dice[1] for one in scores[:1]) for scores in found.values()]
    assert len(set(walked)) > 1
    # This model finds the object everywhere by memory, so it leaks on every slice outside.
    assert [one.leaked for one in found["memory"]] == [3, 4]


def test_pixels_are_those_of_the_masks(volume):
    prompted, _ = volume
    one = prompted.objects[0]
    masks = {}
    walks = prompted._propagation("memory")
    up, down = plan_walks({one.middle: one.prompt}, DEPTH, None)
    for index, logits in walks({one.middle: one.prompt}, up, down):
        masks[index] = prompted._masks([logits[one.number]])[0]
    (score, _) = prompted.scores("memory")
    both = (masks[1] & one.on(1)).sum()
    assert score.dice[0] == pytest.approx(2 * both / (masks[1].sum() + one.on(1).sum()))
    pixels = masks[2].sum() + masks[3].sum() + masks[5][4:].sum()  # not the ignored rows
    assert score.leaked_pixels == pixels


def test_models_without_a_memory_have_two_ways(tiny_sam):
    assert ways_of(tiny_sam) == ["prompt", "mask"]
