"""Means of probabilities, given as logits, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samadapt.sam.decode import OBJECTS_PER_DECODE, merge_objects, semantic_labels
from samadapt.sam.embed import frame_of
from samadapt.sam.mean_prediction import DecodedObjects, MeanLogits, object_means


def passes(count, classes=3, scale=4.0):
    generator = torch.Generator().manual_seed(count)
    return [scale * torch.randn(classes, 9, 7, generator=generator) for _ in range(count)]


def mean_of(each, *, exclusive):
    mean = MeanLogits(exclusive=exclusive)
    for logits in each:
        mean.add(logits)
    return mean


def softmax(logits):
    """With the background, whose logit is 0, first."""
    whole = np.concatenate([np.zeros_like(logits[:1]), logits]).astype(np.float64)
    powers = np.exp(whole - whole.max(0))
    return powers / powers.sum(0)


def entropy(probabilities):
    return -(probabilities * np.log(probabilities)).sum(0) / np.log(len(probabilities))


def test_exclusive_classes_have_the_mean_of_softmax():
    each = passes(3)
    expected = np.mean([softmax(one.numpy()) for one in each], axis=0)
    mean = mean_of(each, exclusive=True)
    assert np.allclose(mean.probabilities, expected[1:], atol=1e-6)
    labels = semantic_labels(mean.logits[None, None], 3)[0].numpy()
    assert np.array_equal(labels, expected.argmax(0))
    assert np.allclose(mean.entropy(), entropy(expected), atol=1e-6)
    single = np.mean([entropy(softmax(one.numpy())) for one in each], axis=0)
    information = mean.mutual_information()
    assert np.allclose(information, entropy(expected) - single, atol=1e-6)
    assert 0 < float(information.max()) <= float(mean.entropy().max()) <= 1


def test_overlapping_classes_have_the_mean_of_the_sigmoid():
    each = passes(2)
    expected = np.mean([1 / (1 + np.exp(-one.numpy().astype(float))) for one in each], axis=0)
    mean = mean_of(each, exclusive=False)
    assert np.allclose(mean.probabilities, expected, atol=1e-6)
    assert np.array_equal((mean.logits > 0).numpy(), expected > 0.5)
    bits = entropy(np.stack([1 - expected, expected]))
    assert np.allclose(mean.entropy(), bits.max(0), atol=1e-6)


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_mean_of_equal_passes_is_each_of_them(exclusive):
    """Also where a float has no number between the probability and 1."""
    logits = passes(1, scale=60.0)[0]
    assert bool((logits.sigmoid() == 1).any())
    mean = mean_of([logits, logits, logits], exclusive=exclusive)
    assert torch.allclose(mean.logits, logits, rtol=1e-6, atol=0)
    assert np.allclose(mean.mutual_information(), 0, atol=1e-9)
    alone = mean_of([logits], exclusive=exclusive)
    assert alone.logits is logits
    assert np.allclose(alone.entropy(), mean.entropy())
    assert not alone.mutual_information().any()


def test_the_mean_of_nothing_is_refused():
    with pytest.raises(RuntimeError, match="add the logits"):
        _ = MeanLogits(exclusive=True).logits


def test_a_certain_pixel_has_no_entropy_and_an_even_one_has_all():
    certain, even = torch.full((2, 1, 1), 900.0), torch.zeros(2, 1, 1)
    certain[1] = -900.0
    assert mean_of([certain], exclusive=True).entropy().item() == 0
    assert mean_of([even], exclusive=True).entropy().item() == pytest.approx(1)
    assert mean_of([even], exclusive=False).entropy().item() == pytest.approx(1)


def test_objects_are_averaged_in_the_frame_of_the_image(tiny_sam):
    image = np.zeros((20, 31, 3), np.uint8)
    frame = frame_of(tiny_sam, image)
    count, side = OBJECTS_PER_DECODE + 3, 4 * tiny_sam.embedding_size
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(count, 1, side, side, generator=generator) for _ in range(2))
    masks = [DecodedObjects(tiny_sam, first, frame), DecodedObjects(tiny_sam, second, frame, (1,))]
    found = list(object_means(masks, np.arange(count)))
    assert [len(rows) for rows, _ in found] == [OBJECTS_PER_DECODE, 3]
    planes = tiny_sam.postprocess(first[None], frame)[0, :, 0]
    others = tiny_sam.postprocess(second[None], frame)[0, :, 0].flip(-1)
    expected = (planes.sigmoid() + others.sigmoid()) / 2
    assert torch.allclose(torch.cat([mean.probabilities for _, mean in found]), expected, atol=1e-6)
    rows = np.array([5, 2])
    numbers = merge_objects((m.logits for _, m in object_means(masks, rows)), (20, 31), 0.0)
    wins = np.where(expected[5] > expected[2], 1, 2)
    assert np.array_equal(numbers, np.where(expected[[5, 2]].amax(0) > 0.5, wins, 0))
