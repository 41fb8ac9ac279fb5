"""The time of the matrix products alone: how close a call comes to the fastest possible one.

A call of samadapt is recorded once. Then each matrix product, convolution and fused attention in it
is timed by itself, on operands of the same shape and layout that are already in the cache where
they fit. Norms, softmax, activations, biases and copies are left out. Attention is recorded in its
PyTorch backend. No other arrangement of the same products with PyTorch's kernels takes less time,
so the time of a peer divided by this is an upper bound of how much faster it could become.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import encoder, train_step
from benchmarks.harness import Build, Call, Comparison, Timed
from benchmarks.machine import seconds

ALONE = "its products alone"
ATEN = torch.ops.aten
# For each operator: the product without what is added to it, and the position of its operands.
PRODUCTS: dict[Any, tuple[Any, int]] = {
    ATEN.mm: (torch.mm, 0),
    ATEN.bmm: (torch.bmm, 0),
    ATEN.addmm: (torch.mm, 1),
    ATEN.addmm_: (torch.mm, 1),
    ATEN.baddbmm: (torch.bmm, 1),
    ATEN.baddbmm_: (torch.bmm, 1),
}
WHOLE = (
    "convolution",
    "convolution_backward",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
)
"""Operators that are timed as they are, with all their arguments."""

TIMES = 3
"""How often each product is timed in a repetition; the fastest time counts."""


def rows() -> Iterator[Comparison]:
    """Yield the encoders in fp32 and the LoRA steps at 1024 pixels, with their peers."""
    for row in (
        *(encoder.vit_row("vit_b", size, "fp32") for size in encoder.SIZES),
        encoder.lite_medsam_row("fp32"),
        train_step.row("vit_b", 1024),
        train_step.cached_row("vit_b", 1024, blocks=3),
    ):
        (name, mine), *peers = row.contenders.items()
        alone = {ALONE: partial(products_alone, mine)}
        yield replace(row, contenders={name: mine, **alone, **dict(peers)}, memory=False)


def products_alone(build: Build) -> Call:
    """Return a call that times every product of another call by itself and adds up the times."""
    call = build()
    with ExitStack() as stack:
        # Without compiled attention, the watcher sees the products of attention too.
        for module in ("attention.dispatch", "tiny_vit_blocks_fast"):
            stack.enter_context(patch(f"samadapt.sam.{module}.is_supported", lambda qkv: False))
        call()  # what is computed only once is not counted
        with Watcher() as watcher:
            call()
    counts = watcher.counts
    del call

    def timed() -> Timed:
        return Timed(sum(count * _fastest(*key) for key, count in counts.items()))

    return timed


class Watcher(TorchDispatchMode):
    """Counts the products that run while it is active, by shape and layout of their operands."""

    def __init__(self) -> None:
        """Start with no products."""
        super().__init__()
        self.counts: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count a product and run it."""
        packet, kwargs = func.overloadpacket, kwargs or {}
        if packet in PRODUCTS:
            product, first = PRODUCTS[packet]
            self._note(product, args[first : first + 2], {})
        elif packet.__name__ in WHOLE:
            self._note(func, args, kwargs)
        return func(*args, **kwargs)

    def _note(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        named = tuple((name, _shape(value)) for name, value in kwargs.items())
        self.counts[function, tuple(_shape(arg) for arg in args), named] += 1


def _shape(value: Any) -> Any:
    """Return a hashable description of an argument: shape and layout, or a plain value."""
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), value.stride(), value.dtype)
    return tuple(value) if isinstance(value, list) else value


def _operand(shape: Any) -> Any:
    """Return an argument of this description; tensors have random values."""
    if not (isinstance(shape, tuple) and shape[:1] == ("tensor",)):
        return shape
    _, sizes, strides, dtype = shape
    reach = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return torch.randn(reach).to(dtype).as_strided(sizes, strides)


def _fastest(function: Any, shapes: tuple[Any, ...], named: tuple[tuple[str, Any], ...]) -> float:
    operands = [_operand(shape) for shape in shapes]
    options = {name: _operand(shape) for name, shape in named}
    with torch.no_grad():
        if function in (torch.mm, torch.bmm):  # allocating the result would cost page faults
            options["out"] = function(*operands)
        call = partial(function, *operands, **options)
        return min(seconds(call, "cpu")[0] for _ in range(1 + TIMES))
