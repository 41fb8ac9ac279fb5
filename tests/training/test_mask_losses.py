"""The losses against sums written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from samadapt.sam.types import MaskOutput
from samadapt.training.mask_losses import (
    ExtraTerm,
    dice_loss,
    focal_loss,
    mask_iou,
    object_loss,
    region_loss,
    semantic_loss,
    targets_at,
)


def output(logits, iou=None):
    logits = logits.requires_grad_()
    iou = torch.full(logits.shape[:3], 0.5) if iou is None else iou
    return MaskOutput(logits, iou.requires_grad_())


def random_case(b=2, p=3, m=1, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(b, p, m, side, side, generator=generator)
    targets = (torch.rand(b, p, side, side, generator=generator) < 0.4).long()
    return logits, targets


def focal_by_hand(logits, targets):
    """SAM's: -alpha_t (1 - p_t)^2 log p_t per pixel, then the mean."""
    total, count = 0.0, 0
    for logit, target in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True):
        probability = 1 / (1 + math.exp(-logit))
        right = probability if target else 1 - probability
        total += (0.25 if target else 0.75) * (1 - right) ** 2 * -math.log(right)
        count += 1
    return total / count


def dice_by_hand(logits, targets):
    probability = logits.double().sigmoid()
    return float(1 - 2 * (probability * targets).sum() / (probability.sum() + targets.sum()))


def test_focal_is_taken_pixel_by_pixel():
    logits, targets = random_case()
    terms = object_loss(focal=1.0, dice=0.0, iou=0.0)(output(logits), targets)
    expected = focal_by_hand(logits.detach(), targets)
    assert terms.total.item() == pytest.approx(expected, rel=1e-5)
    assert float(terms.parts["focal"]) == pytest.approx(expected, rel=1e-5)
    # the exponent of the batch's mean, as one public project has it, is another number
    right = torch.where(targets[:, :, None] > 0, logits.sigmoid(), 1 - logits.sigmoid()).detach()
    entropy = -right.log().mean()
    assert abs(float((1 - (-entropy).exp()) ** 2 * entropy) - expected) > 0.05


def test_dice_is_per_object():
    logits, targets = random_case()
    total = object_loss(focal=0.0, dice=1.0, iou=0.0)(output(logits), targets).total
    each = [
        dice_by_hand(logits.detach()[i, j, 0], targets[i, j]) for i in range(2) for j in range(3)
    ]
    assert total.item() == pytest.approx(sum(each) / 6, abs=1e-5)


def test_the_weights_are_sams():
    logits, targets = random_case()
    terms = object_loss()(output(logits), targets)
    parts = {name: float(value) for name, value in terms.parts.items()}
    assert terms.total.item() == pytest.approx(20 * parts["focal"] + parts["dice"] + parts["iou"])


def test_of_three_masks_only_the_best_gets_a_gradient():
    logits, targets = random_case(m=3)
    given = output(logits)
    object_loss()(given, targets).total.backward()
    got = given.logits.grad.abs().sum((-1, -2)) > 0
    assert (got.sum(-1) == 1).all()
    for i in range(2):
        for j in range(3):
            each = [
                20 * focal_by_hand(logits.detach()[i, j, k], targets[i, j])
                + dice_by_hand(logits.detach()[i, j, k], targets[i, j])
                for k in range(3)
            ]
            assert got[i, j, each.index(min(each))]
    assert (given.iou.grad != 0).all()  # the IoU head learns from all three


def test_the_iou_head_is_taught_the_true_iou():
    logits, targets = random_case(m=3)
    predicted = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1))
    truth = torch.zeros(2, 3, 3)
    for i, j, k in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(3)).tolist():
        mask, wanted = logits[i, j, k] > 0, targets[i, j] > 0
        truth[i, j, k] = (mask & wanted).sum() / (mask | wanted).sum()
    terms = object_loss(focal=0.0, dice=0.0, iou=1.0)(output(logits, predicted), targets)
    assert terms.total.item() == pytest.approx(((predicted - truth) ** 2).mean().item(), rel=1e-5)
    exact = object_loss(focal=0.0, dice=0.0, iou=1.0)(output(logits, truth.clone()), targets)
    assert exact.total.item() == pytest.approx(0, abs=1e-10)
    empty = torch.zeros(1, 1, 4, 4)
    assert mask_iou(empty - 1, empty).tolist() == [1]
    assert mask_iou(empty + 1, empty).tolist() == [0]


