"""The arithmetic of a run: device, precision, and on CPUs a measurement that chooses it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional

from samadapt.errors import ConfigError, nearest

Way = Callable[[], AbstractContextManager[None]]

CLOCK = (
    time.thread_time if time.get_clock_info("thread_time").resolution < 1e-5 else time.perf_counter
)

WORTH_IT = 1.5
"""On a CPU, bf16 is chosen if its matrix products are at least this many times faster."""

ONEDNN_WORTH_IT = 1.05
"""fp32 products use oneDNN if that is at least this many times faster than the default."""

EXACT = 2e-6
"""Largest relative error of a matrix product that counts as fp32; fp32 itself has 4e-7."""

Name = Literal["fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

TENSOR_CORES = (7, 0)
"""The first CUDA capability with fast fp16 products (Volta). bf16 has been fast since (8, 0)."""


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a run.

    Attributes:
        name: ``"fp32"``, or ``"bf16"`` or ``"fp16"``: products in that type under autocast, trained
            weights in fp32.
        reason: the reason for this choice, for the log.
        onednn: fp32 matrix products on the CPU use oneDNN; only if it is exact there.
    """

    name: Name
    reason: str
    onednn: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The type of products, in which features are stored too."""
        return DTYPES[self.name]

    @property
    def is_half(self) -> bool:
        """Whether products have half the bytes of fp32."""
        return self.name != "fp32"

    def scaler(self, device: torch.device) -> GradScaler:
        """Return what scales the loss, so that small gradients do not vanish in fp16.

        It does nothing in fp32 and bf16, which hold numbers down to 1e-38.
        """
        return GradScaler(device.type, enabled=self.name == "fp16")

    @contextmanager
    def products(self) -> Iterator[None]:
        """Compute fp32 products, also in backward, in the chosen way while the context is open."""
        with through_onednn() if self.onednn else nullcontext():
            yield

    @contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        """Enter the context of forward passes on ``device``."""
        half = torch.autocast(
            device.type, self.dtype if self.is_half else None, enabled=self.is_half
        )
        with self.products(), half:
            yield

    def store_frozen(self, model: nn.Module, exact: Collection[str] = ()) -> None:
        """Store frozen linears in bf16 or fp16 if that is the precision.

        Autocast would otherwise cast them again in every pass. Its outputs are bit-equal.
        Trained parameters, norms and convolutions stay in fp32. Afterwards the model can be neither
        hashed nor merged, because the frozen weights have lost precision.

        Args:
            model: the model, changed in place.
            exact: paths of modules that stay in fp32.
        """
        if self.is_half:
            for name, module in model.named_modules():
                frozen = not any(parameter.requires_grad for parameter in module.parameters())
                if isinstance(module, nn.Linear) and frozen and name not in exact:
                    module.to(self.dtype)


FP32 = Precision("fp32", "")
"""fp32 in torch's own way."""


