"""The keys of a baseline take the place of those that were chosen for SAM."""

from __future__ import annotations

from pathlib import Path

import pytest

from samadapt.config.compose import compose, from_yaml, resolved, to_yaml
from samadapt.errors import ConfigError


def test_baseline_unet_sets_prompts_peft_and_rates(tmp_path: Path) -> None:
    plain = compose("hippocampus")
    config = compose("hippocampus", ["baseline=unet"])
    assert config.prompts.name == "semantic"
    assert config.peft.name == "none"
    train = config.train
    assert (train.batch_size, train.lr, train.decoder_lr, train.weight_decay) == (
        *("auto", 3e-3, 3e-3),
        1e-4,
    )
    assert (train.schedule, train.clip, train.warmup_steps) == ("poly", 5.0, 15)
    # What makes the two comparable stays: data, steps, validation and scores.
    assert (config.data, config.eval) == (plain.data, plain.eval)
    same = ("steps", "validate_every", "validate_cases", "checkpoint_every", "augment")
    assert [getattr(train, key) for key in same] == [getattr(plain.train, key) for key in same]
    assert resolved(config) == config
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert from_yaml(path) == config


def test_a_pretrained_encoder_learns_slower() -> None:
    chosen = ["baseline=unet", "baseline.encoder=resnet34", "baseline.pretrained=true"]
    train = compose("photos", ["data.root=x", *chosen]).train
    assert (train.lr, train.decoder_lr) == (pytest.approx(3e-4), 3e-3)
    train = compose("photos", ["data.root=x", *chosen, "baseline.encoder_lr=0.001"]).train
    assert train.lr == 1e-3


def test_it_takes_all_channels_directly() -> None:
    chosen = ["data.channel=[a,b,c,d,e]", "baseline=unet"]
    assert compose("photos", chosen).model.input_channels == 5
    assert compose("photos", [*chosen, "data.channel=[a,b]"]).model.input_channels is None


def test_pretrained_weights_need_an_encoder() -> None:
    with pytest.raises(ConfigError, match=r"baseline\.pretrained=true needs an encoder"):
        compose("photos", ["baseline=unet", "baseline.pretrained=true"])


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"baseline\.name: expected .*unet.*got 'vnet'"):
        compose("photos", ["baseline=vnet"])


def test_without_it_nothing_changes() -> None:
    assert compose("photos").baseline.name is None
    assert compose("photos", ["baseline=null"]) == compose("photos")
    assert compose("photos", ["baseline.lr=0.1"]).train == compose("photos").train
