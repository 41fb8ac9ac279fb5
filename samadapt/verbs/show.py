"""``samadapt show``: the composed configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from samadapt.config import Config, from_arguments, to_dict

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = """
Prints the configuration that `samadapt finetune` would use with the same arguments, as YAML, and
runs nothing. The output is itself a recipe: save it and name the file, recipe=FILE.yaml.
"""
SCHEMA = Config


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the composed configuration as nested plain values.

    Raises:
        ConfigError: naming everything wrong with the arguments.
    """
    return to_dict(from_arguments(arguments))


def render(result: dict[str, Any]) -> str:
    """Return the configuration as YAML text."""
    import yaml

    text: str = yaml.safe_dump(result, sort_keys=False, allow_unicode=True)
    return text
