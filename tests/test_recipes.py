"""Every recipe, found by itself, with every method."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from samadapt.config import Config, compose, recipes, to_dict
from samadapt.methods import METHODS
from samadapt.overrides import flatten

RECIPES = recipes()


def test_the_issue_s_recipes_are_there() -> None:
    assert {"medical", "medical_ct", "hippocampus", "photos"} <= set(RECIPES)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("recipe", RECIPES)
def test_composes(recipe: str, method: str) -> None:
    config = compose(recipe, [f"peft={method}"])
    assert config.recipe == recipe
    assert config.peft.name == method


@pytest.mark.parametrize("recipe", RECIPES)
def test_holds_only_what_differs_and_why(recipe: str) -> None:
    path: Path = RECIPES[recipe]
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# "), "the first line says what the recipe is for"
    defaults = flatten(to_dict(Config()), Config)
    stated = flatten(yaml.safe_load(text), Config)
    same = {key for key, value in stated.items() if defaults.get(key) == value}
    assert not {key for key in same if not key.endswith(".name")}  # a name heads its group
    bare = [
        line
        for line in text.splitlines()[1:]
        if ": " in line and " # " not in line and not line.lstrip().startswith("name: lora")
    ]
    assert not bare, "each line says its reason"


def test_medical_needs_nothing_but_packages() -> None:
    config = compose("medical")
    assert (config.model.name, config.data.name) == ("lite_medsam", "mni152")
    assert (config.model.checkpoint, config.data.root) == (None, None)
