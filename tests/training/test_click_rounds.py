"""The rounds of interactive training: equal to a plain and slow reference of the SAM paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, norm
from torch import nn

from samadapt.prompts.policy import PromptPolicy
from samadapt.prompts.simulate import jitter_boxes, simulate
from samadapt.sam.click_disks import with_click_disks
from samadapt.sam.types import MaskOutput, Prompts
from samadapt.training import loop
from samadapt.training.click_rounds import Click, answers, draw_clicks, draw_rounds, first_prompts
from samadapt.training.keyed_random import BatchRandom
from samadapt.training.loop import LoopOptions, TrainableTail, learn
from samadapt.training.mask_losses import object_loss

SIDE, CELL = 16, 4.0

of = BatchRandom.of


class Answers:
    """A decoder that answers anything, and remembers what it was asked."""

    def __init__(self):
        self.asked, self.given = [], []
        self.rng = torch.Generator().manual_seed(3)

    def __call__(self, prompts, multimask):
        shape = (*prompts.points.shape[:2], 3 if multimask else 1)
        logits = 9 * torch.randn(*shape, SIDE, SIDE, generator=self.rng)
        output = MaskOutput(logits, torch.rand(shape, generator=self.rng))
        self.asked.append((prompts, multimask))
        self.given.append(output)
        return output


def prompts_and_targets(b=2, p=3, seed=0):
    rng = np.random.default_rng(seed)
    targets = torch.from_numpy(rng.integers(-1, 2, (b, p, SIDE, SIDE)))
    low = rng.uniform(0, 20, (b, p, 2))
    boxes = torch.from_numpy(np.concatenate([low, low + 30], axis=-1)).float()
    points = torch.from_numpy(rng.uniform(0, 60, (b, p, 1, 2))).float()
    return Prompts(points, torch.ones(b, p, 1, dtype=torch.int64), boxes), targets


def click_by_hand(target, logits, place):
    """List the wrong pixels row by row and take the one at ``place``."""
    wrong = [
        (row, column)
        for row in range(SIDE)
        for column in range(SIDE)
        if target[row, column] >= 0
        and (target[row, column] == 1) != (float(logits[row, column]) > 0)
    ]
    row, column = wrong[int(place * len(wrong))]
    return (column + 0.5) * CELL, (row + 0.5) * CELL, int(target[row, column])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_rounds_are_those_of_the_paper(seed):
    prompts, targets = prompts_and_targets(seed=seed)
    rounds = draw_rounds(PromptPolicy("interactive"), 3, of(np.random.default_rng(seed), 2))
    decoder = Answers()
    given = list(answers(decoder, prompts, targets, rounds, 0.0, CELL))
    assert len(given) == rounds.count == 11
    assert [several for _, several in decoder.asked] == [True] + [False] * 10
    # The first prompt takes two tokens, and each click one more. Two rounds add none.
    counts = [asked.points.shape[2] for asked, _ in decoder.asked]
    steps = np.diff(counts).tolist()
    assert counts[0] == 2
    assert sum(steps) == 8
    assert steps[-1] == 0
    assert steps[:-1].count(0) == 1
    assert decoder.asked[0][0].masks is None
    for number in range(1, 11):
        asked, before = decoder.asked[number][0], decoder.given[number - 1]
        for b in range(2):
            for p in range(3):
                best = int(torch.argmax(before.iou[b, p]))
                fed = asked.masks[b, p, 0]
                assert torch.equal(fed, before.logits[b, p, best])  # neither cut nor thresholded
                if rounds.clicks[number - 1] is not None:
                    place = float(rounds.clicks[number - 1].place[b, p])
                    x, y, label = click_by_hand(targets[b, p], fed, place)
                    assert asked.points[b, p, -1].tolist() == [x, y]
                    assert int(asked.point_labels[b, p, -1]) == label
                earlier = decoder.asked[number - 1][0].points[b, p]
                assert torch.equal(asked.points[b, p, : len(earlier)], earlier)


def test_masks_that_go_back_show_the_clicks_where_that_is_wanted():
    prompts, targets = prompts_and_targets()
    policy = PromptPolicy("interactive", click_disks=True)
    rounds = draw_rounds(policy, 3, of(np.random.default_rng(0), 2))
    decoder = Answers()
    list(answers(decoder, prompts, targets, rounds, 0.0, CELL))
    assert decoder.asked[0][0].masks is None
    for (asked, _), before in zip(decoder.asked[1:], decoder.given, strict=False):
        best = before.iou.argmax(dim=2)[:, :, None, None, None]
        plain = replace(asked, masks=before.logits.take_along_dim(best, dim=2))
        assert torch.equal(asked.masks, with_click_disks(plain, int(SIDE * CELL)).masks)
        assert not torch.equal(asked.masks, plain.masks)


def test_the_round_without_a_click_is_at_any_place_among_the_clicks():
    rng, policy = np.random.default_rng(0), PromptPolicy("interactive")
    drawn = [draw_rounds(policy, 1, of(rng, 1)).clicks for _ in range(800)]
    assert all(clicks[-1] is None and len(clicks) == 10 for clicks in drawn)
    places = np.bincount([clicks[:-1].index(None) for clicks in drawn], minlength=9)
    assert places[8] == 0  # before one of the 8 clicks
    assert chisquare(places[:8]).pvalue > 1e-3


def test_box_and_point_start_equally_often():
    rng, policy = np.random.default_rng(0), PromptPolicy("interactive")
    share = draw_rounds(policy, 40, of(rng, 100)).by_box.double().mean()
    assert share == pytest.approx(0.5, abs=0.03)


def test_first_points_and_clicks_are_uniform():
    labels = np.zeros((20, 30), np.int16)
    labels[4:9, 10:20] = 1
    labels[9, 10] = 1
    rng, policy = np.random.default_rng(1), PromptPolicy("interactive")
    found = [simulate(labels, policy, rng).points[0, 0] for _ in range(2040)]
    _, counts = np.unique(found, axis=0, return_counts=True)
    assert len(counts) == 51
    assert chisquare(counts).pvalue > 1e-3
    targets = torch.from_numpy(labels[:16, :16].astype(np.int64)).expand(1, 3000, 16, 16)
    place = torch.from_numpy(rng.random((1, 3000)))
    click = Click(place, torch.zeros(1, 3000, dtype=torch.bool), even_if_right=False)
    predicted = torch.zeros(1, 3000, 16, 16, dtype=torch.bool)
    predicted[..., 4:6, 8:13] = True  # 4 cells too many, 31 - 6 = 25 missed
    points, marks = draw_clicks(targets, predicted, click)
    places, counts = np.unique(points[0].numpy(), axis=0, return_counts=True)
    assert len(places) == 29
    assert chisquare(counts).pvalue > 1e-3
    assert float(marks.double().mean()) == pytest.approx(25 / 29, abs=0.03)


@pytest.mark.parametrize("noise", ["normal", "uniform"])
def test_the_noise_of_boxes_has_the_distribution_of_the_source(noise):
    rng, count = np.random.default_rng(0), 2000
    boxes = np.tile([400.0, 300, 500, 340], (count, 1)).astype(np.float32)
    moved = jitter_boxes(boxes, (1024, 1024), 0.1, 20, rng, noise) - boxes
    for side, length in zip(moved.T, (100, 40, 100, 40), strict=True):
        scale = 0.1 * length
        expected = norm(scale=scale).cdf if noise == "normal" else ("uniform", (-scale, 2 * scale))
        inside = side[np.abs(side) < 19.9]
        test = kstest(inside, *((expected,) if noise == "normal" else expected))
        assert test.pvalue > 1e-3, (length, test)
    large = np.tile([100.0, 100, 900, 900], (count, 1)).astype(np.float32)
    far = np.abs(jitter_boxes(large, (1024, 1024), 0.1, 20, rng, noise) - large)
    assert far.max() <= 20 + 1e-4
    # Of normal noise with a deviation of 80 px, 80 % is cut at 20 px; uniform noise never is.
    share = 2 * norm.sf(20 / 80) if noise == "normal" else 0.0
    assert (far > 20 - 1e-3).mean() == pytest.approx(share, abs=0.02)


def test_interactive_boxes_have_the_noise_of_their_variant():
    labels = np.zeros((1024, 1024), np.int16)
    labels[300:340, 400:500] = 1
    for variant, bound in (("sam", 20), ("sam2", 10.001)):
        policy, rng = PromptPolicy("interactive", variant=variant), np.random.default_rng(0)
        found = np.array([simulate(labels, policy, rng).boxes[0] for _ in range(60)])
        far = np.abs(found - [400, 300, 500, 340])
        assert far.max() <= bound
        assert (far[:, 1::2].max() > 4.001) == (variant == "sam")


def test_first_prompts_are_embedded_as_a_box_or_a_point_alone(tiny_sam):
    prompts, _ = prompts_and_targets()
    by_box = torch.tensor([[True, False, True], [False, False, True]])
    together, _ = tiny_sam.prompt_encoder(first_prompts(prompts, by_box), 2)
    boxed, _ = tiny_sam.prompt_encoder(Prompts(boxes=prompts.boxes), 2)
    clicked, _ = tiny_sam.prompt_encoder(Prompts(prompts.points, prompts.point_labels), 2)
    assert torch.equal(together, torch.where(by_box[..., None, None], boxed, clicked))
    assert not torch.equal(boxed, clicked)
    none = replace(prompts, point_labels=torch.full((2, 3, 1), -1))
    without_truth, _ = tiny_sam.prompt_encoder(first_prompts(none, by_box), 2)
    assert torch.equal(without_truth, boxed)


def test_a_right_mask_gets_padding_or_in_sam2_a_negative_click():
    _, targets = prompts_and_targets()
    right = targets > 0
    place, never = torch.full((2, 3), 0.4), torch.zeros(2, 3, dtype=torch.bool)
    _, labels = draw_clicks(targets, right, Click(place, never, even_if_right=False))
    assert labels.unique().tolist() == [-1]
    points, labels = draw_clicks(targets, right, Click(place, never, even_if_right=True))
    assert labels.unique().tolist() == [0]
    column, row = (int(value) for value in points[1, 2] - 0.5)
    assert targets[1, 2, row, column] == 0
    unknown = torch.full_like(targets, -1)
    _, labels = draw_clicks(unknown, ~right, Click(place, never, even_if_right=True))
    assert labels.unique().tolist() == [-1]


def test_sam2_has_seven_clicks_and_draws_a_tenth_from_the_object():
    policy = PromptPolicy("interactive", variant="sam2")
    rounds = draw_rounds(policy, 40, of(np.random.default_rng(0), 50))
    assert rounds.count == 8
    assert None not in rounds.clicks
    share = torch.stack([click.from_truth for click in rounds.clicks]).double().mean()
    assert share == pytest.approx(0.1, abs=0.01)
    _, targets = prompts_and_targets()
    always = torch.ones(2, 3, dtype=torch.bool)
    right, place = targets > 0, torch.full((2, 3), 0.7)
    _, labels = draw_clicks(targets, right, Click(place, always, even_if_right=True))
    assert labels.unique().tolist() == [1]  # into the object, though nothing was missed
    assert draw_rounds(replace(policy, clicks=2), 1, of(np.random.default_rng(0), 1)).count == 3


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_sam2_learns_in_every_round_whether_objects_are_there(tools, tmp_path, weight):
    prompts = {"variant": "sam2", "clicks": 2, "negatives": 0.5, "max_objects": 3}
    training = tools.make_training(
        tmp_path, model="tiny_h", kind="interactive", blocks="last:1", prompts=prompts
    )
    found = (((one.targets > 0).flatten(2).any(2), one) for one in training.batches)
    there, batch = next(pair for pair in found if 0 < pair[0].sum() < pair[0].numel())
    asked, plain = [], object_loss(object_score=weight)

    def loss(output, targets):
        asked.append(output.object_score.shape)
        return plain(output, targets)

    training.loss = loss
    injection = training.injection
    injection.set_training(training.sam)
    learn(training, TrainableTail(training.sam, injection.first_trainable_block), batch, 1)
    assert asked == [(*there.shape, 1)] * 3
    heads = [
        gradient for name, gradient in gradients(training).items() if "pred_obj_score_head" in name
    ]
    assert any(gradient.any() for gradient in heads) == bool(weight)


def gradients(training):
    return {
        name: parameter.grad.clone()
        for name, parameter in training.injection.parameters.items()
        if parameter.grad is not None
    }


def test_the_gradients_are_those_of_the_mean_loss_of_all_rounds(tools, tmp_path):
    """Backward after each round, with one pass of the encoder, equals one backward at the end."""
    samples = [tools.make_sample(i, objects=2) for i in range(4)]
    training = tools.make_training(tmp_path, kind="interactive", blocks="last:1", samples=samples)
    sam, batch = training.sam, next(training.batches)
    runs = []
    suffix = sam.encode_suffix
    sam.encode_suffix = lambda *args: runs.append(1) or suffix(*args)
    tail = TrainableTail(sam, training.injection.first_trainable_block)
    loss = learn(training, tail, batch, 2)
    found, encoded = gradients(training), len(runs)
    for parameter in training.injection.parameters.values():
        parameter.grad = None

    embeddings = tail(training.features.stored(batch.keys))

    def decode(prompts, several):
        return sam.decode(embeddings, prompts, multimask=several)

    cell = sam.image_size / batch.targets.shape[-1]
    every = list(answers(decode, batch.prompts, batch.targets, batch.rounds, 0.0, cell))
    total = sum(training.loss(output, batch.targets).total for output in every) / 22
    total.backward()
    assert encoded == 1
    assert loss == pytest.approx(float(total.detach()), rel=1e-5)
    assert batch.prompts.count == 2  # several objects an image in one batch
    expected = gradients(training)
    assert found.keys() == expected.keys()
    assert any("image_encoder" in name for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=2e-3, atol=1e-6)


def test_only_the_mask_with_the_lowest_loss_is_trained(tools, tmp_path):
    training = tools.make_training(tmp_path, kind="interactive")
    batch = next(training.batches)
    shape = (*batch.targets.shape[:2], 3)
    logits = nn.Parameter(torch.randn(*shape, *batch.targets.shape[2:]))
    iou = nn.Parameter(torch.rand(shape))
    training.loss(MaskOutput(logits, iou), batch.targets).total.backward()
    moved = logits.grad.flatten(3).abs().sum(-1) > 0
    assert (moved.sum(-1) == 1).all()
    assert (iou.grad != 0).all()  # the IoU head learns from every mask


def test_a_loss_that_is_not_finite_skips_the_step(tools, tmp_path):
    training = tools.make_training(tmp_path, kind="interactive")
    right, calls = training.loss, []

    def loss(output, targets):
        terms = right(output, targets)
        calls.append(1)
        return replace(terms, total=terms.total * float("nan")) if len(calls) == 4 else terms

    training.loss = loss
    options = LoopOptions(steps=1, validate_every=0)
    state = loop.train(training, options, None)
    assert (state.skipped, len(calls)) == (1, 11)  # other processes may wait for each round
