"""The keys of a run: what their classes accept, refuse and explain."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from samadapt.config.compose import compose
from samadapt.config.keys import groups_of, keys_of
from samadapt.config.schema import Config, Data, Model
from samadapt.config.train import Train
from samadapt.errors import ConfigError
from samadapt.methods import METHODS
from samadapt.system.settings import SettingsError


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            lambda: Train(steps=-5),
            "train.steps: expected a whole number of at least 1, or null; got -5",
        ),
        (lambda: Train(-5), "train.steps: expected a whole number of at least 1, or null; got -5"),
        (lambda: replace(Config(), seed=-1), "seed: expected a whole number from 0 to"),
        (lambda: Train(stps=5), "train.stps: no such key; did you mean 'train.steps'?"),
        (lambda: Config(train={"steps": 3}), "train: expected Train(...); got {'steps': 3}"),
        (lambda: METHODS["lora"](rank=0), "peft.rank: expected a whole number of at least 1; got"),
        (
            lambda: METHODS["lora"](slices=("x",)),
            "peft.slices: expected a list of [one of q, k, v]",
        ),
        (lambda: Model(name="vit_bb"), "model.name: expected one of vit_b,"),
    ],
)
def test_a_wrong_value_is_refused_where_it_is_built(build: Any, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build()
    assert said in str(caught.value)


def test_python_code_gets_every_problem_at_once() -> None:
    with pytest.raises(SettingsError, match="2 problems") as caught:
        replace(Config().train, steps=0, lr=-1.0)
    assert set(caught.value.problems) == {"train.steps", "train.lr"}


def test_a_long_value_is_cut_off_in_the_message() -> None:
    with pytest.raises(SettingsError) as caught:
        Train(lr="x" * 10_000)
    assert len(str(caught.value)) < 250


def test_python_code_may_write_what_yaml_knows_by_another_type() -> None:
    assert Train(steps=np.int64(3), augment=["flip"]) == Train(steps=3, augment=("flip",))
    assert Data(classes=("a", "b")) == Data(classes=["a", "b"])


def test_every_key_is_explained() -> None:
    for method in METHODS.values():
        for key in keys_of(Config, method).values():
            assert key.description, key


def test_groups_are_those_of_the_design() -> None:
    wanted = [
        "model",
        "peft",
        "data",
        "prompts",
        "head",
        "loss",
        "train",
        "baseline",
        "cache",
        "eval",
        "output",
    ]
    assert list(groups_of(Config)) == wanted
    assert [item.name for item in fields(Config)][-11:] == [
        "seed",
        "precision",
        "device",
        "compile",
        "memory",
        "resume",
        "init",
        "init_sha256",
        "folds",
        "privacy",
        "recipe",
    ]


def test_holding_out_every_case_is_refused_and_none_is_not() -> None:
    assert Data(val_every=0).val_every == 0
    with pytest.raises(SettingsError, match=r"data\.val_every: 1 would hold out every case") as one:
        Data(val_every=1)
    assert "use at least 2, or 0, which holds out nothing" in str(one.value)
    with pytest.raises(SettingsError, match=r"expected a whole number of at least 0; got -1"):
        Data(val_every=-1)


@pytest.mark.parametrize("key", ["validate_cases", "validate_every"])
def test_a_patience_without_validations_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.patience=3 counts .* train\.{key}=0"):
        Train(patience=3, **{key: 0})
    assert Train(**{key: 0}).patience == 0
    with pytest.raises(ConfigError, match=rf"train\.patience=3 counts .* train\.{key}=0"):
        compose("photos", ["data.root=x", "train.patience=3", f"train.{key}=0"])
