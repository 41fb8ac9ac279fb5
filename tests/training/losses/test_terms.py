"""The special terms of the named losses: against MONAI, and what each of them is for."""

from __future__ import annotations

import pytest
import torch

from samadapt.sam.types import MaskOutput
from samadapt.training.losses import LOSSES

losses = pytest.importorskip("monai.losses")


def part(name, probability, truth, key, **options):
    """One term of a loss for probabilities (b, K, h, w) of regions."""
    output = MaskOutput(probability.logit(eps=1e-7)[:, None], torch.zeros(len(truth), 1, 1))
    loss = LOSSES[name](**options).build("regions", truth.shape[1])
    return float(loss(output, truth.long()).parts[key])


def random_case(seed=0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 1, classes, 16, 16, generator=generator)
    targets = torch.zeros(2, 16, 16, dtype=torch.long)
    targets[:, 2:6, 2:14], targets[0, 8:13, 3:9] = 1, 2  # the third class is absent
    scores = torch.cat([torch.zeros(2, 1, 16, 16), logits[:, 0]], dim=1)
    return MaskOutput(logits, torch.zeros(2, 1, classes)), targets, scores


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (0.5, 0.5)])
def test_tversky_equals_monai(alpha, beta):
    output, targets, scores = random_case()
    loss = LOSSES["tversky"](tversky_alpha=alpha, tversky_beta=beta).build("classes", 3)
    peer = losses.TverskyLoss(
        include_background=False, softmax=True, to_onehot_y=True, batch=True, alpha=alpha, beta=beta
    )
    found = float(loss(output, targets).parts["dice"])
    assert found == pytest.approx(peer(scores, targets[:, None]).item(), rel=1e-5)
    if alpha == beta:
        dice = LOSSES["dice_ce"]().build("classes", 3)(output, targets).parts["dice"]
        assert found == pytest.approx(float(dice), rel=1e-4)


def test_tversky_prefers_too_much_to_too_little():
    truth = torch.zeros(1, 1, 16, 16)
    truth[..., 4:12, 4:12] = 1
    small, large = torch.zeros_like(truth), torch.zeros_like(truth)
    small[..., 4:12, 4:10], large[..., 4:12, 4:14] = 1, 1
    few, many = (part("tversky", mask, truth, "dice") for mask in (small, large))
    assert few > many
    turned = [
        part("tversky", mask, truth, "dice", tversky_alpha=0.7, tversky_beta=0.3)
        for mask in (small, large)
    ]
    assert turned[0] < turned[1]
    focal = part("tversky", small, truth, "dice", tversky_gamma=0.75)
    assert focal == pytest.approx(few**0.75, rel=1e-4)


def test_focal_tversky_has_a_gradient_where_a_class_is_right():
    output, targets, _ = random_case()
    right = torch.stack([(targets == k) * 80.0 - 40 for k in (1, 2, 3)], dim=1)[:, None]
    given = right.requires_grad_()
    loss = LOSSES["tversky"](tversky_gamma=0.75).build("classes", 3)
    loss(MaskOutput(given, output.iou), targets).total.backward()
    assert given.grad.isfinite().all()


def test_cl_dice_equals_monai():
    output, targets, scores = random_case()
    loss = LOSSES["cl_dice"](cl_dice_erosions=3).build("classes", 3)
    wanted = torch.nn.functional.one_hot(targets, 4).movedim(-1, 1).float()
    # MONAI's mask is all planes of an item, ours a class in all images.
    peer = losses.SoftclDiceLoss(iter_=3, reduction="none")
    expected = peer(scores.softmax(1)[:, 1:].transpose(0, 1), wanted[:, 1:].transpose(0, 1))
    found = float(loss(output, targets).parts["cl_dice"])
    assert found == pytest.approx(expected.mean().item(), abs=1e-4)


def test_cl_dice_punishes_a_broken_vessel_more_than_a_thin_one():
    truth = torch.zeros(1, 1, 24, 24)
    truth[..., 8:13, :] = 1
    broken, thin = truth.clone(), truth.clone()
    broken[..., 6:12] = 0  # 30 pixels, all of the centre line there
    thin[..., 8, :] = 0
    thin[..., 12, :6] = 0  # 30 pixels, none of the centre line
    cost = {
        key: [part("cl_dice", mask, truth, key) for mask in (broken, thin)]
        for key in ("dice", "cl_dice")
    }
    assert cost["dice"][0] == pytest.approx(cost["dice"][1], rel=1e-3)
    assert cost["cl_dice"][0] > 3 * cost["cl_dice"][1]


def test_boundary_equals_monai_with_distances_in_percent():
    output, targets, scores = random_case(classes=2)
    loss = LOSSES["boundary"]().build("classes", 2)
    wanted = torch.nn.functional.one_hot(targets, 3).movedim(-1, 1).float()
    peer = losses.HausdorffDTLoss(include_background=True, reduction="none")
    each = peer(scores.softmax(1)[:, 1:], wanted[:, 1:]) * (100 / 16) ** 2
    found = float(loss(output, targets).parts["boundary"])
    assert found == pytest.approx(torch.log1p(each).mean().item(), rel=1e-5)


def test_boundary_punishes_what_is_far_away():
    truth = torch.zeros(1, 1, 32, 32)
    truth[..., 12:20, 4:12] = 1
    near, far = truth.clone(), truth.clone()
    near[..., 14:18, 12:16], far[..., 14:18, 27:31] = 1, 1
    cost = {
        key: [part("boundary", mask, truth, key) for mask in (near, far)]
        for key in ("dice", "boundary")
    }
    assert cost["dice"][0] == pytest.approx(cost["dice"][1], rel=1e-4)
    assert cost["boundary"][1] > 1.5 * cost["boundary"][0]


def test_boundary_does_not_depend_on_the_grid_or_on_padding():
    truth = torch.zeros(1, 1, 32, 32)
    truth[..., 12:20, 4:12] = 1
    mask = truth.roll(5, dims=-1)
    small = part("boundary", mask, truth, "boundary")
    fine = [plane.repeat_interleave(2, -1).repeat_interleave(2, -2) for plane in (mask, truth)]
    assert part("boundary", *fine, "boundary") == pytest.approx(small, rel=0.1)
    half = truth.clone()
    half[..., 20:, :] = -1  # where nothing is wrong: the mean over the known pixels grows
    less = part("boundary", mask, half, "boundary")
    expected = torch.log1p(torch.tensor(small).expm1() * 32 / 20).item()
    assert less == pytest.approx(expected, rel=1e-3)


def test_generalized_dice_equals_monai_and_ignores_the_size_of_classes():
    output, targets, scores = random_case()
    loss = LOSSES["generalized_dice"]().build("classes", 3)
    wanted = torch.nn.functional.one_hot(targets, 4).movedim(-1, 1).float()
    peer = losses.GeneralizedDiceLoss(batch=True, smooth_nr=0.0, smooth_dr=0.0)
    expected = peer(scores.softmax(1), wanted).item()
    assert float(loss(output, targets).parts["dice"]) == pytest.approx(expected, rel=1e-4)
    # MONAI's smoothing is not small beside sums that are divided by squared sizes.
    big = torch.zeros(1, 256, 256, dtype=torch.long)
    big[:, :128] = 1
    wrong = MaskOutput(torch.full((1, 1, 1, 256, 256), 20.0), torch.zeros(1, 1, 1))
    value = LOSSES["generalized_dice"]().build("classes", 1)(wrong, big).parts["dice"]
    assert float(value) == pytest.approx(0.5, abs=1e-3)
