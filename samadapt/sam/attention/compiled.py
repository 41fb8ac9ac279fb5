"""Attention within tiles by compiled code (``_attention.c``), on x86 processors.

With decomposed relative position it gives what ``attend_tiles`` gives, and with a bias for each
pair of tokens (TinyViT) what PyTorch's attention gives within windows. It is built when samadapt is
installed, if there is a C compiler: once with AVX-512, once with AVX2. Where neither is there or
the processor has neither, those two do the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from samadapt.sam.attention.tiled import backward_tiles, default_chunk, tile_count
from samadapt.sam.layers import is_plain, is_traced

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

INTERFACE = 2
"""Of the arguments; a build of another one is older or newer than this file."""


@cache
def find_kernels() -> ModuleType | None:
    """Return the compiled module for this processor; None where there is none."""
    for name in MODULES.get(torch.backends.cpu.get_cpu_capability(), ()):
        try:
            kernels = import_module(f"samadapt.sam.attention.{name}")
        except ImportError:  # describe_attention says why
            continue
        if kernels.INTERFACE == INTERFACE:
            return kernels
    return None


def is_missing() -> bool:
    """Whether there is a compiled form for this processor, but not here."""
    return find_kernels() is None and torch.backends.cpu.get_cpu_capability() in MODULES


def describe_attention() -> str:
    """Say which form attention takes on the CPU and why, for logs and ``doctor``."""
    kernels = find_kernels()
    if kernels is not None:
        which = "AVX-512" if kernels.LANES == 16 else "AVX2"
        return f"compiled for {which}" + (" with bf16" if kernels.BF16 else "")
    if not is_missing():
        return "by PyTorch: there is no compiled form for this processor"
    try:
        import_module(f"samadapt.sam.attention.{MODULES['AVX2'][0]}")
    except ModuleNotFoundError:
        return "by PyTorch: the compiled form was not built when samadapt was installed"
    except ImportError as error:
        return f"by PyTorch: the compiled form does not load ({error})"
    return "by PyTorch: the compiled form is of another version of samadapt"


def suits(qkv: Tensor) -> bool:
    """Whether the compiled form takes these values.

    They must be plain numbers on the CPU that nothing but autograd records: fp32, or bf16 where the
    processor has it.
    """
    if is_traced(qkv) or qkv.device.type != "cpu":  # first: a graph cannot ask for the processor
        return False
    kernels = find_kernels()
    if kernels is None:
        return False
    if qkv.dtype == torch.float32:
        return True
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

    Raises:
        ValueError: for operands that do not belong together.
    """
    return _attend(_with_tables, qkv, fill, rows, columns)


def attend_native_biased(qkv: Tensor, fill: Tensor | None, biases: Tensor) -> Tensor:
    """Attend within each square window of a grid of tokens, with a bias for each pair of tokens.

    Args:
        qkv: (b, h, w, heads, 3, d), one that ``suits``.
        fill: (heads, 3, d) of a cell beyond the edge; None where the windows divide the grid.
        biases: (heads, n, n) [query, key] of the n tokens of a window, row by row; no gradient.

    Returns:
        (b, h, w, heads, d). First derivatives only.

    Raises:
        ValueError: for operands that do not belong together, and if ``biases`` want a gradient.
    """
    if biases.requires_grad and torch.is_grad_enabled():
        raise ValueError("compiled attention gives no gradient of biases; use PyTorch's attention")
    return _attend(_with_biases, qkv, fill, biases)


def _attend(lay: Lay, qkv: Tensor, fill: Tensor | None, *places: Tensor) -> Tensor:
    wanted = (t is not None and t.requires_grad for t in (qkv, fill, *places))
    if torch.is_grad_enabled() and any(wanted):
        out: Tensor = _CompiledAttention.apply(lay, qkv, fill, *places)
        return out
    return lay(qkv, fill, *places).forward(None)


def _with_tables(qkv: Tensor, fill: Tensor | None, rows: Tensor, columns: Tensor) -> _Call:
    """Lay a call of decomposed position out: tables by key, padded to whole vectors, as well."""
    side = (len(rows), len(columns))
    operands: dict[str, Tensor] = {}
    for name, table in (("rows", rows), ("columns", columns)):
        _expect(table, (len(table), len(table), qkv.shape[-1]), name)
        plain = table.detach().to(torch.float32)
        by_key = functional.pad(plain.transpose(1, 2), (0, -len(table) % _kernels().LANES))
        operands |= {name: by_key.contiguous(), f"to_{name}": plain.contiguous()}
    return _Call(qkv, fill, side, operands, heads_first=False)