def test_the_object_score_is_taught_which_objects_are_there():
    logits, targets = random_case(b=2, p=2, m=3)
    targets[0, 1] = 0  # not there
    targets[1, 0] = -1  # nothing is known about it
    targets[1, 1, 3:] = -1
    scores = torch.tensor([[0.3, -1.2], [2.0, 0.7]])[..., None]

    def computed(**weights):
        given = replace(output(logits.detach().clone()), object_score=scores.clone())
        given.object_score.requires_grad_()
        terms = object_loss(**weights)(given, targets)
        terms.total.backward()
        return terms, given

    terms, given = computed(focal=0.0, dice=0.0, iou=0.0, object_score=1.0)
    there = [math.log1p(math.exp(-0.3)), math.log1p(math.exp(-1.2)), math.log1p(math.exp(-0.7))]
    assert terms.total.item() == pytest.approx(sum(there) / 4, rel=1e-5)
    assert float(terms.parts["object_score"]) == pytest.approx(terms.total.item())
    gradient = given.object_score.grad[..., 0]
    assert gradient.sign().tolist() == [[-1, 1], [0, -1]]
    weighed, other = computed(object_score=3.0)
    plain, _ = computed(object_score=0.0)
    expected = plain.total.item() + 3 * float(weighed.parts["object_score"])
    assert weighed.total.item() == pytest.approx(expected, rel=1e-5)
    assert other.logits.grad[0, 1].abs().max() > 0  # pictures show it, so its mask must be empty
    assert "object_score" not in object_loss()(output(logits), targets).parts


@pytest.mark.parametrize("kind", ["object", "semantic"])
def test_padding_counts_for_nothing(kind):
    generator = torch.Generator().manual_seed(3)
    if kind == "object":
        logits, targets = random_case(m=3)
        loss, whole = object_loss(), (slice(None), slice(None), slice(0, 5))
        targets[:, :, 5:] = -1
        cropped = logits[:, :, :, :5].clone(), targets[:, :, :5]
    else:
        logits = torch.randn(2, 1, 3, 8, 8, generator=generator)
        targets = torch.randint(0, 3, (2, 8, 8), generator=generator)
        loss, whole = semantic_loss(2), (slice(None), slice(0, 5))
        targets[:, 5:] = -1
        cropped = logits[:, :, :, :5].clone(), targets[:, :5]
    assert (targets[whole] >= 0).all()
    first = output(logits.clone())
    terms = loss(first, targets)
    terms.total.backward()
    assert (first.logits.grad[..., 5:, :] == 0).all()
    assert (first.logits.grad[..., :5, :] != 0).any()
    other = logits.clone()
    other[..., 5:, :] = 50 * torch.randn(other[..., 5:, :].shape, generator=generator)
    again = loss(output(other), targets)
    assert again.total.item() == terms.total.item()
    alone = output(cropped[0])
    small = loss(alone, cropped[1])
    small.total.backward()
    assert small.total.item() == pytest.approx(terms.total.item(), rel=1e-5)
    assert torch.allclose(alone.logits.grad, first.logits.grad[..., :5, :], rtol=1e-4, atol=1e-8)


def test_semantic_loss_by_hand_and_in_the_order_of_the_classes():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 1, 3, 6, 6, generator=generator)
    targets = torch.randint(0, 3, (2, 6, 6), generator=generator)
    terms = semantic_loss(2)(output(logits), targets)
    scores = torch.stack([torch.zeros(2, 6, 6), logits[:, 0, 0], logits[:, 0, 1]]).double()
    probability = scores.detach().exp() / scores.detach().exp().sum(0)
    chosen = torch.stack([probability[k][targets == k].log().sum() for k in range(3)])
    assert float(terms.parts["cross_entropy"]) == pytest.approx(float(-chosen.sum() / 72), rel=1e-5)
    dice = [
        1 - 2 * probability[k][targets == k].sum() / (probability[k].sum() + (targets == k).sum())
        for k in (1, 2)
    ]
    assert float(terms.parts["dice"]) == pytest.approx(float(sum(dice) / 2), rel=1e-4)
    swapped = semantic_loss(2)(output(logits.detach()[:, :, [1, 0, 2]]), targets)
    assert abs(swapped.total.item() - terms.total.item()) > 1e-3
    right = torch.stack([(targets == k) * 40.0 - 20 for k in (1, 2, 3)], dim=1)[:, None]
    assert semantic_loss(2)(output(right), targets).total.item() < 1e-4
    unused = output(logits.detach().clone())
    semantic_loss(2)(unused, targets).total.backward()
    assert (unused.logits.grad[:, :, 2] == 0).all()


