"""The keys of a class of settings as text, for ``--help`` and ``samadapt ls keys``."""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any

from samadapt.config.keys import Key, groups_of, keys_of
from samadapt.methods import METHODS
from samadapt.methods.base import Method
from samadapt.system.settings import Settings, describe_type


def describe(schema: type[Settings]) -> str:
    """Return the keys of a class of settings with default, meaning and type, a line each."""
    lines = [_line(key) for name, key in keys_of(schema).items() if not name.startswith("peft.")]
    if Method in groups_of(schema).values():
        for name, method in METHODS.items():
            lines.append(f"\npeft={name}: {method.summary}")
            lines += [_line(key) for key in keys_of(method, prefix="peft.").values()]
        lines.append("\npeft=[lora,bias]: several that change different parts, with all options")
    return "\n".join(lines)


def _line(key: Key) -> str:
    default = "" if key.default is MISSING else _shown(key.default)
    meaning = f"{key.description} " if key.description else ""
    return f"  {f'{key.name}={default}':<34} {meaning}({describe_type(key.annotation)})"


def _shown(value: Any) -> str:
    """Return a value as a user would type it."""
    if isinstance(value, tuple | list):
        return "[" + ",".join(_shown(member) for member in value) + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
