"""Attention within tiles by compiled code (``_attention.c``), on x86 processors.

With decomposed relative position it gives what ``attend_tiles`` gives, and with a bias for each
pair of tokens (TinyViT) what PyTorch's attention gives within windows. It is built when samadapt is
installed, if there is a C compiler: once with AVX-512, once with AVX2. Where neither is there or
the processor has neither, those two do the work.
"""

from __future__ import annotations

import math
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from samadapt.sam.tiled_attention import backward_tiles, default_chunk, tile_count

MODULES = {"AVX512": ("_attention_avx512", "_attention_avx2"), "AVX2": ("_attention_avx2",)}
"""By what torch says of the processor: the builds to try, the fastest first."""

OPERANDS = (
    "qkv",
    "fill",
    "rows",
    "columns",
    "to_rows",
    "to_columns",
    "bias",
    "grad",
    "out",
    "grad_qkv",
    "norms",
    "grad_fill",
)
"""The addresses that the compiled code takes, in order."""

FAR = -1e30
"""The score of a lane that only pads."""


@cache
def find_kernels() -> ModuleType | None:
    """Return the compiled module for this processor; None where there is none."""
    for name in MODULES.get(torch.backends.cpu.get_cpu_capability(), ()):
        try:
            return import_module(f"samadapt.sam.{name}")
        except ImportError:  # not built; doctor says so
            continue
    return None


def is_missing() -> bool:
    """Whether there is a compiled form for this processor that was not built."""
    return find_kernels() is None and torch.backends.cpu.get_cpu_capability() in MODULES


def describe_attention() -> str:
    """Say which form attention takes on the CPU and why, for logs and ``doctor``."""
    kernels = find_kernels()
    if kernels is not None:
        which = "AVX-512" if kernels.LANES == 16 else "AVX2"
        return f"compiled for {which}" + (" with bf16" if kernels.BF16 else "")
    if is_missing():
        return "by PyTorch: the compiled form was not built when samadapt was installed"
    return "by PyTorch: there is no compiled form for this processor"


def suits(qkv: Tensor) -> bool:
    """Whether the compiled form takes these values: fp32, or bf16 where the processor has it."""
    kernels = find_kernels() if qkv.device.type == "cpu" else None
    if kernels is None or qkv.dtype == torch.float32:
        return kernels is not None
    return qkv.dtype == torch.bfloat16 and bool(kernels.BF16) and qkv.shape[-1] % 2 == 0


def attend_native(qkv: Tensor, fill: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
    """Attend within each tile of a grid of tokens; see ``attend_tiles``.

    Args:
        qkv: (b, h, w, 3, heads, d), one that ``suits``.
        fill: (3, heads, d) of a cell beyond the edge; None where the tiles divide the grid.
        rows: (th, th, d), embedding of each pair of rows [query, key]; th is a tile's height.
        columns: (tw, tw, d), likewise of columns.

    Returns:
        (b, h, w, heads, d). First derivatives only.
    """
    return _attend(qkv, fill, rows, columns)


def attend_native_biased(qkv: Tensor, fill: Tensor | None, biases: Tensor, side: int) -> Tensor:
    """Attend within each window of a grid of tokens, with a bias for each pair of tokens.

    Args:
        qkv: (b, h, w, heads, 3, d), one that ``suits``.
        fill: (heads, 3, d) of a cell beyond the edge; None where the windows divide the grid.
        biases: (heads, n, n) [query, key] of the n = side * side tokens of a window; gets no
            gradient.
        side: of a window.

    Returns:
        (b, h, w, heads, d). First derivatives only.

    Raises:
        ValueError: if a gradient of ``biases`` is wanted.
    """
    if biases.requires_grad and torch.is_grad_enabled():
        raise ValueError("compiled attention gives no gradient of biases; use PyTorch's attention")
    return _attend(qkv, fill, biases, side)


def _attend(*inputs: Any) -> Tensor:
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs):
        out: Tensor = _NativeAttention.apply(*inputs)
        return out
    return _Call(*inputs).forward(None)