@contextmanager
def through_onednn() -> Iterator[None]:
    """Let fp32 matrix products on the CPU use oneDNN, which is then allowed to compute in bf16.

    oneDNN does so only on CPUs with bf16 tiles (AMX). On others the result is that of fp32, and
    often faster than the default.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # since torch 2.9
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@dataclass(frozen=True)
class Products:
    """Measured speed and error of matrix products of a ViT's size on this CPU.

    Attributes:
        onednn: how many times faster fp32 products are through oneDNN than by default.
        error: relative error of fp32 through oneDNN against float64 (Frobenius norm).
        bf16: how many times faster bf16 is than fp32 in the way that is chosen.
    """

    onednn: float
    error: float
    bf16: float

    @property
    def takes_onednn(self) -> bool:
        """Whether fp32 products use oneDNN."""
        return self.error <= EXACT and self.onednn >= ONEDNN_WORTH_IT


@cache
def measure_products(tokens: int = 256, width: int = 768, rounds: int = 15) -> Products:
    """Measure this CPU, once a process; takes about 0.15 s of one core.

    One thread, by its own CPU time, and the median over rounds that take each way in turn: what
    else the machine does changes the ratios by 5 % at most (seen on two cores with a load of 6).
    """
    random = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=random)
    weight = torch.randn(width, width, generator=random)
    low = (x.to(torch.bfloat16), weight.to(torch.bfloat16))
    onednn = through_onednn if torch.backends.mkldnn.is_available() else nullcontext
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        with onednn():
            error = _error(functional.linear(x, weight), x, weight)
        times = [
            (_seconds(x, weight), _seconds(x, weight, onednn), _seconds(*low))
            for _ in range(1 + rounds)
        ][1:]  # the first calls are slow
    torch.set_num_threads(threads)
    gain = median(default / routed for default, routed, _ in times)
    by_default = Products(gain, error, median(default / half for default, _, half in times))
    if not by_default.takes_onednn:
        return by_default
    return Products(gain, error, median(routed / half for _, routed, half in times))


def _seconds(x: Tensor, weight: Tensor, way: Way = nullcontext) -> float:
    with way():
        start = CLOCK()
        functional.linear(x, weight)
        return CLOCK() - start


def _error(found: Tensor, x: Tensor, weight: Tensor, rows: int = 64) -> float:
    expected = functional.linear(x[:rows].double(), weight.double())
    return float((found[:rows] - expected).norm() / expected.norm())


def choose_precision(
    setting: str, device: torch.device, began: Mapping[str, Any] | None = None
) -> Precision:
    """Return the precision for ``precision=auto|fp32|bf16|fp16`` on a device.

    Args:
        setting: the user's choice.
        device: the device of the run.
        began: the precision with which a resumed run began, as plain values. Its measurement is
            used again, so that the run ends as if it had not been stopped.

    Raises:
        ConfigError: for an unknown setting, for bf16 on a GPU without bf16, and for fp16 on a
            device other than a CUDA GPU or a CPU.
    """
    settings = ("auto", *DTYPES)
    if setting not in settings:
        hint = nearest(setting, settings)
        raise ConfigError(f"precision must be {', '.join(settings)}; got {setting!r}{hint}")
    why = "" if setting == "auto" else "asked for"
    if began is not None and setting == "auto":
        setting, why = str(began["name"]), "as the run began"
    if device.type == "cpu":
        return _on_cpu(setting, why, began)
    if device.type == "cuda":
        return _on_cuda(setting, why)
    if setting == "fp16":
        raise ConfigError(
            f"precision=fp16: not on {device.type}; use precision=fp32 or precision=bf16"
        )
    return Precision(
        "bf16" if setting == "bf16" else "fp32", why or f"bf16 is not measured on {device.type}"
    )


def _on_cuda(setting: str, why: str) -> Precision:
    """Return bf16 where the GPU has it, else fp16 where it has fast fp16."""
    # torch also says yes where it only emulates bf16, which is slower than fp32.
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if setting == "bf16" and not has_bf16:
        raise ConfigError(
            "precision=bf16: this GPU has no bf16; use precision=fp16 or precision=fp32"
        )
    if setting == "auto":
        has_fp16 = torch.cuda.get_device_capability() >= TENSOR_CORES
        setting = "bf16" if has_bf16 else "fp16" if has_fp16 else "fp32"
        why = why or "what this GPU has"
    return Precision(cast(Name, setting), why)


def _on_cpu(setting: str, why: str, began: Mapping[str, Any] | None) -> Precision:
    measured = measure_products()
    onednn = measured.takes_onednn
    if began is not None:
        onednn = bool(began.get("onednn")) and measured.error <= EXACT
    if setting == "fp16":
        reason = "fp16 is for GPUs, and slow on a CPU"
        return Precision("fp16", "; ".join(filter(None, (why, reason))), onednn)
    is_half = setting == "bf16" or (setting == "auto" and measured.bf16 >= WORTH_IT)
    reason = (
        f"bf16 products measure {measured.bf16:.1f}x fp32 on this CPU; fp32 through oneDNN "
        f"{measured.onednn:.2f}x the default at an error of {measured.error:.0e}, "
        f"{'taken' if onednn else 'not taken'}"
    )
    return Precision("bf16" if is_half else "fp32", "; ".join(filter(None, (why, reason))), onednn)


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
