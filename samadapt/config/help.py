"""The keys of a class of settings as text, for ``--help`` and ``samadapt ls keys``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING
from typing import Any

from samadapt.adapters.combining import find_method
from samadapt.config.compose import read_yaml, recipe_path, recipes
from samadapt.config.keys import Key, flatten, groups_of, keys_of, method_key
from samadapt.errors import ConfigError, nearest
from samadapt.methods import METHODS
from samadapt.methods.base import Method
from samadapt.system.settings import Settings, describe_type

REQUIRED = "required"
"""What stands for the default of a key that must be given."""


def describe(schema: type[Settings], arguments: Sequence[str] = (), command: str = "") -> str:
    """Return the help text of the keys of a command.

    A command with groups gets a line for each group, the recipe's values, the keys of the chosen
    method and the keys without a group. A group that is named as an argument gets all its keys.

    Args:
        schema: the keys of the command.
        arguments: names of groups, ``recipe=NAME`` and ``peft=NAME``; others do not matter.
        command: name of the command, for the examples.

    Raises:
        ConfigError: an argument names neither.
    """
    groups = groups_of(schema)
    named = [argument for argument in arguments if "=" not in argument]
    if unknown := [name for name in named if name not in groups]:
        raise ConfigError(
            f"{command} has no group {unknown[0]!r}{nearest(unknown[0], groups)}; "
            + (f"the groups are {', '.join(groups)}" if groups else "it has no groups")
        )
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if named:
        return "\n\n".join(_group_text(schema, name, given) for name in named)
    alone = [key for name, key in keys_of(schema).items() if "." not in name]
    if not groups:
        return _lines(alone)
    parts = [_groups_text(groups, command)]
    if Method in groups.values():
        stored = _recipe_values(schema, given)
        if stored:
            values = "\n".join(f"  {key}={show_value(value)}" for key, value in stored.items())
            parts.append(f"values of recipe={given['recipe']}:\n{values}")
        else:
            parts.append(f"recipes: {', '.join(recipes())}; recipe=NAME --help shows one's values")
        # As in a run, the command line wins over the recipe, and without both lora applies.
        name = str(given.get("peft", stored.get("peft.name", "lora")))
        parts.append(_method_text(name))
    parts.append("keys without a group:\n" + _lines(alone))
    return "\n\n".join(parts)


def key_rows(schema: type[Settings], group: str = "") -> list[dict[str, Any]]:
    """Return the keys of a class of settings, or of one of its groups, as plain values.

    Args:
        schema: the class.
        group: name of a group, or ``peft=NAME`` for the keys of one method; empty for all.

    Raises:
        ConfigError: there is no such group.
    """
    groups = groups_of(schema)
    name, _, method = group.partition("=")
    if name and name not in groups:
        known = f"expected one of {', '.join(groups)}"
        raise ConfigError(f"ls keys: {known}; got {name!r}{nearest(name, groups)}")
    if name == "peft":
        return _method_rows({method: find_method(method)} if method else METHODS)
    keys = keys_of(schema)
    return [_row(key) for key in keys.values() if not name or key.name.startswith(f"{name}.")]


def show_value(value: Any) -> str:
    """Return a value as a user types it."""
    if isinstance(value, tuple | list):
        return "[" + ",".join(show_value(member) for member in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {show_value(v)}" for k, v in value.items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _groups_text(groups: Mapping[str, type[Settings]], command: str) -> str:
    lines = [
        f"  {name:<9} {'the training method and its options' if group is Method else _first(group)}"
        for name, group in groups.items()
    ]
    first = next(iter(groups))
    return f"groups; `samadapt {command} --help {first}` lists the keys of one:\n" + "\n".join(
        lines
    )


def _first(group: type[Settings]) -> str:
    """Return the first sentence of a group's docstring, without its full stop."""
    text = (group.__doc__ or "").partition("\n")[0].rstrip(".")
    return text[:1].lower() + text[1:]


def _group_text(schema: type[Settings], name: str, given: Mapping[str, str]) -> str:
    """Return all keys of a group; for ``peft`` those of one method, or the list of methods."""
    if groups_of(schema)[name] is not Method:
        keys = [key for key in keys_of(schema).values() if key.name.startswith(f"{name}.")]
        return f"{name}: {_first(groups_of(schema)[name])}\n" + _lines(keys)
    if "peft" in given:
        return _method_text(given["peft"])
    methods = "\n".join(f"  {name:<14} {method.summary}" for name, method in METHODS.items())
    return (
        f"keys of every method:\n{_lines(keys_of(Method, prefix='peft.').values())}\n\n"
        f"methods; `--help peft peft=NAME` lists the keys of one:\n{methods}\n\n"
        "peft=[lora,bias] combines methods that change different parts, with the options of both"
    )


def _method_text(name: str) -> str:
    """Return the keys of a method; a list of methods is one by its joined name."""
    name = "+".join(part.strip() for part in name.strip("[]").split(","))
    method = find_method(name)
    return f"peft={name}: {method.summary}\n" + _lines(keys_of(method, prefix="peft.").values())


def _recipe_values(schema: type[Settings], given: Mapping[str, str]) -> dict[str, Any]:
    """Return what the recipe sets, by dotted key; nothing if no recipe is named."""
    if "recipe" not in given:
        return {}
    return flatten(read_yaml(recipe_path(given["recipe"])), schema)


def _method_rows(methods: Mapping[str, type[Method]]) -> list[dict[str, Any]]:
    """Return the keys of methods; those that all methods share come once, at the top."""
    shared = keys_of(Method, prefix="peft.")
    # `peft.name` is no field of a method, so its row is added by hand.
    rows = [_row(method_key()), *map(_row, shared.values())]
    rows = [{**row, "method": "all"} for row in rows]
    for name, method in methods.items():
        rows += [
            {**_row(key), "method": name}
            for key in keys_of(method, prefix="peft.").values()
            # A shared key comes again where a method gives it another default or meaning.
            if key != shared.get(key.name)
        ]
    return rows


def _row(key: Key) -> dict[str, Any]:
    default = REQUIRED if key.default is MISSING else show_value(key.default)
    kind = describe_type(key.annotation)
    return {"name": key.name, "default": default, "type": kind, "about": key.description}


def _lines(keys: Iterable[Key]) -> str:
    return keys_text(map(_row, keys))


def keys_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the rows of keys as text: default, meaning and type, wrapped to 100 columns."""
    lines: list[str] = []
    for row in rows:
        default = "" if row["default"] == REQUIRED else row["default"]
        method = row.get("method", "all")
        of_method = "" if method == "all" else f"peft={method}: "
        # The text starts in one column, and its further lines are indented a little more.
        head = f"  {row['name'] + '=' + default:<34} "
        lines += textwrap.wrap(
            f"{head}{of_method}{row['about']} ({row['type']})",
            100,
            subsequent_indent=" " * 39,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)
