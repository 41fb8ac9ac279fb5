"""Which arithmetic a run uses, and why."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from samadapt.errors import ConfigError

WORTH_IT = 1.5
"""bf16 is chosen on a CPU where its matrix product is at least this many times faster."""


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a run.

    Attributes:
        name: ``"fp32"``, or ``"bf16"``: products in bf16 under autocast, weights in fp32.
        reason: why, for the log.
    """

    name: Literal["fp32", "bf16"]
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """Type in which features are stored."""
        return torch.bfloat16 if self.name == "bf16" else torch.float32

    @property
    def accelerate_name(self) -> str:
        """What accelerate calls it."""
        return "bf16" if self.name == "bf16" else "no"

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context in which forward passes on ``device`` run."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)


def choose_precision(setting: str, device: torch.device) -> Precision:
    """Return the precision for ``precision=auto|fp32|bf16`` on a device.

    Raises:
        ConfigError: for bf16 on a CUDA device that lacks it.
    """
    if setting == "fp32":
        return Precision("fp32", "asked for")
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported()
        if setting == "bf16" and not supported:
            raise ConfigError("precision=bf16: this GPU has no bf16; use precision=fp32")
        return Precision("bf16" if supported else "fp32", "what this GPU has")
    if setting == "bf16":
        return Precision("bf16", "asked for")
    if device.type != "cpu":
        return Precision("fp32", f"bf16 is not measured on {device.type}")
    ratio = _bf16_speedup()
    name: Literal["fp32", "bf16"] = "bf16" if ratio >= WORTH_IT else "fp32"
    return Precision(name, f"bf16 products measure {ratio:.1f}x fp32 on this CPU")


def choose_device(setting: str) -> torch.device:
    """Return the device for ``device=auto|cpu|cuda|mps``.

    Raises:
        ConfigError: for a device that this machine lacks.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if setting == "auto":
        return torch.device(next(name for name, present in available.items() if present))
    if not available.get(setting, False):
        present = ", ".join(name for name, found in available.items() if found)
        raise ConfigError(f"device={setting}: not available here; this machine has: {present}")
    return torch.device(setting)


def _bf16_speedup(side: int = 1024, repeats: int = 5) -> float:
    """Return how many times faster a bf16 matrix product is than fp32's; 0.1 s in all."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(side, side, dtype=dtype), torch.ones(side, side, dtype=dtype)
        torch.mm(a, b)
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            torch.mm(a, b)
            best = min(best, time.perf_counter() - start)
        seconds[dtype] = best
    return seconds[torch.float32] / seconds[torch.bfloat16]
