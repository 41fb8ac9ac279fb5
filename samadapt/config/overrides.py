"""A command line of ``key=value`` over a mapping over a schema's defaults.

Hydra reads the values (``[1,2]``, ``{a: 1}``, quotes, ``null``), OmegaConf the files. Everything
wrong with a command line comes out in one ``ConfigError``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from samadapt.adapters.combining import find_method
from samadapt.errors import ConfigError, nearest
from samadapt.methods import METHODS
from samadapt.methods.base import UNFIT, Method
from samadapt.system.plain_yaml import check_text, read_plain_yaml
from samadapt.system.typed import Leaf, check, groups, instantiate, leaves, type_name

T = TypeVar("T")
COMMAND_LINE = "command line"
SECOND_NAMES = {"data.labels": "data.classes"}
"""Keys that people know by another name; what is recorded has the first one."""


def parse(
    schema: type[T],
    arguments: Sequence[str],
    base: Mapping[str, Any] | None = None,
    *,
    origin: str = "",
) -> T:
    """Build a schema from ``key=value`` arguments over a nested mapping over its defaults.

    Args:
        schema: a dataclass of knobs and groups; verbs declare their own.
        arguments: ``group=option`` or ``group.key=value``, in Hydra's grammar.
        base: what the arguments override, as a recipe has it.
        origin: file that ``base`` came from, for the messages.

    Raises:
        ConfigError: naming every problem at once.
    """
    problems: list[str] = []
    typed = _split(arguments, schema, problems)
    stored = flatten(base or {}, schema)
    for given in (typed, stored):
        _rename(given, problems)
    name = str(typed.get("peft.name", stored.get("peft.name", "lora")))
    method = _method(name, problems)

    def choose(group: type[Any]) -> type[Any]:
        return method if method is not None and group is Method else group

    explained = "+" in name or name in UNFIT
    known = _known(schema, choose, (*METHODS, name) if explained else tuple(METHODS))
    _forget_bound(stored, typed, known)
    values: dict[str, Any] = {}
    for source, given in ((origin, stored), (COMMAND_LINE, typed)):
        for key, value in given.items():
            if key.startswith("peft.") and method is None and key != "peft.name":
                continue
            try:
                values[key] = _checked(key, value, known, is_text=source == COMMAND_LINE)
            except ValueError as error:
                problems.append(f"{key}: {error}" + (f" ({source})" if source else ""))
    result = instantiate(schema, values, choose, problems)
    if result is not None and not problems:
        return result
    head = "" if len(problems) == 1 else f"{len(problems)} problems in the configuration:\n  - "
    raise ConfigError(head + "\n  - ".join(problems))


def describe(schema: type[Any]) -> str:
    """Return the keys of a schema with default, meaning and type, a line each, for ``--help``."""
    lines = []
    for key, leaf in leaves(schema, lambda group: group).items():
        if not key.startswith("peft."):
            lines.append(_line(key, leaf))
    if Method in groups(schema).values():
        for name, method in METHODS.items():
            lines.append(f"\npeft={name}: {method.summary}")
            lines += [
                _line(f"peft.{key}", leaf) for key, leaf in leaves(method, lambda g: g).items()
            ]
        lines.append("\npeft=[lora,bias]: several that change different parts, with all options")
    return "\n".join(lines)


def _line(key: str, leaf: Leaf) -> str:
    default = "" if leaf.default is MISSING else _shown(leaf.default)
    meaning = leaf.metadata.get("help", "")
    return f"  {f'{key}={default}':<34} {meaning}{' ' if meaning else ''}({type_name(leaf.hint)})"


def _shown(value: Any) -> str:
    """Return a default as a user would type it."""
    if isinstance(value, tuple | list):
        return "[" + ",".join(_shown(member) for member in value) + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _method(name: str, problems: list[str]) -> type[Method] | None:
    """Return the method that ``peft`` names, or None; what cannot be is a problem."""
    if "+" not in name and name not in UNFIT:
        return METHODS.get(name)
    try:
        return find_method(name)
    except ConfigError as error:
        problems.append(str(error))
        return None


def _rename(given: dict[str, Any], problems: list[str]) -> None:
    """Put a key's second name to its first; both at once are a problem."""
    for second, first in SECOND_NAMES.items():
        if second not in given:
            continue
        if first in given:
            problems.append(f"{second}: is another name of {first}; give one of the two")
        given[first] = given.pop(second)


