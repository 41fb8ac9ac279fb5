"""Check that the processes of a run work on the same: command, versions and data."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from samadapt.config.compose import to_dict
from samadapt.system import processes
from samadapt.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from samadapt.config.schema import Config
    from samadapt.data.dataset import Dataset

MAY_DIFFER = {"data.root", "cache.dir"}
"""Keys that name folders, which may lie elsewhere on another machine."""


def check_same_configuration(config: Config) -> None:
    """Check that all processes of this run have its configuration and the same versions.

    Raises:
        ConfigError: naming the keys that differ.
    """
    if processes.count() == 1:
        return
    facts = _flat(to_dict(config))
    for key in MAY_DIFFER:
        facts.pop(key, None)
    facts |= {"samadapt": __version__, "torch": version("torch")}
    advice = "Start all processes with the same command and the same packages"
    processes.refuse_differences("the configurations", facts, advice)


def check_same_machines(device: torch.device, precision: str) -> None:
    """Check that all processes compute on the same kind of device.

    Args:
        device: the device of this process.
        precision: the precision that it would choose by itself. On CPUs this is a measurement, so
            it may differ, and that of the first process is taken.

    Raises:
        ConfigError: naming what differs.
    """
    facts = {"device": device.type}
    if device.type != "cpu":
        facts["precision"] = precision
    advice = "Choose with device= and precision=, or start the processes on equal machines"
    processes.refuse_differences("the machines", facts, advice)


def check_same_data(dataset: Dataset) -> None:
    """Check that all processes read the same cases.

    Raises:
        ConfigError: naming a case that differs.
    """
    if processes.count() == 1:
        return
    splits = _flat(dataset.splits())
    content = json.dumps(splits, sort_keys=True, default=str).encode()
    facts = {
        "number of training cases": len(dataset.train),
        "number of held-out cases": len(dataset.val),
        "classes": ", ".join(dataset.classes),
        "hash of all files and splits": hashlib.sha256(content).hexdigest()[:12],
    }
    processes.refuse_differences("the data", facts, "Give all processes the same files")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
