"""Which loss a configuration gets, and what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from samadapt.config.compose import compose, from_yaml
from samadapt.config.schema import Loss
from samadapt.errors import ConfigError
from samadapt.prompts.policy import PromptPolicy
from samadapt.runs.finetune import finetune
from samadapt.runs.run_loss import choose_loss
from samadapt.sam.types import MaskOutput
from samadapt.training.losses import LOSSES
from samadapt.training.mask_losses import object_loss, region_loss, semantic_loss


def context(prompts, *, overlapping=False, truth=None):
    said = []
    return SimpleNamespace(
        policy=PromptPolicy(prompts),
        model=SimpleNamespace(watershed=None),
        dataset=SimpleNamespace(
            classes=["liver", "spleen"],
            overlapping=overlapping,
            sample=lambda ref: SimpleNamespace(truth=truth),
        ),
        say=said.append,
        said=said,
    )


def outputs(masks=2):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, masks, 8, 8, generator=generator)
    return MaskOutput(logits, torch.full((1, 1, masks), 0.5))


def targets(kind):
    labels = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(1))
    planes = torch.stack([labels == 1, labels > 0], dim=1).long()
    return {"classes": labels, "regions": planes, "objects": planes[:, :1]}[kind]


@pytest.mark.parametrize(
    ("prompts", "loss", "fits"),
    [
        ("box", "auto", True),
        ("box", "sam", True),
        ("point", "dice_ce", False),
        ("semantic", "auto", True),
        ("semantic", "dice_ce", True),
        ("semantic", "sam", False),
        ("point", "cl_dice", True),
        ("box", "dice_focal", False),
    ],
)
def test_the_loss_goes_with_the_prompts(prompts, loss, fits):
    if fits:
        assert callable(choose_loss(Loss(name=loss), context(prompts), ()))
    else:
        with pytest.raises(ConfigError, match=f"loss={loss} does not fit prompts={prompts}"):
            choose_loss(Loss(name=loss), context(prompts), ())


def test_a_loss_of_exclusive_classes_does_not_take_regions():
    choice = Loss(name="generalized_dice")
    assert callable(choose_loss(choice, context("semantic"), ()))
    with pytest.raises(ConfigError, match=r"with data.regions: .* use one of boundary, cl_dice"):
        choose_loss(choice, context("semantic", overlapping=True), ())


@pytest.mark.parametrize(
    ("prompts", "overlapping", "kind", "same"),
    [
        ("box", False, "objects", lambda: object_loss(focal=3.0)),
        ("semantic", False, "classes", lambda: semantic_loss(2)),
        ("semantic", True, "regions", lambda: region_loss(2)),
    ],
)
def test_auto_is_the_loss_of_the_paper(prompts, overlapping, kind, same):
    loss = choose_loss(Loss(focal=3.0), context(prompts, overlapping=overlapping), ())
    assert loss(outputs(), targets(kind)).total == same()(outputs(), targets(kind)).total


def test_keys_reach_the_loss():
    made = [
        choose_loss(Loss(name="tversky", tversky_beta=beta), context("semantic"), ())
        for beta in (0.7, 0.1)
    ]
    values = [loss(outputs(), targets("classes")).total.item() for loss in made]
    assert values[0] > values[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dice_ce", "tversky_beta": 0.6}, "loss=dice_ce does not take it, only tversky"),
        ({"focal_gamma": 3.0}, "loss=auto does not take it, only dice_focal"),
        ({"name": "dice_ce", "iou": 2.0}, "does not take it, only boundary, cl_dice, sam, tversky"),
    ],
)
def test_a_key_of_another_loss_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        choose_loss(Loss(**options), context("semantic"), ())
    # The keys of both losses that auto stands for are accepted, since the prompts decide.
    assert callable(choose_loss(Loss(iou=2.0, cross_entropy=2.0), context("semantic"), ()))


def test_class_weights():
    truth = np.array([[0, 0, 0, 0, 1, 1, 2, -1]], np.int16)
    run = context("semantic", truth=truth)
    loss = choose_loss(Loss(class_weights="balanced"), run, ["a", "b"])
    assert run.said == ["loss.class_weights: background 0.5833, liver 1.167, spleen 2.333"]
    same = semantic_loss(2, weights=[7 / 12, 7 / 6, 7 / 3])(outputs(), targets("classes")).total
    assert loss(outputs(), targets("classes")).total.item() == pytest.approx(same.item())
    regions = context("semantic", overlapping=True)
    choose_loss(Loss(class_weights={"spleen": 2}), regions, ())
    assert regions.said == ["loss.class_weights: liver 1, spleen 2"]
    with pytest.raises(ConfigError, match="did you mean 'spleen'"):
        choose_loss(Loss(class_weights={"splen": 2}), context("semantic"), ())
    with pytest.raises(ConfigError, match="for prompts=semantic; with prompts=box"):
        choose_loss(Loss(class_weights=[1, 2]), context("box"), ())


def test_names_and_keys_are_checked_where_they_are_typed(tmp_path):
    with pytest.raises(ConfigError, match=r"loss\.name: expected one of auto, .*'dice_ce'"):
        compose("photos", ["loss=dice_ec"])
    with pytest.raises(ConfigError, match=r"loss\.class_weights: expected .*got -1"):
        compose("photos", ["loss.class_weights=-1"])
    with pytest.raises(ConfigError, match=r"loss\.tversky_bta: no such key.*tversky_beta"):
        compose("photos", ["loss.tversky_bta=1"])
    recipe = tmp_path / "thin.yaml"
    recipe.write_text(
        "prompts: semantic\nloss: {name: tversky, tversky_beta: 0.9, dice: 2}\n", encoding="utf-8"
    )
    assert compose(str(recipe)).loss.tversky_beta == 0.9
    # Another loss drops what describes the recipe's, and keeps what it shares with others.
    other = compose(str(recipe), ["loss=cl_dice", "loss.class_weights={a: 2}"]).loss
    assert (other.tversky_beta, other.dice, other.class_weights) == (0.7, 2, {"a": 2})


def test_configurations_of_earlier_versions_load(tmp_path):
    path = tmp_path / "config.yaml"
    old = {"name": "auto", "focal": 20.0, "dice": 1.0, "iou": 1.0, "cross_entropy": 1.0}
    path.write_text(f"loss: {json.dumps(old)}\n", encoding="utf-8")
    assert from_yaml(path).loss == Loss()


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if "classes" in loss.fits])
def test_a_run_with_each_loss(tmp_path, name):
    for part in ("images", "masks"):
        (tmp_path / "pictures" / part).mkdir(parents=True)
    for index in range(4):
        mask = np.zeros((24, 36), np.uint8)
        mask[3:9, 4:30], mask[14:20, 4:10] = 1, 2
        image = np.random.default_rng(index).integers(0, 99, (24, 36, 3), dtype=np.uint8)
        image[mask > 0] += 100
        for part, array in (("images", image), ("masks", mask)):
            Image.fromarray(array).save(tmp_path / "pictures" / part / f"p{index}.png")
    options = ["model=tiny", f"data.root={tmp_path / 'pictures'}", "peft.blocks=last:1"]
    options += [f"output.dir={tmp_path}", "prompts=semantic", f"loss={name}", "device=cpu"]
    options += ["loss.class_weights=balanced", "train.steps=8", "train.batch_size=2"]
    result = finetune(compose("photos", [*options, "train.decoder_lr=1e-2", "precision=fp32"]))
    lines = (result.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]
    assert np.mean(found[-2:]) < np.mean(found[:2])
    assert "loss.class_weights: background" in (result.run_dir / "log.txt").read_text(
        encoding="utf-8"
    )


def test_a_weight_of_object_scores_needs_a_model_that_gives_them():
    choice = Loss(name="sam", object_score=2)
    run = context("box")
    run.model.gives_object_scores = True
    assert callable(choose_loss(choice, run, ()))
    run.model.gives_object_scores = False
    with pytest.raises(ConfigError, match=r"loss\.object_score=2\.0 has no effect: only SAM 2"):
        choose_loss(choice, run, ())
    assert callable(choose_loss(Loss(name="sam"), run, ()))