def test_a_loss_over_nothing_is_finite():
    logits = torch.zeros(1, 1, 1, 4, 4)
    nothing = torch.full((1, 1, 4, 4), -1)
    assert math.isfinite(object_loss()(output(logits.clone()), nothing).total.item())
    assert math.isfinite(semantic_loss(1)(output(logits.clone()), nothing[:, 0]).total.item())


@pytest.mark.parametrize("kind", ["object", "semantic"])
def test_the_loss_falls(kind):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 3, 8, 8, generator=generator).requires_grad_()
    iou = torch.rand(1, 1, 3, generator=generator).requires_grad_()
    targets = torch.randint(0, 2, (1, 1, 8, 8), generator=generator)
    loss = object_loss() if kind == "object" else semantic_loss(1)
    targets = targets if kind == "object" else targets[:, 0]
    optimizer = torch.optim.Adam([logits, iou], lr=0.3)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        total = loss(MaskOutput(logits, iou), targets).total
        total.backward()
        optimizer.step()
        values.append(total.item())
    assert values[-1] < 0.2 * values[0]


@pytest.mark.parametrize("kind", ["random", "empty", "sure"])
def test_focal_and_dice_equal_monai(kind):
    losses = pytest.importorskip("monai.losses")
    logits, targets = random_case(b=3, p=2)
    truth = targets.float() * (kind != "empty")
    logits = logits[:, :, 0] * (30 if kind == "sure" else 1)
    own, peer = (logits.clone().requires_grad_() for _ in range(2))
    pairs = [
        (
            focal_loss(own, truth),
            losses.FocalLoss(gamma=2.0, alpha=0.25, reduction="none")(peer, truth),
        ),
        (
            dice_loss(own.sigmoid().flatten(0, 1).flatten(1), truth.flatten(0, 1).flatten(1)),
            losses.DiceLoss(sigmoid=True, reduction="none")(peer, truth).flatten(),
        ),
    ]
    for found, expected in pairs:
        torch.testing.assert_close(found, expected)
    sum(found.sum() for found, _ in pairs).backward()
    sum(expected.sum() for _, expected in pairs).backward()
    torch.testing.assert_close(own.grad, peer.grad, atol=1e-6, rtol=1e-4)


def test_the_dice_of_classes_equals_monai():
    losses = pytest.importorskip("monai.losses")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 3, 8, 8, generator=generator)
    targets = torch.randint(0, 3, (2, 8, 8), generator=generator)  # the third class is absent
    found = semantic_loss(3, cross_entropy=0.0)(output(logits), targets).total
    peer = losses.DiceLoss(include_background=False, softmax=True, to_onehot_y=True, batch=True)
    scores = torch.cat([torch.zeros(2, 1, 8, 8), logits[:, 0]], dim=1)
    torch.testing.assert_close(found, peer(scores, targets[:, None]))


