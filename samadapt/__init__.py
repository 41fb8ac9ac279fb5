"""Adapt the Segment Anything Model to a new domain by training a few percent of its weights.

The public names are loaded on first use, so that ``import samadapt`` costs nothing. It sets how
OpenMP's threads wait, which must happen before torch is loaded; see ``samadapt.openmp``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from samadapt import openmp as _openmp  # noqa: F401  sets the environment before torch is loaded

if TYPE_CHECKING:
    from samadapt.config import Config, compose
    from samadapt.errors import (
        AdapterError,
        ConfigError,
        DataError,
        DivergedError,
        DownloadError,
        MissingExtraError,
        PromptError,
        RunError,
        SamadaptError,
        UserError,
        WeightsError,
    )
    from samadapt.sam.automatic_masks import SamAutomaticMaskGenerator
    from samadapt.sam.predictor import SamPredictor
    from samadapt.sam.weights import load_sam
    from samadapt.segmenter import Segmenter, load_adapter
    from samadapt.verbs.evaluate import evaluate
    from samadapt.verbs.finetune import finetune

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "Config",
    "ConfigError",
    "DataError",
    "DivergedError",
    "DownloadError",
    "MissingExtraError",
    "PromptError",
    "RunError",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "SamadaptError",
    "Segmenter",
    "UserError",
    "WeightsError",
    "__version__",
    "compose",
    "evaluate",
    "finetune",
    "load_adapter",
    "load_sam",
]

_HOMES = {
    "Config": "samadapt.config",
    "SamAutomaticMaskGenerator": "samadapt.sam.automatic_masks",
    "SamPredictor": "samadapt.sam.predictor",
    "Segmenter": "samadapt.segmenter",
    "compose": "samadapt.config",
    "evaluate": "samadapt.verbs.evaluate",
    "finetune": "samadapt.verbs.finetune",
    "load_adapter": "samadapt.segmenter",
    "load_sam": "samadapt.sam.weights",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'samadapt' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "samadapt.errors")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
