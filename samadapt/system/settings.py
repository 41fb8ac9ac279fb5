"""Dataclasses whose values pydantic checks when they are built.

A class of settings looks like this::

    @dataclass(frozen=True)  # pydantic.dataclasses.dataclass
    class Train(Settings):
        section: ClassVar[str] = "train"

        steps: Whole = Field(default=150, ge=1, description="number of optimizer steps")

``Train(steps=-5)`` raises ``SettingsError`` with the message "train.steps: expected a whole number
of at least 1; got -5". pydantic finds what is wrong. This module says it in the words of the
command line: the key as users type it, what was expected, what was found and the nearest valid
name, with every problem in one message.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    Strict,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs, ErrorDetails

from samadapt.errors import ConfigError, nearest

T = TypeVar("T")

MAX_SHOWN = 100
"""Characters of a wrong value that a message shows; prompts for many slices are long."""
_STRICT = ConfigDict(strict=True)  # "3" is no number and 1 is not true
SETTINGS = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class SettingsError(ConfigError):
    """Values of a class of settings are wrong.

    Attributes:
        problems: what is wrong, by key. A key has its section, as in ``train.steps``.
    """

    def __init__(self, problems: Mapping[str, str]) -> None:
        """List all problems in the message."""
        self.problems = dict(problems)
        super().__init__(list_problems(f"{key}: {text}" for key, text in self.problems.items()))


def list_problems(problems: Iterable[str]) -> str:
    """Return one problem as it is, and several as a list with their number above it."""
    lines = list(problems)
    if len(lines) == 1:
        return lines[0]
    return "\n  - ".join([f"{len(lines)} problems in the configuration:", *lines])


def _as_whole(value: Any) -> Any:
    """Return 100 for 1e2, and Python's integer for NumPy's."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    is_other = hasattr(value, "__index__") and not isinstance(value, int)
    return operator.index(value) if is_other else value


def _as_word(value: Any) -> Any:
    """Return the words that YAML 1.1 reads as booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Whole = Annotated[int, BeforeValidator(_as_whole)]
"""An integer. Floats without a fraction are accepted, because YAML reads 1e2 as a float."""

Tuple = Annotated[tuple[T, ...], Strict(False)]
"""A tuple of any length. Lists are accepted, because YAML knows no tuples."""

List = Annotated[list[T], Strict(False)]
"""A list. Tuples are accepted, because that is what many write in Python."""

OnOff = Annotated[T, BeforeValidator(_as_word)]
"""A choice of words that include on and off, which YAML reads as booleans."""


@dataclass(frozen=True, config=SETTINGS)
class Settings:
    """Base of dataclasses whose values are checked when they are built.

    Attributes:
        section: name before the dot of the keys, such as ``train``; empty for keys without one.

    Raises:
        SettingsError: for an unknown or missing key, a wrong type or a value out of range.
    """

    section: ClassVar[str] = ""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, given: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        """Raise pydantic's errors in our own words."""
        try:
            return build(given)
        except ValidationError as error:
            if not isinstance(given, ArgsKwargs):  # inside another class, which explains it
                raise
            for detail in error.errors(include_url=False):
                if not detail["loc"]:  # __post_init__ refuses values that do not fit together
                    refused = detail["ctx"]["error"]
                    # pydantic would wrap a ValueError again.
                    is_value = isinstance(refused, ValueError)
                    raise (ConfigError(str(refused)) if is_value else refused) from None
            raise SettingsError(_explain_all(cls, error, given)) from None


def with_fields(
    cls: type[Any], name: str, fields: Mapping[str, tuple[Any, Any]], module: str
) -> type[Any]:
    """Return a subclass of a class of settings with more fields.

    Args:
        cls: the class; its fields come first.
        name: name of the subclass.
        fields: type and ``Field(...)`` of each field, as for pydantic's ``create_model``.
        module: where the subclass is found under its name.
    """
    body = {key: field for key, (_, field) in fields.items()}
    types = {key: annotation for key, (annotation, _) in fields.items()}
    marks = {"__annotations__": types, "__doc__": cls.__doc__, "__module__": module}
    extended: type[Any] = dataclass(frozen=True)(type(name, (cls,), body | marks))
    return extended


def settings_fields(cls: type[Settings]) -> dict[str, FieldInfo]:
    """Return the fields of a class of settings by name, in the order of declaration."""
    return dict(vars(cls)["__pydantic_fields__"])


def check_value(value: Any, annotation: Any) -> Any:
    """Return ``value`` as a type, by the rules of ``Settings`` except that nan is a number.

    Args:
        value: a plain value, as YAML or JSON holds it.
        annotation: a type, with bounds as ``Annotated[float, Field(ge=0)]``.

    Raises:
        ValueError: the value does not fit. The message says what was expected and what was found.
    """
    try:
        return TypeAdapter(annotation, config=_STRICT).validate_python(value)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise ValueError(_explain_value(detail, annotation, value)) from None


