"""How a run describes itself: what trains in it, its title, and its configuration as text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from samadapt.adapters.record import LOCAL_OPTIONS
from samadapt.config.compose import to_dict
from samadapt.config.schema import Config

HIDDEN = "(hidden: privacy=true)"


def trained_name(config: Config) -> str:
    """Return what trains in a run, for names and titles: its method, or the baseline."""
    baseline = config.baseline
    if baseline.name is None:
        return config.peft.name
    parts = [baseline.name, *([baseline.encoder] if baseline.encoder else [])]
    # An encoder's name is not checked yet, and a folder must not get its slashes.
    return re.sub(r"[^\w.-]", "_", "-".join(parts))


def run_title(recipe: str, trained: str, data: str) -> str:
    """Return the title of a run: its recipe, what trains in it, and its data set."""
    return f"{recipe or 'run'}: {trained} on {data}"


def configuration_text(config: Config) -> str:
    """Return the configuration as YAML; with ``privacy`` it names no file, folder or patient."""
    values = shown_configuration(config)
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


def shown_configuration(config: Config) -> dict[str, Any]:
    """Return the configuration as nested values that may be shown; see ``configuration_text``."""
    values = to_dict(config)
    if not config.privacy:
        return values
    private = {"data": (*LOCAL_OPTIONS, "patient"), "output": ("dir",), "cache": ("dir",)}
    for group, keys in {**private, "model": ("checkpoint",)}.items():
        # `on_error` depends on the machine, but it names no file, so it stays.
        for key in set(keys) & set(values[group]) - {"on_error"}:
            values[group][key] = HIDDEN if values[group][key] is not None else None
    # A recipe may be given by its path, of which the name is enough.
    values |= {key: values[key] and HIDDEN for key in ("resume", "init")}
    values["recipe"] = Path(config.recipe).name
    return values
