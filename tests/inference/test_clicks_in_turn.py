"""Several prompts of an object are answered as in training: one after another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from samadapt.inference.clicks_in_turn import answers_to_prompts
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.decode import object_logits
from samadapt.sam.embed import embed
from samadapt.sam.types import ImagePrompts
from samadapt.sam.weights.loading import load_sam


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return load_sam("tiny")


def prompts(points, labels, **more):
    count = len(points)
    return ImagePrompts(
        np.ones(count, np.int64),
        points=np.array(points, np.float32),
        point_labels=np.array(labels, np.int64),
        **more,
    )


@pytest.mark.parametrize("disks", [False, True])
def test_each_click_comes_with_the_answer_to_those_before(sam, disks):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (30, 40, 3), dtype=np.uint8) for _ in range(2)]
    embeddings, frames = embed(sam, images)
    policy = PromptPolicy("interactive", click_disks=disks)
    items = [
        prompts([[[5, 6], [20, 20], [30, 8]]], [[1, 0, 1]]),
        prompts([[[9, 9]], [[30, 20]]], [[1], [0]], boxes=np.array([[2, 3, 20, 20]] * 2, "f4")),
    ]
    found = answers_to_prompts(sam, embeddings, frames, items, policy, multimask=None)

    def decode(image, item):
        ((logits, _),) = object_logits(
            sam,
            embeddings[image : image + 1],
            [frames[image]],
            [item],
            multimask=None,
            click_disks=disks,
        )
        return logits

    by_hand = decode(0, prompts([[[5, 6]]], [[1]]))
    for count in (2, 3):
        shown = replace(
            items[0],
            points=items[0].points[:, :count],
            point_labels=items[0].point_labels[:, :count],
            mask_logits=by_hand.numpy(),
        )
        by_hand = decode(0, shown)
    assert torch.allclose(found[0][0], by_hand, atol=1e-5)
    box = decode(1, replace(items[1], points=None, point_labels=None))
    by_hand = decode(1, replace(items[1], mask_logits=box.numpy()))
    assert torch.allclose(found[1][0], by_hand, atol=1e-5)
    # A model that was not trained with clicks, or one that has its mask already, answers once.
    plain = PromptPolicy("point", click_disks=disks)
    ((once, _),) = answers_to_prompts(
        sam, embeddings[:1], frames[:1], items[:1], plain, multimask=True
    )
    ((direct, _),) = object_logits(
        sam, embeddings[:1], frames[:1], items[:1], multimask=True, click_disks=disks
    )
    assert torch.equal(once, direct)


def test_no_objects_have_no_answers(sam):
    embeddings, frames = embed(sam, [np.zeros((20, 20, 3), np.uint8)])
    nothing = prompts(np.zeros((0, 2, 2)), np.zeros((0, 2)))
    ((logits, iou),) = answers_to_prompts(
        sam, embeddings, frames, [nothing], PromptPolicy("interactive"), multimask=None
    )
    assert len(logits) == len(iou) == 0
    assert answers_to_prompts(sam, embeddings, frames, [], PromptPolicy(), multimask=None) == []
