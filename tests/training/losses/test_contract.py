"""What holds for every named loss, also for those of a file that is added tomorrow."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from samadapt.sam.types import MaskOutput
from samadapt.system.settings import annotation_of, describe_type, settings_fields
from samadapt.training.losses import LOSSES
from samadapt.training.losses.base import EVERY_TARGET, targets_text

CASES = [(name, target) for name, loss in LOSSES.items() for target in sorted(loss.fits)]
every_case = pytest.mark.parametrize(("name", "target"), CASES)
CLASSES = 2


def make_case(target, side=12, seed=0):
    """Logits, and targets with a shape in each class; the last rows are padding."""
    generator = torch.Generator().manual_seed(seed)
    masks = 3 if target == "objects" else CLASSES
    logits = torch.randn(2, 1, masks, side, side, generator=generator)
    planes = torch.zeros(2, CLASSES, side, side, dtype=torch.long)
    planes[:, 0, 1 : side // 2, 1 : side // 2] = 1
    planes[1, 1, side // 2 : side - 3, 2:-2] = 1
    planes[:, :, -2:] = -1
    planes[0, :, :2, -3:] = -1
    if target == "objects":
        return logits, planes[:, :1]
    if target == "regions":
        planes[:, 1] = planes[:, 1].where(planes[:, 1] != 0, planes[:, 0])  # the second overlaps
        return logits, planes
    labels = (planes.clamp(min=0) * torch.tensor([1, 2])[:, None, None]).sum(1)
    return logits, labels.where(planes[:, 0] >= 0, -1)


def computed(loss, logits, targets):
    """Total and gradient."""
    given = logits.clone().requires_grad_()
    iou = torch.full(given.shape[:3], 0.5, requires_grad=True)
    terms = loss(MaskOutput(given, iou), targets)
    terms.total.backward()
    assert all(math.isfinite(float(part)) for part in terms.parts.values())
    return terms.total.item(), given.grad


def unknown(targets, logits):
    """Where the logits are ignored."""
    if targets.ndim == 3:
        return (targets < 0)[:, None, None].expand_as(logits)
    if targets.shape[1] == 1:
        return (targets < 0)[:, :, None].expand_as(logits)
    return (targets < 0)[:, None].expand_as(logits)


@every_case
def test_ignored_pixels_have_neither_loss_nor_gradient(name, target):
    loss = LOSSES[name]().build(target, CLASSES)
    logits, targets = make_case(target)
    where = unknown(targets, logits)
    found = [
        computed(loss, torch.where(where, logits + shift, logits), targets)
        for shift in (0.0, 8.0, -40.0)
    ]
    assert float(found[0][1][~where].abs().max()) > 0
    for total, gradient in found:
        assert total == found[0][0]
        assert torch.equal(gradient, found[0][1])
        assert float(gradient[where].abs().max()) == 0


@every_case
@pytest.mark.parametrize("side", [8, 13, 20])
def test_the_grid_has_any_side(name, target, side):
    logits, targets = make_case(target, side)
    total, gradient = computed(LOSSES[name]().build(target, CLASSES), logits, targets)
    assert math.isfinite(total)
    assert gradient.isfinite().all()


@every_case
@pytest.mark.parametrize("content", ["nothing is known", "no object", "all is object"])
def test_a_batch_without_a_border_is_finite(name, target, content):
    logits, targets = make_case(target)
    value = {"nothing is known": -1, "no object": 0, "all is object": 1}[content]
    total, gradient = computed(
        LOSSES[name]().build(target, CLASSES), logits, torch.full_like(targets, value)
    )
    assert math.isfinite(total)
    assert gradient.isfinite().all()
    assert value >= 0 or not gradient.any()


@every_case
def test_a_right_answer_costs_nothing_and_a_wrong_one_does(name, target):
    loss = LOSSES[name]().build(target, CLASSES)
    logits, targets = make_case(target)
    if targets.ndim == 3:
        right = torch.stack([targets == k for k in (1, 2)], dim=1)[:, None]
    else:
        right = (targets > 0)[:, :, None] if target == "objects" else (targets > 0)[:, None]
    right = right.expand_as(logits)
    sure = torch.where(right, 12.0, -12.0)
    iou = torch.ones(logits.shape[:3])
    assert loss(MaskOutput(sure, iou), targets).total.item() < 1e-2
    assert loss(MaskOutput(-sure, iou), targets).total.item() > 1


@every_case
def test_descent_finds_the_masks(name, target):
    loss = LOSSES[name]().build(target, CLASSES)
    logits, targets = make_case(target)
    logits.requires_grad_()
    iou = torch.full(logits.shape[:3], 0.5, requires_grad=True)
    optimizer = torch.optim.Adam([logits, iou], lr=0.3)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        total = loss(MaskOutput(logits, iou), targets).total
        total.backward()
        optimizer.step()
        values.append(total.item())
    assert values[-1] < 0.2 * values[0]


@every_case
def test_half_precision_logits_are_taken(name, target):
    logits, targets = make_case(target)
    loss = LOSSES[name]().build(target, CLASSES)
    exact = loss(MaskOutput(logits, torch.zeros(logits.shape[:3])), targets).total.item()
    half = MaskOutput(logits.bfloat16(), torch.zeros(logits.shape[:3]).bfloat16())
    assert loss(half, targets).total.item() == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if "classes" in loss.fits])
def test_class_weights_matter(name):
    logits, targets = make_case("classes")
    found = [
        computed(LOSSES[name]().build("classes", CLASSES, weights), logits, targets)[0]
        for weights in (None, [1.0, 1.0, 1.0], [1.0, 1.0, 20.0])
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert abs(found[2] - found[0]) > 1e-3


def test_a_key_means_the_same_in_all_losses():
    seen = {}
    for loss in LOSSES.values():
        for key, field in settings_fields(loss).items():
            assert field.description, f"{loss.name}.{key}"
            meaning = (describe_type(annotation_of(field)), field.default, field.description)
            assert seen.setdefault(key, meaning) == meaning, f"{loss.name}.{key}"


def test_every_loss_says_what_it_is_for():
    for name, loss in LOSSES.items():
        assert loss.name == name
        assert loss.fits
        assert loss.fits <= EVERY_TARGET
        assert loss.summary.rstrip(".") == loss.summary != ""
    assert targets_text(LOSSES["sam"].fits) == "prompts with boxes or points"
    assert targets_text(LOSSES["generalized_dice"].fits) == "prompts=semantic without data.regions"


@pytest.mark.slow
def test_the_default_losses_do_not_wait_for_monai():
    program = """
import sys, torch
from samadapt.sam.types import MaskOutput
from samadapt.training.losses import LOSSES
assert "monai" not in sys.modules
for name, target, masks in (("sam", "objects", 3), ("dice_ce", "classes", 2)):
    shape = (1, 1, 8, 8) if target == "objects" else (1, 8, 8)
    output = MaskOutput(torch.zeros(1, 1, masks, 8, 8), torch.zeros(1, 1, masks))
    LOSSES[name]().build(target, 2)(output, torch.ones(shape, dtype=torch.long))
assert "monai" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