def annotation_of(field: FieldInfo) -> Any:
    """Return the type of a field together with its bounds and validators."""
    if not field.metadata:
        return field.annotation
    return Annotated.__class_getitem__((field.annotation, *field.metadata))  # type: ignore[attr-defined]


def describe_type(annotation: Any) -> str:
    """Return a type in words that a user reads, such as "a number above 0, or null"."""
    arms = [_describe_arm(arm) for arm in _arms(annotation)]
    return ", or ".join([", ".join(arms[:-1]), arms[-1]]) if len(arms) > 1 else arms[0]


def takes_text(annotation: Any) -> bool:
    """Return whether any text is a valid value of a type."""
    return any(_unwrap(arm)[0] is str for arm in _arms(annotation))


def _explain_all(cls: type[Settings], error: ValidationError, given: ArgsKwargs) -> dict[str, str]:
    """Return what is wrong by key."""
    known = settings_fields(cls)
    names = list(known)
    values = dict(zip(names, given.args, strict=False)) | (given.kwargs or {})
    prefix = f"{cls.section}." if cls.section else ""
    problems: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        # The first part of a location is the field: its name, or its number if it was positional.
        place = detail["loc"][0]
        name = names[place] if isinstance(place, int) and place < len(names) else str(place)
        if f"{prefix}{name}" in problems:
            continue  # one line a key; a union reports each of its members
        if detail["type"] == "missing":
            text = f"a value is required: {known[name].description}"
        elif name not in known:
            text = f"no such key{nearest(prefix + name, [prefix + other for other in names])}"
        else:
            text = _explain_value(detail, annotation_of(known[name]), values[name])
        problems[f"{prefix}{name}"] = text
    return problems


def _explain_value(detail: ErrorDetails, annotation: Any, value: Any) -> str:
    """Return what was expected and what was found."""
    if detail["type"] == "value_error":  # a validator of ours, which says it better
        return str(detail["ctx"]["error"])
    arms = [_unwrap(arm)[0] for arm in _arms(annotation)]
    item = get_args(arms[0])[0] if get_origin(arms[0]) is tuple else None
    if len(detail["loc"]) > 1 and _choices(item):  # one word of a list is wrong
        arms, value = [item], detail["input"]
    hint = nearest(str(value), [str(word) for arm in arms for word in _choices(arm)])
    found = repr(value)
    found = found if len(found) <= MAX_SHOWN else f"{found[:MAX_SHOWN]}..."
    return f"expected {describe_type(annotation)}; got {found}{hint}"


def _arms(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union, each with the bounds of the union, or the type itself."""
    inner, metadata = _unwrap(annotation)
    if get_origin(inner) not in (Union, types.UnionType):
        yield annotation
        return
    for arm in get_args(inner):
        bounded = _unwrap(arm)[0] in (int, float) and metadata
        yield Annotated.__class_getitem__((arm, *metadata)) if bounded else arm  # type: ignore[attr-defined]


def _unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a type without ``Annotated``, and what was annotated, bounds of fields included."""
    if get_origin(annotation) is not Annotated:
        return annotation, ()
    inner, *rest = get_args(annotation)
    metadata: list[Any] = []
    for part in rest:
        metadata += part.metadata if isinstance(part, FieldInfo) else [part]
    return inner, tuple(metadata)


def _choices(annotation: Any) -> tuple[Any, ...]:
    inner, _ = _unwrap(annotation)
    return get_args(inner) if get_origin(inner) is Literal else ()


def _describe_arm(annotation: Any) -> str:
    """Return one member of a union in words."""
    inner, metadata = _unwrap(annotation)
    origin, arguments = get_origin(inner), get_args(inner)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin in (list, tuple, Sequence):
        return f"a list of [{describe_type(arguments[0])}]"
    if origin is dict:
        return "a mapping {name: " + describe_type(arguments[1]) + "}"
    if isinstance(inner, type) and issubclass(inner, Settings):
        return f"{inner.__name__}(...)"
    if inner in (int, float):
        return ("a whole number" if inner is int else "a number") + _describe_bounds(metadata)
    words = {bool: "true or false", str: "text", type(None): "null", Any: "any value"}
    return words.get(inner, str(inner))


def _describe_bounds(metadata: Iterable[Any]) -> str:
    bounds = {
        name: getattr(bound, name)
        for bound in metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(bound, name)
    }
    numbers = {name: _number(value) for name, value in bounds.items()}
    if {"ge", "le"} <= numbers.keys():
        return f" from {numbers['ge']} to {numbers['le']}"
    words = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}
    parts = [f"{word} {numbers[name]}" for name, word in words.items() if name in numbers]
    return f" {' and '.join(parts)}" if parts else ""


def _number(value: Any) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
