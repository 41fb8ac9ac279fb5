"""The keys of a class of settings by their dotted names, such as ``train.steps``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any, Literal

from samadapt.config.described import DescribesOption
from samadapt.methods import METHODS
from samadapt.methods.base import Method
from samadapt.system.settings import Settings, annotation_of, settings_fields


@dataclass(frozen=True)
class Key:
    """One key that a user can set.

    Attributes:
        name: dotted name.
        annotation: type with bounds, for ``check_value`` and ``describe_type``.
        default: the value that applies when the key is not set; ``MISSING`` where it must be set.
        description: what the key means.
        group: group whose chosen option the key describes (``DescribesOption``); ``""`` for none.
    """

    name: str
    annotation: Any
    default: Any
    description: str
    group: str = ""


def groups_of(schema: type[Settings]) -> dict[str, type[Settings]]:
    """Return the groups of a class of settings by name."""
    return {
        name: field.annotation
        for name, field in settings_fields(schema).items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
    }


def keys_of(
    schema: type[Settings], method: type[Method] | None = None, prefix: str = ""
) -> dict[str, Key]:
    """Return every key of a class of settings in the order of declaration.

    Args:
        schema: the class, with groups.
        method: the method that ``peft`` names; None: the keys that every method has.
        prefix: what stands before the names.
    """
    keys: dict[str, Key] = {}
    groups = groups_of(schema)
    for name, field in settings_fields(schema).items():
        if name in groups:
            # The keys of `peft` depend on the method, whose class stands in for the group.
            group = method if method is not None and groups[name] is Method else groups[name]
            keys |= keys_of(group, prefix=f"{prefix}{name}.")
            continue
        # There is one mark at most; without one `Key.group` keeps its default.
        marks = [mark.group for mark in field.metadata if isinstance(mark, DescribesOption)]
        keys[f"{prefix}{name}"] = Key(
            f"{prefix}{name}",
            annotation_of(field),
            MISSING if field.is_required() else field.get_default(call_default_factory=True),
            field.description or "",
            *marks,
        )
    return keys


def method_key(names: tuple[str, ...] = ()) -> Key:
    """Return the key ``peft.name``, which is no field: it chooses the class of the group.

    Args:
        names: methods besides the registered ones, such as ``lora+bias``.
    """
    known = Literal.__getitem__((*METHODS, *names))
    return Key("peft.name", known, "lora", "training method; `samadapt ls peft` lists them")


def flatten(nested: Mapping[str, Any], schema: type[Settings]) -> dict[str, Any]:
    """Return nested values by dotted key.

    A group that is given as text names its option: ``data: msd`` becomes ``data.name: msd``. A list
    given for ``peft`` names several methods at once.
    """
    flat: dict[str, Any] = {}
    groups = groups_of(schema)
    for key, value in nested.items():
        if key == "peft" and isinstance(value, list):
            value = "+".join(map(str, value))
        if key in groups and isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": member for inner, member in value.items()}
        else:
            flat[f"{key}.name" if key in groups else key] = value
    return flat
