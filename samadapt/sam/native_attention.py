"""The same attention as ``tiled_attention`` by compiled code (``_attention.c``), on x86 processors.

It is built when samadapt is installed, if there is a C compiler: once with AVX-512, once with AVX2.
Where neither is there or the processor has neither, ``attend_tiles`` does the work.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
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
        fill: (3, heads, d) of a cell beyond the edge, of the same type; None where the tiles divide
            the grid.
        rows: (th, th, d), embedding of each pair of rows [query, key]; th is a tile's height.
        columns: (tw, tw, d), likewise of columns.

    Returns:
        (b, h, w, heads, d). First derivatives only.
    """
    inputs = (qkv, fill, rows, columns)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        out: Tensor = _NativeAttention.apply(*inputs)
        return out
    return _Call(*inputs).forward(None)


class _Call:
    """One call of the compiled code: operands laid out as it wants them, and held while it runs."""

    def __init__(self, qkv: Tensor, fill: Tensor | None, rows: Tensor, columns: Tensor) -> None:
        kernels = find_kernels()
        if kernels is None:
            raise RuntimeError(f"attention {describe_attention()}")
        self.kernels = kernels
        self.qkv = qkv.contiguous()
        self.fill = None if fill is None else fill.to(qkv.dtype).contiguous()
        self.rows, self.columns = (t.detach().float().contiguous() for t in (rows, columns))
        b, h, w, _, heads, d = qkv.shape
        side = (len(rows), len(columns))
        if self.fill is None and (h % side[0] or w % side[1]):
            raise ValueError(
                f"tiles of {side} do not divide a grid of {(h, w)}: fill must be given"
            )
        self.sizes = (b, h, w, heads, d, *side, int(qkv.dtype == torch.bfloat16))
        self.tasks = tile_count(qkv, side) * heads

    def forward(self, norms: Tensor | None) -> Tensor:
        """Return the output; ``norms`` (b, h, w, heads, 2) takes what ``backward`` needs."""
        out = self.qkv.new_empty(*self.qkv.shape[:3], *self.qkv.shape[4:])
        self._run(self.kernels.forward, out=out, norms=norms)
        return out

    def backward(self, grad: Tensor, out: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of qkv, and of k and v of the fill as (2, heads, d)."""
        heads, d = self.qkv.shape[4:]
        grad_qkv = torch.empty_like(self.qkv)
        grad_fill = torch.empty(self.tasks // heads, heads, 2, d)
        grad = grad.to(self.qkv.dtype).contiguous()
        given = {"grad": grad, "out": out, "norms": norms}
        self._run(self.kernels.backward, **given, grad_qkv=grad_qkv, grad_fill=grad_fill)
        return grad_qkv, grad_fill.sum(0).transpose(0, 1)

    def _run(self, work: Any, **tensors: Tensor | None) -> None:
        """Let as many threads as torch uses take tasks until none is left."""
        lanes: int = self.kernels.LANES
        across = [
            functional.pad(table.transpose(1, 2), (0, -table.shape[1] % lanes)).contiguous()
            for table in (self.rows, self.columns)
        ]
        begun = torch.zeros(1, dtype=torch.int64)
        names = ("grad", "out", "grad_qkv", "norms", "grad_fill")
        operands = (self.qkv, self.fill, *across, self.rows, self.columns)
        places = [
            0 if tensor is None else tensor.data_ptr()
            for tensor in (*operands, *(tensors.get(name) for name in names), begun)
        ]
        arguments = (tuple(places), self.sizes, self.qkv.shape[-1] ** -0.5)
        others = min(torch.get_num_threads(), self.tasks) - 1
        if not others:
            work(*arguments)
            return
        with ThreadPoolExecutor(others) as pool:
            running = [pool.submit(work, *arguments) for _ in range(others)]
            work(*arguments)
        for one in running:
            one.result()


class _NativeAttention(torch.autograd.Function):
    """Keeps inputs, output and two numbers a query and head; scores are made again in backward."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        qkv = inputs[0]
        norms = torch.empty(*qkv.shape[:3], qkv.shape[4], 2)
        out = _Call(*inputs).forward(norms)
        ctx.save_for_backward(*inputs, out, norms)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, out, norms = ctx.saved_tensors
        qkv, fill, rows, columns = inputs
        if any(ctx.needs_input_grad[2:]):  # tables are trained in full fine-tuning alone
            needs, chunk = ctx.needs_input_grad, default_chunk(qkv)
            tables = (rows.to(qkv.dtype), columns.to(qkv.dtype))
            found = backward_tiles(qkv, fill, *tables, out, grad, needs, chunk)
            return *found[:2], *(None if g is None else g.to(rows.dtype) for g in found[2:])
        grad_qkv, grad_fill = _Call(*inputs).backward(grad, out, norms)
        if fill is None:
            return grad_qkv, None, None, None
        of_fill = torch.cat(
            [torch.zeros_like(grad_fill[:1]), grad_fill]
        )  # q of a fill asks nothing
        return grad_qkv, of_fill.to(fill.dtype), None, None
