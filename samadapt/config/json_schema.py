"""The JSON schema of recipes, with which editors complete keys and mark mistakes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING
from typing import Any

from pydantic import TypeAdapter

from samadapt.config.keys import Key, groups_of, keys_of
from samadapt.config.schema import Config
from samadapt.methods import METHODS
from samadapt.methods.base import Method

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe.

    A recipe states what differs from the defaults, so no key is required.
    """
    groups = groups_of(Config)
    keys = keys_of(Config)
    properties: dict[str, Any] = {}
    for name, group in groups.items():
        inside = [key for key in keys.values() if key.name.startswith(f"{name}.")]
        properties[name] = _peft() if group is Method else _group(inside, group.__doc__ or "")
    alone = [key for key in keys.values() if "." not in key.name and key.name != "recipe"]
    # data.labels is another name of data.classes.
    mapping = properties["data"]["anyOf"][-1]["properties"]
    mapping["labels"] = mapping["classes"]
    return {
        "$schema": DRAFT,
        "title": "samadapt recipe",
        **_object(properties | {key.name: _key(key) for key in alone}),
    }


def _group(keys: Iterable[Key], text: str) -> dict[str, Any]:
    """Return the schema of a group: its keys, or the name of its option alone."""
    inside = {key.name.partition(".")[2]: _key(key) for key in keys}
    names = [inside["name"]] if "name" in inside else []
    return {"description": text.partition("\n")[0], "anyOf": [*names, _object(inside)]}


def _peft() -> dict[str, Any]:
    """Return the schema of ``peft``: a method with its options, its name, or a list of names."""
    # Each method is an alternative of its own, so that an editor offers only its own options.
    name = {"enum": list(METHODS)}
    methods = []
    for method_name, method in METHODS.items():
        options = {key.name: _key(key) for key in keys_of(method).values()}
        one = _object({"name": {"const": method_name, "description": method.summary}} | options)
        # lora is the default method, so only its options may stand without a name.
        methods.append(one if method_name == "lora" else {**one, "required": ["name"]})
    # Several methods at once have the options of all, some of them renamed.
    several = {"properties": {"name": {"pattern": "\\+"}}, "required": ["name"]}
    return {
        "description": "The training method and its options.",
        "anyOf": [name, {"type": "array", "items": name}, *methods, {"type": "object", **several}],
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _key(key: Key) -> dict[str, Any]:
    schema = _in_words_of_json(TypeAdapter(key.annotation).json_schema())
    default = list(key.default) if isinstance(key.default, tuple) else key.default
    known = {} if key.default is MISSING else {"default": default}
    return {"description": key.description, **schema, **known}


_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def _in_words_of_json(schema: Any) -> Any:
    """Rename bounds that pydantic leaves in its own words where a validator stands before them."""
    if isinstance(schema, dict):
        return {_BOUNDS.get(key, key): _in_words_of_json(value) for key, value in schema.items()}
    return [_in_words_of_json(item) for item in schema] if isinstance(schema, list) else schema
