"""What the numbers of a run depend on beside its configuration: versions, machine and seeds."""

from __future__ import annotations

import json
import os
import platform
import random
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samadapt.sam.attention.kernels import describe_attention
from samadapt.system import atomic
from samadapt.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from samadapt.training.precision import Precision


def environment(device: torch.device, precision: Precision) -> dict[str, Any]:
    """Return the content of ``env.json``: versions, machine and arithmetic."""
    packages = ("torch", "peft", "timm", "monai", "accelerate", "numpy", "nibabel", "scikit-image")
    return {
        "samadapt": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "precision": asdict(precision),
        "cpu_attention": describe_attention(),
        "packages": {name: installed_version(name) for name in packages},
    }


def installed_version(package: str) -> str | None:
    """Return the version of a package; None where the run does without it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def recorded_precision(run_dir: Path) -> dict[str, Any] | None:
    """Return the precision that a run's ``env.json`` records; None if it cannot be read."""
    try:
        found = json.loads((run_dir / "env.json").read_text(encoding="utf-8"))["precision"]
        return {"name": str(found["name"]), "onednn": bool(found.get("onednn"))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def seed_all(seed: int) -> None:
    """Seed python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  libraries that we call draw from this global state
    torch.manual_seed(seed)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as indented JSON."""
    atomic.write_text(path, json.dumps(values, indent=2, default=str) + "\n")