class _Call:
    """One call of the compiled code: operands laid out as it wants them, and held while it runs.

    Args:
        qkv: (b, h, w, 3, heads, d), or (b, h, w, heads, 3, d) with biases.
        fill: of a cell beyond the edge, or None.
        places: (th, th, d), or biases (heads, n, n).
        side: (tw, tw, d), or the side of a window with biases.
    """

    def __init__(
        self, qkv: Tensor, fill: Tensor | None, places: Tensor, side: Tensor | int
    ) -> None:
        kernels = find_kernels()
        if kernels is None:
            raise RuntimeError(f"attention {describe_attention()}")
        self.kernels = kernels
        self.qkv = qkv.contiguous()
        self.fill = None if fill is None else fill.to(qkv.dtype).contiguous()
        self.operands: dict[str, Tensor] = {}
        if isinstance(side, int):
            self.side, self.heads_first = (side, side), True
            self.operands["bias"] = self._laid_bias(places.detach().float())
        else:
            self.side, self.heads_first = (len(places), len(side)), False
            self._lay_tables(places.detach().float(), side.detach().float())
        b, h, w, heads, _, d = qkv.shape if self.heads_first else qkv.transpose(3, 4).shape
        if self.fill is None and (h % self.side[0] or w % self.side[1]):
            raise ValueError(
                f"tiles of {self.side} do not divide a grid of {(h, w)}: fill must be given"
            )
        apart = (d, 3 * d) if self.heads_first else (heads * d, d)
        self.sizes = (*apart, b, h, w, heads, d, *self.side, int(qkv.dtype == torch.bfloat16))
        self.tasks = tile_count(qkv, self.side) * heads
        self.shape = (b, h, w, heads, d)

    def _lay_tables(self, rows: Tensor, columns: Tensor) -> None:
        """Give the tables by key as well, padded to whole vectors."""
        for name, table in (("rows", rows), ("columns", columns)):
            by_key = functional.pad(table.transpose(1, 2), (0, -len(table) % self.kernels.LANES))
            self.operands |= {name: by_key.contiguous(), f"to_{name}": table.contiguous()}

    def _laid_bias(self, biases: Tensor) -> Tensor:
        """Give biases (heads, n, n) in base 2 and padded to whole panels of keys."""
        missing = -biases.shape[-1] % (2 * self.kernels.LANES)
        return functional.pad(biases * math.log2(math.e), (0, missing), value=FAR)

    def forward(self, norms: Tensor | None) -> Tensor:
        """Return the output; ``norms`` (b, h, w, heads, 2) takes what ``backward`` needs."""
        out = self.qkv.new_empty(self.shape)
        self._run(self.kernels.forward, out=out, norms=norms)
        return out

    def backward(self, grad: Tensor, out: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of qkv and, in fp32, of the fill."""
        heads, d = self.shape[3:]
        grad_qkv = torch.empty_like(self.qkv)
        keys = torch.empty(self.tasks // heads, heads, 2, d)  # k and v of each tile's padding
        grad = grad.to(self.qkv.dtype).contiguous()
        given = {"grad": grad, "out": out, "norms": norms}
        self._run(self.kernels.backward, **given, grad_qkv=grad_qkv, grad_fill=keys)
        grad_fill = functional.pad(keys.sum(0), (0, 0, 1, 0))  # its q asks nothing
        return grad_qkv, grad_fill if self.heads_first else grad_fill.transpose(0, 1)

    def _run(self, work: Any, **tensors: Tensor | None) -> None:
        given = {"qkv": self.qkv, "fill": self.fill, **self.operands, **tensors}
        found = [given.get(name) for name in OPERANDS]
        places = tuple(0 if tensor is None else tensor.data_ptr() for tensor in found)
        work(places, self.sizes, self.shape[-1] ** -0.5, torch.get_num_threads())


class _NativeAttention(torch.autograd.Function):
    """Keeps inputs, output and two numbers a query and head; scores are made again in backward."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        call = _Call(*inputs)
        norms = torch.empty(*call.shape[:4], 2)
        out = call.forward(norms)
        qkv, fill, places, side = inputs
        ctx.side = side if isinstance(side, int) else None
        ctx.save_for_backward(qkv, fill, places, None if ctx.side else side, out, norms)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, fill, places, columns, out, norms = ctx.saved_tensors
        if any(ctx.needs_input_grad[2:]):  # tables are trained in full fine-tuning alone
            needs, chunk = ctx.needs_input_grad, default_chunk(qkv)
            tables = (places.to(qkv.dtype), columns.to(qkv.dtype))
            found = backward_tiles(qkv, fill, *tables, out, grad, needs, chunk)
            return *found[:2], *(None if g is None else g.to(places.dtype) for g in found[2:])
        call = _Call(qkv, fill, places, ctx.side or columns)
        grad_qkv, grad_fill = call.backward(grad, out, norms)
        return grad_qkv, None if fill is None else grad_fill.to(fill.dtype), None, None