def _with_biases(qkv: Tensor, fill: Tensor | None, biases: Tensor) -> _Call:
    """Lay a call of biased pairs out: in base 2, keys padded to whole panels."""
    tokens = biases.shape[-1]
    _expect(biases, (qkv.shape[3], tokens, math.isqrt(tokens) ** 2), "biases")
    scaled = biases.detach().to(torch.float32) * math.log2(math.e)
    padding = -tokens % (2 * _kernels().LANES)
    bias = functional.pad(scaled, (0, padding), value=_kernels().FAR).contiguous()
    return _Call(qkv, fill, (math.isqrt(tokens),) * 2, {"bias": bias}, heads_first=True)


def _kernels() -> Any:
    kernels = find_kernels()
    if kernels is None:
        raise ValueError(f"attention is {describe_attention()}; use PyTorch's attention")
    return kernels


def _expect(tensor: Tensor, shape: tuple[int, ...], name: str) -> None:
    if tuple(tensor.shape) != shape or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} must be {shape} on the CPU; got {tuple(tensor.shape)} on {tensor.device}"
        )
    if not is_plain(tensor):
        raise ValueError(f"{name} must be a plain tensor; got {type(tensor).__name__}")


class _Call:
    """One call of the compiled code: its operands, held while it runs.

    Args:
        qkv: (b, h, w, 3, heads, d), or (b, h, w, heads, 3, d) with ``heads_first``.
        fill: qkv of a cell beyond the edge, or None.
        side: (th, tw) of a tile.
        operands: of ``OPERANDS``, those that say what places add to the scores.
        heads_first: the order of qkv.
    """

    def __init__(
        self,
        qkv: Tensor,
        fill: Tensor | None,
        side: tuple[int, int],
        operands: dict[str, Tensor],
        *,
        heads_first: bool,
    ) -> None:
        self.kernels = _kernels()
        if not suits(qkv):
            kind = type(qkv).__name__
            raise ValueError(
                f"qkv must be one that suits; got {qkv.dtype} on {qkv.device}, a {kind}"
            )
        b, h, w, heads, parts, d = (qkv if heads_first else qkv.transpose(3, 4)).shape
        if parts != 3:
            raise ValueError(f"qkv must have q, k and v; got {tuple(qkv.shape)}")
        if fill is not None:
            _expect(fill, tuple(qkv.shape[3:]), "fill")
            fill = fill.to(qkv.dtype).contiguous()
        elif h % side[0] or w % side[1]:
            raise ValueError(
                f"tiles of {side} do not divide a grid of {(h, w)}: fill must be given"
            )
        self.qkv, self.fill, self.operands = qkv.contiguous(), fill, operands
        self.heads_first = heads_first
        apart = (d, 3 * d) if heads_first else (heads * d, d)
        self.sizes = (*apart, b, h, w, heads, d, *side, int(qkv.dtype == torch.bfloat16))
        self.tiles = tile_count(qkv, side)
        self.shape = (b, h, w, heads, d)

    def norms(self) -> Tensor:
        """Return room for what ``forward`` leaves to ``backward``: two numbers a query and head."""
        return self.qkv.new_empty((*self.shape[:4], 2), dtype=torch.float32)

    def forward(self, norms: Tensor | None) -> Tensor:
        """Return the output (b, h, w, heads, d)."""
        out = self.qkv.new_empty(self.shape)
        self._run(self.kernels.forward, out=out, norms=norms)
        return out

    def backward(self, grad: Tensor, out: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of qkv and, in fp32, of the fill."""
        heads, d = self.shape[3:]
        grad_qkv = torch.empty_like(self.qkv)
        keys = self.qkv.new_empty((self.tiles, heads, 2, d), dtype=torch.float32)  # of the padding
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


Lay = Callable[..., _Call]


class _CompiledAttention(torch.autograd.Function):
    """Keeps inputs, output and two numbers a query and head; scores are made again in backward."""

    @staticmethod
    def forward(ctx: Any, lay: Lay, *inputs: Any) -> Tensor:
        call = lay(*inputs)
        norms = call.norms()
        out = call.forward(norms)
        ctx.lay = lay
        ctx.save_for_backward(*inputs, out, norms)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, out, norms = ctx.saved_tensors
        qkv, fill, *places = inputs
        needs = ctx.needs_input_grad[1:]
        if any(needs[2:]):  # tables, which only full fine-tuning trains
            rows, columns = (table.to(qkv.dtype) for table in places)
            chunk = default_chunk(qkv)
            found = backward_tiles(qkv, fill, rows, columns, out, grad, needs, chunk)
            pairs = zip(found, inputs, strict=True)
            return None, *(None if g is None else g.to(t.dtype) for g, t in pairs)
        grad_qkv, grad_fill = ctx.lay(*inputs).backward(grad, out, norms)
        of_fill = None if fill is None else grad_fill.to(fill.dtype)
        return None, grad_qkv, of_fill, *(None for _ in places)
