"""Plain values into typed dataclasses, with every problem collected and none hidden.

A schema is a dataclass whose fields are leaves (``train.steps``) or groups (other dataclasses).
OmegaConf's structured configurations know neither ``Literal`` nor unions with lists, and stop at
the first error; everything a user typed wrong is to come out in one message.
"""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from samadapt.errors import SamadaptError, nearest

T = TypeVar("T")
Choose = Callable[[type[Any]], type[Any]]
"""Maps a group's declared type to the one in use: ``peft=NAME`` picks a subclass."""

_NUMBER_NAMES: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a number"}
_COMPARISONS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


def knob(
    default: Any = MISSING,
    *,
    help: str,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    bound: bool | str = False,
    choices: Callable[[], Iterable[str]] | None = None,
) -> Any:
    """Return a dataclass field that carries its help and its range.

    Args:
        default: the schema's default; without one the key must be given.
        help: what it does, with its unit.
        low: smallest value allowed.
        above: value that it must exceed.
        high: largest value allowed.
        below: value that it must stay under.
        bound: it belongs to the group's ``name``; a recipe's value is forgotten when the command
            line chooses another name. The name of another group: to that group's ``name``.
        choices: returns the texts allowed, where they are known only at run time.
    """
    limits = {">=": low, ">": above, "<=": high, "<": below}
    metadata = {
        "help": help,
        "limits": {sign: limit for sign, limit in limits.items() if limit is not None},
        "bound": bound,
        "choices": choices,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Leaf:
    """One key that a user can set.

    Attributes:
        key: dotted name.
        hint: its resolved type annotation.
        default: the schema's default, or ``dataclasses.MISSING``.
        metadata: what ``knob`` recorded; empty for fields declared without it.
    """

    key: str
    hint: Any
    default: Any
    metadata: Mapping[str, Any]

    @property
    def bound_to(self) -> str:
        """The group for which another name makes a recipe's value fall; ``""`` for none."""
        bound = self.metadata.get("bound", False)
        return bound if isinstance(bound, str) else self.key.partition(".")[0] if bound else ""

    @property
    def takes_text(self) -> bool:
        """Whether any text is a legal value."""
        return str in _arms(self.hint)


def leaves(schema: type[Any], choose: Choose, prefix: str = "") -> dict[str, Leaf]:
    """Return every key of ``schema`` in declaration order, groups flattened to dotted names."""
    found: dict[str, Leaf] = {}
    hints: dict[str, Any] = get_type_hints(schema)
    for item in fields(schema):
        key, hint = f"{prefix}{item.name}", hints[item.name]
        if _is_group(hint):
            found |= leaves(choose(hint), choose, f"{key}.")
        else:
            found[key] = Leaf(key, hint, _default(item), item.metadata)
    return found


def groups(schema: type[Any]) -> dict[str, type[Any]]:
    """Return the groups of ``schema`` by name."""
    hints: dict[str, Any] = get_type_hints(schema)
    return {item.name: hints[item.name] for item in fields(schema) if _is_group(hints[item.name])}


def check(leaf: Leaf, value: Any) -> Any:
    """Return ``value`` as the leaf's type.

    Raises:
        ValueError: saying what was expected and what was given.
    """
    converted = convert(value, leaf.hint)
    choices = list(leaf.metadata["choices"]()) if leaf.metadata.get("choices") else [converted]
    if converted not in choices:
        hinted = nearest(str(value), choices)
        raise ValueError(f"expected one of {', '.join(choices)}; got {value!r}{hinted}")
    if isinstance(converted, int | float) and not isinstance(converted, bool):
        if not math.isfinite(converted):
            raise ValueError(f"expected a finite number; got {value!r}")
        limits: Mapping[str, float] = leaf.metadata.get("limits", {})
        if not all(_holds(converted, sign, limit) for sign, limit in limits.items()):
            wanted = " and ".join(f"{sign} {_exact(limit)}" for sign, limit in limits.items())
            raise ValueError(f"expected a value {wanted}; got {converted!r}")
    return converted


def _exact(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def convert(value: Any, hint: Any) -> Any:
    """Return ``value`` as ``hint``; integers count as numbers, whole floats as integers.

    Raises:
        ValueError: saying what was expected and what was given.
    """
    for arm in _arms(hint):
        matched, converted = _match(value, arm)
        if matched:
            return converted
    choices = [c for arm in _arms(hint) if get_origin(arm) is Literal for c in get_args(arm)]
    hinted = nearest(str(value), [str(c) for c in choices])
    raise ValueError(f"expected {type_name(hint)}; got {value!r}{hinted}")


def type_name(hint: Any) -> str:
    """Return a type annotation in words that a user reads."""
    names = []
    for arm in _arms(hint):
        if get_origin(arm) is Literal:
            names.append("one of " + ", ".join(str(choice) for choice in get_args(arm)))
        elif arm is type(None):
            names.append("null")
        elif get_origin(arm) in (list, tuple):
            names.append(f"a list of [{type_name(get_args(arm)[0])}]")
        elif get_origin(arm) is dict:
            names.append("a mapping {name: " + type_name(get_args(arm)[1]) + "}")
        elif arm is Any:
            names.append("any value")
        else:
            names.append(_NUMBER_NAMES.get(arm, "text" if arm is str else str(arm)))
    return " or ".join(names)


def instantiate(
    schema: type[T],
    values: Mapping[str, Any],
    choose: Choose,
    problems: list[str],
    prefix: str = "",
) -> T | None:
    """Build ``schema`` from checked values by dotted key; absent keys take their default.

    A missing value, or an error raised on purpose by a group's own constructor, is added to
    ``problems``, and None is returned.
    """
    hints, given, before, lacking = get_type_hints(schema), {}, len(problems), False
    for item in fields(cast(Any, schema)):
        key, hint = f"{prefix}{item.name}", hints[item.name]
        if _is_group(hint):
            given[item.name] = instantiate(
                choose(hint),
                values,
                choose,
                problems,
                f"{key}.",
            )
        elif key in values:
            given[item.name] = values[key]
        elif _default(item) is MISSING:
            lacking = True
            if not any(p.startswith(f"{key}:") for p in problems):  # or it was given, and wrong
                problems.append(f"{key}: it is needed: {item.metadata.get('help', 'VALUE')}")
    if lacking or len(problems) > before:
        return None
    try:
        return schema(**given)
    except (SamadaptError, ValueError, TypeError) as error:
        named = str(error).startswith(prefix)
        problems.append(str(error) if named else f"{prefix.rstrip('.')}: {error}")
        return None


def _is_group(hint: Any) -> bool:
    return bool(is_dataclass(hint))


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _arms(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _holds(value: float, sign: str, limit: float) -> bool:
    """Whether ``value sign limit``; never for NaN."""
    return bool(_COMPARISONS[sign](value, limit))


def _match(value: Any, arm: Any) -> tuple[bool, Any]:
    """Return whether ``value`` fits one type, and the value as that type."""
    origin, is_bool = get_origin(arm), isinstance(value, bool)
    if arm is Any:
        return True, value
    if origin is Literal:
        # YAML reads a bare on and off as booleans.
        word = {True: "on", False: "off"}[value] if is_bool and "on" in get_args(arm) else value
        return any(word == c and type(word) is type(c) for c in get_args(arm)), word
    if origin in (list, tuple, dict):
        return _match_container(value, origin, get_args(arm))
    if arm is int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return whole and not is_bool, int(value) if whole else value
    if arm is float:
        number = isinstance(value, int | float) and not is_bool
        return number, float(value) if number else value
    return isinstance(value, arm), value


def _match_container(value: Any, origin: Any, arms: tuple[Any, ...]) -> tuple[bool, Any]:
    """Return whether every member of a list, tuple or mapping fits, and the converted container."""
    try:
        if origin is dict and isinstance(value, Mapping):
            return True, {convert(k, arms[0]): convert(v, arms[1]) for k, v in value.items()}
        if origin is dict or not isinstance(value, list | tuple):
            return False, value
        if origin is list or arms[-1] is Ellipsis:
            return True, origin(convert(member, arms[0]) for member in value)
        pairs = zip(value, arms, strict=True)
        return True, tuple(convert(member, arm) for member, arm in pairs)
    except ValueError:
        return False, value