@pytest.mark.parametrize("kind", ["object", "semantic"])
def test_loss_and_gradient_do_not_depend_on_ignored_pixels(kind):
    """Logits of ignored pixels change neither value nor gradient, and their gradient is 0."""
    logits, targets = random_case(b=2, p=3 if kind == "object" else 1, m=3)
    if kind == "semantic":
        targets = torch.randint(0, 4, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    ignored = torch.rand(targets.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    targets[ignored] = -1
    loss = object_loss() if kind == "object" else semantic_loss(3)
    where = (ignored[:, :, None] if kind == "object" else ignored[:, None, None]).expand_as(logits)
    found = []
    for shift in (0.0, 7.5, -40.0):
        moved = torch.where(where, logits + shift, logits).detach()
        made = output(moved)
        terms = loss(made, targets)
        terms.total.backward()
        found.append((terms.total.item(), made.logits.grad))
    assert float(found[0][1][~where].abs().max()) > 0
    for total, gradient in found:
        assert total == found[0][0]
        assert torch.equal(gradient, found[0][1])
        assert float(gradient[where].abs().max()) == 0


def planes_of(classes, generator, overlapping):
    """(2, K, 8, 8) of 1, 0 and -1; class 2 is not annotated in the first image."""
    if overlapping:
        planes = (torch.rand(2, classes, 8, 8, generator=generator) < 0.4).long()
    else:
        labels = torch.randint(0, classes + 1, (2, 8, 8), generator=generator)
        planes = torch.stack([labels == k for k in range(1, classes + 1)], dim=1).long()
    planes[:, :, :2] = -1  # ignored pixels
    planes[0, 1] = -1
    return planes


@pytest.mark.parametrize("overlapping", [False, True])
def test_classes_that_are_not_annotated_have_no_loss(overlapping):
    """It counts neither as foreground nor as background; the other classes are unchanged."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 1, 3, 8, 8, generator=generator)
    planes = planes_of(3, generator, overlapping)
    loss = region_loss(3) if overlapping else semantic_loss(3)
    unknown = (planes < 0)[:, None]
    found = []
    for shift in (0.0, 9.0, -30.0):
        made = output(torch.where(unknown, logits + shift, logits))
        terms = loss(made, planes)
        terms.total.backward()
        found.append((terms.total.item(), made.logits.grad))
    for total, gradient in found:
        assert total == found[0][0]
        assert torch.equal(gradient, found[0][1])
        assert float(gradient[unknown].abs().max()) == 0
        assert float(gradient[~unknown].abs().min()) > 0


def test_planes_of_exclusive_classes_have_the_loss_of_their_label_map():
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 1, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 4, (2, 8, 8), generator=generator)
    planes = torch.stack([labels == k for k in (1, 2, 3)], dim=1).long()
    one = semantic_loss(3)(output(logits), labels).total.item()
    other = semantic_loss(3)(output(logits.detach()), planes).total.item()
    assert one == pytest.approx(other, rel=1e-6)


def test_the_loss_of_regions_is_a_sum_over_known_pixels():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 1, 3, 8, 8, generator=generator)
    planes = planes_of(3, generator, overlapping=True)
    terms = region_loss(3)(output(logits), planes)
    entropy, count, dice = 0.0, 0, []
    for k in range(3):
        known = planes[:, k] >= 0
        p, t = logits.detach()[:, 0, k][known].double().sigmoid(), planes[:, k][known]
        entropy -= float(torch.where(t > 0, p, 1 - p).log().sum())
        count += int(known.sum())
        dice.append(float(1 - 2 * (p * t).sum() / (p.sum() + t.sum())))
    assert float(terms.parts["cross_entropy"]) == pytest.approx(entropy / count, rel=1e-5)
    assert float(terms.parts["dice"]) == pytest.approx(sum(dice) / 3, rel=1e-4)


@pytest.mark.parametrize("kind", ["classes", "planes", "regions"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_equal_class_weights_change_nothing(kind, gamma):
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(2, 1, 3, 8, 8, generator=generator)
    targets = planes_of(3, generator, overlapping=kind == "regions")
    if kind == "classes":
        targets = torch.where(targets[:, 0] < 0, -1, torch.randint(0, 4, (2, 8, 8)))
    make = region_loss if kind == "regions" else semantic_loss
    bare = make(3, gamma=gamma)(output(logits.clone()), targets).total.item()
    equal = make(3, gamma=gamma, weights=[3.0] * 4)(output(logits.clone()), targets).total.item()
    assert equal == pytest.approx(bare, rel=1e-5)
    other = make(3, gamma=gamma, weights=[1.0, 1.0, 1.0, 9.0])(
        output(logits.clone()), targets
    ).total.item()
    assert abs(other - bare) > 1e-3


def test_class_weights_by_hand():
    """Cross-entropy is torch's weighted mean; Dice is the weighted mean of the classes."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(2, 1, 3, 8, 8, generator=generator)
    targets = torch.randint(-1, 3, (2, 8, 8), generator=generator)
    weights = [0.5, 2.0, 6.0]
    scores = torch.cat([torch.zeros(2, 1, 8, 8), logits[:, 0, :2]], dim=1)
    entropy = torch.nn.functional.cross_entropy(
        scores, targets, torch.tensor(weights), ignore_index=-1
    )
    known = targets >= 0
    each = [
        dice_loss(scores.softmax(1)[:, k][known][None], (targets == k)[known][None]).item()
        for k in (1, 2)
    ]
    terms = semantic_loss(2, weights=weights)(output(logits), targets)
    assert float(terms.parts["cross_entropy"]) == pytest.approx(entropy.item(), rel=1e-5)
    expected = (2 * each[0] + 6 * each[1]) / 8
    assert float(terms.parts["dice"]) == pytest.approx(expected, rel=1e-4)
    planes = torch.stack([torch.where(known, targets == k, -1) for k in (1, 2)], dim=1)
    again = semantic_loss(2, weights=weights)(output(logits.detach()), planes)
    assert again.total.item() == pytest.approx(terms.total.item(), rel=1e-5)


def test_the_weights_of_regions_weigh_their_planes():
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(2, 1, 2, 8, 8, generator=generator)
    planes = planes_of(2, generator, overlapping=True)

    def alone(k):
        return region_loss(1)(output(logits[:, :, [k]].clone()), planes[:, [k]])

    first, second = alone(0), alone(1)
    counts = [int((planes[:, k] >= 0).sum()) for k in range(2)]
    terms = region_loss(2, weights=[99.0, 3.0, 1.0])(output(logits.clone()), planes)
    parts = [float(term.parts["cross_entropy"]) for term in (first, second)]
    expected = (3 * counts[0] * parts[0] + counts[1] * parts[1]) / (3 * counts[0] + counts[1])
    assert float(terms.parts["cross_entropy"]) == pytest.approx(expected, rel=1e-5)
    dice = (3 * float(first.parts["dice"]) + float(second.parts["dice"])) / 4
    assert float(terms.parts["dice"]) == pytest.approx(dice, rel=1e-5)


def test_the_focal_loss_of_classes_equals_monai():
    losses = pytest.importorskip("monai.losses")
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(2, 1, 2, 8, 8, generator=generator)
    targets = torch.randint(0, 3, (2, 8, 8), generator=generator)
    scores = torch.cat([torch.zeros(2, 1, 8, 8), logits[:, 0]], dim=1)
    peer = losses.FocalLoss(gamma=2.0, to_onehot_y=True, use_softmax=True)
    found = semantic_loss(2, dice=0.0, gamma=2.0)(output(logits.clone()), targets)
    # MONAI divides by the number of classes too.
    assert found.total.item() == pytest.approx(3 * peer(scores, targets[:, None]).item(), rel=1e-5)
    planes = torch.stack([targets == 1, targets > 0], dim=1).long()
    found = region_loss(2, dice=0.0, gamma=2.0)(output(logits.clone()), planes)
    peer = losses.FocalLoss(gamma=2.0)
    assert found.total.item() == pytest.approx(peer(logits[:, 0], planes.float()).item(), rel=1e-5)


def test_one_more_term_takes_part_in_the_choice_of_the_mask():
    logits, targets = random_case(b=1, p=1, m=3)
    plain = output(logits.clone())
    object_loss()(plain, targets).total.backward()
    chosen = int(plain.logits.grad.abs().sum((-1, -2)).argmax())

    def punish(predicted, truth, known, sum_up):
        assert predicted.shape == truth.shape == known.shape == (3, 1, 8, 8)
        return predicted.mean((1, 2, 3)) * 0 + (torch.arange(3) == chosen)

    terms = object_loss(extra=ExtraTerm("punished", 100.0, punish))(
        moved := output(logits.clone()), targets
    )
    terms.total.backward()
    assert int(moved.logits.grad.abs().sum((-1, -2)).argmax()) != chosen
    assert list(terms.parts) == ["focal", "dice", "punished", "iou"]


def test_targets_of_another_side_keep_ignored_pixels_and_their_place():
    targets = torch.full((1, 8, 8), -1)
    targets[:, :, 4:] = 2
    small = targets_at(targets, 4)
    assert small.dtype == targets.dtype
    assert small.tolist() == [[[-1, -1, 2, 2]] * 4]
    planes = targets_at(targets[:, None].expand(1, 3, 8, 8), 16)
    assert planes.shape == (1, 3, 16, 16)
    assert torch.equal(planes[:, 1], targets.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert targets_at(targets, 8) is targets
