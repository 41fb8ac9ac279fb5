"""The second pass: components prompt the base model, and its masks are averaged or left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samadapt.evaluation import second_pass as module
from samadapt.evaluation.second_pass import CERTAIN, SecondPass, mask_prompts
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.embed import embed, frame_of
from samadapt.sam.mean_prediction import MeanLogits

SHAPE = (40, 48)
IMAGE = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3), dtype=np.uint8)


def plane(*boxes, inside=4.0, outside=-4.0):
    """Logits (h, w) that are high in boxes of rows and columns."""
    logits = torch.full(SHAPE, outside)
    for r0, r1, c0, c1 in boxes:
        logits[r0:r1, c0:c1] = inside
    return logits


class Answering(SecondPass):
    """A second pass whose model answers with given planes, one for each component in order."""

    def __init__(self, sam, *planes):
        super().__init__(sam)
        object.__setattr__(self, "planes", list(planes))
        object.__setattr__(self, "asked", [])

    def _answers(self, parts, own, embeddings, frame):
        self.asked.extend(parts)
        return torch.stack([self.planes.pop(0) for _ in parts])


def mean_of(*planes, exclusive=True):
    mean = MeanLogits(exclusive=exclusive)
    mean.add(torch.stack(planes))
    return mean


def probabilities(logits):
    """(K + 1, h, w) float64, the background first."""
    scores = np.concatenate([np.zeros((1, *SHAPE)), logits.double().numpy()])
    powers = np.exp(scores - scores.max(0))
    return powers / powers.sum(0)


def test_an_answer_that_agrees_counts_as_much_as_the_first_pass(tiny_sam):
    first = torch.stack([plane((5, 25, 5, 25)), plane((28, 36, 20, 44), inside=2.0)])
    answers = [plane((5, 25, 5, 28), inside=6.0), plane((28, 36, 18, 44), inside=1.0)]
    mean = mean_of(*first)
    Answering(tiny_sam, *answers).add_to(mean, IMAGE)
    expected = before = probabilities(first)
    for k, answer in enumerate(answers, start=1):
        either = ((first[k - 1] > 0) | (answer > 0)).numpy()
        share = 1 / (1 + np.exp(-answer.double().numpy()))
        others = before * (1 - share) / (1 - before[k])  # they keep their ratios
        others[k] = share
        expected = np.where(either, (before + others) / 2, expected)
    assert np.abs(probabilities(mean.logits) - expected).max() < 1e-5
    assert mean.count == 2
    labels = probabilities(mean.logits).argmax(0)
    assert (labels[5:25, 25:28] == 1).all(), "the surer pass wins"
    assert (labels[28:36, 18:20] == 0).all()


def test_the_second_pass_weighs_as_much_as_all_first_ones(tiny_sam):
    passes = [plane((5, 25, 5, 25), inside=value) for value in (1.0, 2.0, 5.0)]
    mean = mean_of(passes[0][None][0])
    for one in passes[1:]:
        mean.add(one[None])
    answer = plane((5, 25, 5, 25), inside=-3.0)
    answer[5:25, 5:24] = 3.0
    Answering(tiny_sam, answer).add_to(mean, IMAGE)
    first = np.mean([one.double().sigmoid().numpy() for one in passes], axis=0)
    expected = (first + answer.double().sigmoid().numpy()) / 2
    inside = np.s_[5:25, 5:25]
    assert np.abs(mean.probabilities[0].numpy()[inside] - expected[inside]).max() < 1e-6
    assert mean.count == 6


def test_an_answer_of_another_shape_is_left_out(tiny_sam):
    first = plane((5, 25, 5, 25), (28, 36, 20, 44))
    mean = mean_of(first)
    Answering(tiny_sam, plane((5, 25, 5, 45)), plane((0, 1, 0, 1))).add_to(mean, IMAGE)
    assert torch.equal(mean.logits[0], first)
    assert mean.count == 1


def test_specks_prompt_nothing_and_stay(tiny_sam):
    first = plane((5, 25, 5, 25), (30, 33, 30, 33))  # 400 and 9 pixels
    mean = mean_of(first)
    made = Answering(tiny_sam, plane((5, 25, 5, 26), inside=8.0))
    made.add_to(mean, IMAGE)
    assert [part.number for part in made.asked] == [1]
    assert (mean.logits[0, 30:33, 30:33] > 0).all()
    assert (mean.logits[0, 5:25, 25] > 0).all()


def test_overlapping_classes_are_refined_apart(tiny_sam):
    first = torch.stack([plane((5, 25, 5, 25)), plane((10, 20, 10, 20))])
    mean = mean_of(*first, exclusive=False)
    Answering(
        tiny_sam, plane((5, 25, 5, 25), inside=6.0), plane((9, 20, 10, 20), inside=6.0)
    ).add_to(mean, IMAGE)
    found = mean.probabilities.numpy()
    assert found[0, 15, 15] == pytest.approx((1 / (1 + np.exp(-4)) + 1 / (1 + np.exp(-6))) / 2)
    assert (found[1, 9, 10:20] > 0.5).all()


def test_nothing_found_embeds_nothing(tiny_sam, monkeypatch):
    monkeypatch.setattr(module, "embed", lambda *_: pytest.fail("embedded"))
    mean = mean_of(plane())
    SecondPass(tiny_sam).add_to(mean, IMAGE)
    assert mean.count == 1


@pytest.mark.parametrize("shape", [(40, 48), (64, 64), (90, 30)])
def test_mask_prompts_are_the_way_back_of_postprocess(tiny_sam, shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]] / max(shape)
    planes = torch.from_numpy(8 * np.sin(5 * rows + 3 * columns)).float()[None]
    frame = frame_of(tiny_sam, np.zeros((*shape, 3), np.uint8))
    side = 4 * tiny_sam.embedding_size
    low = mask_prompts(planes, frame, side)
    assert low.shape == (1, 1, side, side)
    back = tiny_sam.postprocess(low[None], frame)[0, :, 0]
    # Borders touch the padding, and the grid of the prompt is coarse.
    inner = np.s_[0, 4:-6, 4:-6]
    assert (back - planes)[inner].abs().mean() < 0.4
    cells = [-(-length * side // frame.size) for length in frame.resized]
    assert (low[..., cells[0] + 1 :, :] == -CERTAIN).all()
    assert (low[..., cells[1] + 1 :] == -CERTAIN).all()


def test_the_base_sees_the_box_and_the_mask_of_each_component(tiny_sam, monkeypatch):
    given = []
    plain = module.object_logits
    monkeypatch.setattr(
        module, "object_logits", lambda *args: given.extend(args[-1]) or plain(*args)
    )
    boxes = (5, 25, 5, 25), (28, 36, 20, 44)
    SecondPass(tiny_sam).add_to(mean_of(plane(*boxes)), IMAGE)
    (prompts,) = given
    assert prompts.class_ids.tolist() == [1, 1]
    assert np.allclose(prompts.boxes, [[4, 4, 26, 26], [18.8, 26.8, 45.2, 37.2]])
    low = torch.from_numpy(prompts.mask_logits)
    _, (frame,) = embed(tiny_sam, [IMAGE])
    back = tiny_sam.postprocess(low[None].float(), frame)[0, :, 0]
    for index, (r0, r1, c0, c1) in enumerate(boxes):
        assert back[index, (r0 + r1) // 2, (c0 + c1) // 2] > 0
    assert back[0, 32, 32] < 0, "another component of the class is background"
    assert back[1, 15, 15] < 0


def test_evaluation_refines_what_is_found_without_prompts(predictor, make_samples, tiny_sam):
    samples = list(make_samples().values())
    answers = 20 * torch.ones(1, *samples[0].image.shape[:2])

    class Everything(SecondPass):
        def _answers(self, parts, own, embeddings, frame):
            found = answers.repeat(len(parts), 1, 1)
            # The component and a row more: the two agree.
            for part, one in zip(parts, found, strict=True):
                one[torch.from_numpy(~part.mask)] = -20.0
            return found - 5

    plain = predictor("semantic").predict(samples)
    refined = predictor("semantic", second_pass=Everything(tiny_sam), scores_objects=True).predict(
        samples
    )
    assert any(len(np.unique(one.labels)) > 1 for one in plain)
    for one, other in zip(plain, refined, strict=True):
        # A sure answer of the same shape keeps the labels and makes them surer.
        assert np.array_equal(one.labels, other.labels)
        assert other.probability is not None
    boxed = predictor("box", policy=PromptPolicy("box"), second_pass=Everything(tiny_sam))
    for one, other in zip(predictor("box").predict(samples), boxed.predict(samples), strict=True):
        assert np.array_equal(one.labels, other.labels)
