"""Adapt the Segment Anything Model to a new domain by training a few percent of its weights.

The public names are imported when they are first used, so that ``import samadapt`` is fast. The
import also sets how the threads of OpenMP wait, because that must happen before torch is imported;
see ``samadapt.system.openmp``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from samadapt.system import openmp as _openmp  # noqa: F401  before torch is imported
from samadapt.version import __version__

if TYPE_CHECKING:
    from samadapt.config.compose import compose
    from samadapt.config.schema import Config
    from samadapt.errors import (
        AdapterError,
        ConfigError,
        DataError,
        DivergedError,
        DownloadError,
        LostOthersError,
        MissingExtraError,
        PromptError,
        RunError,
        SamadaptError,
        UserError,
        WeightsError,
    )
    from samadapt.inference.segmenter import Segmenter, load_adapter
    from samadapt.runs.evaluate import evaluate
    from samadapt.runs.finetune import finetune
    from samadapt.sam.automatic_masks import SamAutomaticMaskGenerator
    from samadapt.sam.predictor import SamPredictor
    from samadapt.sam.weights.loading import load_sam


__all__ = [
    "AdapterError",
    "Config",
    "ConfigError",
    "DataError",
    "DivergedError",
    "DownloadError",
    "LostOthersError",
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
    "Config": "samadapt.config.schema",
    "SamAutomaticMaskGenerator": "samadapt.sam.automatic_masks",
    "SamPredictor": "samadapt.sam.predictor",
    "Segmenter": "samadapt.inference.segmenter",
    "compose": "samadapt.config.compose",
    "evaluate": "samadapt.runs.evaluate",
    "finetune": "samadapt.runs.finetune",
    "load_adapter": "samadapt.inference.segmenter",
    "load_sam": "samadapt.sam.weights.loading",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'samadapt' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "samadapt.errors")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
