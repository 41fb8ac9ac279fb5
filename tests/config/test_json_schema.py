"""The JSON schema of recipes accepts what composes, and marks what does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from samadapt.cli import main
from samadapt.config.compose import compose, read_yaml, recipes, to_dict
from samadapt.config.json_schema import recipe_schema
from samadapt.methods import METHODS

jsonschema = pytest.importorskip("jsonschema")  # comes with nbformat, which runs the notebooks


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(json.dumps(recipe_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_is_valid(recipe: str, validator: Any) -> None:
    assert validator.is_valid(read_yaml(recipes()[recipe]))


@pytest.mark.parametrize("method", [*sorted(METHODS), "[lora,bias]"])
def test_what_show_prints_is_valid(method: str, validator: Any) -> None:
    shown = to_dict(compose("medical", [f"peft={method}"]))
    del shown["recipe"]
    assert validator.is_valid(shown)


@pytest.mark.parametrize(
    "recipe",
    [
        {"data": {"labels": {"liver": 5, "kidney": [2, 3]}}},
        {"model": "vit_b", "peft": ["lora", "bias"], "prompts": "semantic"},
        {"peft": {"rank": 3}},
    ],
)
def test_short_forms_are_valid(recipe: dict[str, Any], validator: Any) -> None:
    assert validator.is_valid(recipe)


@pytest.mark.parametrize(
    "recipe",
    [
        {"trian": {}},
        {"train": {"stps": 3}},
        {"train": {"steps": -5}},
        {"train": {"lr": 0}},
        {"train": "fast"},
        {"data": {"channel": -1}},
        {"model": "vit_x"},
        {"model": {"image_size": 0}},
        {"peft": "lorra"},
        {"peft": {"name": "lora", "hidden": 3}},
        {"seed": "x"},
        {"cache": {"enabled": "maybe"}},
    ],
)
def test_mistakes_are_marked(recipe: dict[str, Any], validator: Any) -> None:
    assert not validator.is_valid(recipe)


def test_show_schema_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(recipe_schema()))
    assert main(["show", "schema", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == printed