def _known(schema: type[Any], choose: Any, methods: tuple[str, ...]) -> dict[str, Leaf]:
    """Return the schema's keys, with ``peft.name`` among them where it has that group."""
    known = leaves(schema, choose)
    if Method in groups(schema).values():
        known["peft.name"] = Leaf("peft.name", Literal.__getitem__(methods), "lora", {})
    return known


def _split(arguments: Sequence[str], schema: type[Any], problems: list[str]) -> dict[str, str]:
    """Return arguments as key and text; ``group=option`` becomes ``group.name``."""
    typed: dict[str, str] = {}
    for argument in arguments:
        key, sign, text = argument.partition("=")
        if not sign:
            problems.append(f"{argument}: expected key=value; there is no '='")
        elif key == "peft" and text.startswith("["):
            typed["peft.name"] = "+".join(name.strip() for name in text.strip("[]").split(","))
        elif key in groups(schema) and not text.startswith("{"):
            typed[f"{key}.name"] = text
        else:
            typed[key] = text
    return typed


def flatten(nested: Mapping[str, Any], schema: type[Any]) -> dict[str, Any]:
    """Return nested values by dotted key; a group given as text names its option.

    ``peft`` given as a list names several methods at once.
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if key == "peft" and isinstance(value, list):
            value = "+".join(map(str, value))
        if key in groups(schema) and isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": member for inner, member in value.items()}
        else:
            flat[f"{key}.name" if key in groups(schema) else key] = value
    return flat


def _forget_bound(
    stored: dict[str, Any], typed: Mapping[str, str], known: Mapping[str, Leaf]
) -> None:
    """Drop a recipe's values that belong to an option for which another is chosen now.

    For ``peft`` they are the keys that not every method has: ``rank`` goes, ``blocks`` stays.
    """
    shared = {f"peft.{item.name}" for item in fields(Method)} | {"peft.name"}
    for key, text in typed.items():
        group, _, last = key.partition(".")
        default = known[key].default if key in known else None
        if last != "name" or text == stored.get(key, default):
            continue
        for other in list(stored):
            own = group == "peft" and other.startswith("peft.") and other not in shared
            if own or (other in known and known[other].bound_to == group):
                del stored[other]


def _checked(key: str, value: Any, known: Mapping[str, Leaf], *, is_text: bool) -> Any:
    """Return a value as its key's type.

    Raises:
        ValueError: for an unknown key, or saying what was expected.
    """
    if key not in known:
        inside = [name for name in known if name.startswith(f"{key.removesuffix('.name')}.")]
        if key.endswith(".name") and inside:
            raise ValueError(f"the group has no options; set one of its keys: {', '.join(inside)}")
        others = inside or [name for name in known if "." not in name] + sorted(
            {n.partition(".")[0] for n in known if "." in n}
        )
        hinted = nearest(key, known) or f"; there is {', '.join(others)}"
        raise ValueError(f"no such key{hinted}")
    leaf = known[key]
    if not is_text:
        return check(leaf, value)
    check_text(value)
    try:
        return check(leaf, _hydra_value(key, value))
    except ValueError:
        if leaf.takes_text:
            return check(leaf, value)
        raise


def _hydra_value(key: str, text: str) -> Any:
    """Return the value of ``key=text`` in Hydra's override grammar.

    Raises:
        ValueError: for a text outside the grammar, or a sweep over several values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException as error:
        raise ValueError(
            f"cannot read {text[:60]!r}: a bracket or a comma is amiss, or a text with other than "
            "plain letters, digits and ./_- is not written in quotes, key='\"text\"'"
        ) from error
    if override.is_sweep_override():
        raise ValueError(f"expected one value; got {text[:60]!r} (a list is written [a,b])")
    return override.value()


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file's mapping.

    Raises:
        ConfigError: naming the file; as ``read_plain_yaml``, or when it is not a mapping.
    """
    content = read_plain_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys; got {type(content).__name__}")
    return {str(key): value for key, value in content.items()}
