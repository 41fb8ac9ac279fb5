"""Attention in compiled code (``_attention.c``), on x86 processors.

It computes attention within windows with decomposed relative position (SAM's ViT) or with a bias
for each pair of tokens (TinyViT). It is compiled when samadapt is installed, once for AVX-512 and
once for AVX2, if there is a C compiler. Where the processor or the build is missing, PyTorch
computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from samadapt.sam.attention.tiled import backward_tiles, default_chunk, tile_count
from samadapt.sam.tracing import is_plain, is_traced

MODULES = {"AVX512": ("_attention_avx512", "_attention_avx2"), "AVX2": ("_attention_avx2",)}
"""The builds to try for each capability that torch reports of the processor, fastest first."""

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
"""The order in which the compiled code takes the addresses of its operands."""

INTERFACE = 2
"""Version of the arguments; a build with another number belongs to another version of this file."""


@cache
def find_kernels() -> ModuleType | None:
    """Return the compiled module for this processor, or None where there is none."""
    for name in MODULES.get(torch.backends.cpu.get_cpu_capability(), ()):
        try:
            kernels = import_module(f"samadapt.sam.attention.{name}")
        except ImportError:  # describe_attention explains it
            continue
        if kernels.INTERFACE == INTERFACE:
            return kernels
    return None


def is_missing() -> bool:
    """Return whether this processor could run a build, but none is installed."""
    return find_kernels() is None and torch.backends.cpu.get_cpu_capability() in MODULES


def describe_attention() -> str:
    """Describe which backend attention uses on the CPU and why, for logs and ``doctor``."""
    kernels = find_kernels()
    if kernels is not None:
        which = "AVX-512" if kernels.LANES == 16 else "AVX2"
        return f"compiled for {which}" + (" with bf16" if kernels.BF16 else "")
    if not is_missing():
        return "by PyTorch: there is no compiled backend for this processor"
    try:
        import_module(f"samadapt.sam.attention.{MODULES['AVX2'][0]}")
    except ModuleNotFoundError:
        return "by PyTorch: the compiled backend was not built when samadapt was installed"
    except ImportError as error:
        return f"by PyTorch: the compiled backend does not load ({error})"
    return "by PyTorch: the compiled backend belongs to another version of samadapt"


def is_supported(qkv: Tensor) -> bool:
    """Return whether the compiled code takes these values.

    They must be plain tensors on the CPU that nothing but autograd records, in fp32, or in bf16
    where the processor has it.
    """
    # This comes first, because find_kernels cannot run inside a graph.
    if is_traced(qkv) or qkv.device.type != "cpu":
        return False
    kernels = find_kernels()
    if kernels is None:
        return False
    if qkv.dtype == torch.float32:
        return True
    return qkv.dtype == torch.bfloat16 and bool(kernels.BF16) and qkv.shape[-1] % 2 == 0


def attend_compiled(
    qkv: Float[Tensor, "b h w 3 heads d"],
    fill: Float[Tensor, "3 heads d"] | None,
    rows: Float[Tensor, "th th d"],
    columns: Float[Tensor, "tw tw d"],
) -> Float[Tensor, "b h w heads d"]:
    """Attend within each window of a grid of tokens; see ``dispatch.Backend``.

    Args:
        qkv: (b, h, w, 3, heads, d), query, key and value of each token; ``is_supported`` holds.
        fill: (3, heads, d), the same of a padded token; None where windows divide the grid.
        rows: (th, th, d), the vector of each pair of rows [query, key]; th is a window's height.
        columns: (tw, tw, d), the same for columns.

    Returns:
        (b, h, w, heads, d). Only first derivatives are supported.

    Raises:
        ValueError: the operands do not belong together.
    """
    return _attend(_lay_out_tables, qkv, fill, rows, columns)


def attend_compiled_biased(
    qkv: Float[Tensor, "b h w heads 3 d"],
    fill: Float[Tensor, "heads 3 d"] | None,
    biases: Float[Tensor, "heads n n"],
) -> Float[Tensor, "b h w heads d"]:
    """Attend within each square window of a grid of tokens, with a bias for each pair of tokens.

    Args:
        qkv: (b, h, w, heads, 3, d), query, key and value of each token; ``is_supported`` holds.
        fill: (heads, 3, d), the same of a padded token; None where windows divide the grid.
        biases: (heads, n, n), what is added to the score of each pair [query, key] of the n tokens
            of a window, in row-major order. They get no gradient.

    Returns:
        (b, h, w, heads, d). Only first derivatives are supported.

    Raises:
        ValueError: the operands do not belong together, or ``biases`` require a gradient.
    """
    if biases.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "compiled attention computes no gradient of biases; use PyTorch's attention"
        )
    return _attend(_lay_out_biases, qkv, fill, biases)


def _attend(lay_out: LayOut, qkv: Tensor, fill: Tensor | None, *places: Tensor) -> Tensor:
    wanted = (t is not None and t.requires_grad for t in (qkv, fill, *places))
    if torch.is_grad_enabled() and any(wanted):
        out: Tensor = _CompiledAttention.apply(lay_out, qkv, fill, *places)
        return out
    return lay_out(qkv, fill, *places).forward(None)


def _lay_out_tables(qkv: Tensor, fill: Tensor | None, rows: Tensor, columns: Tensor) -> _Call:
    """Prepare a call with decomposed position.

    Forward reads the tables with the keys last, padded to whole vectors; backward reads them as
    they are.
    """
    side = (len(rows), len(columns))
    operands: dict[str, Tensor] = {}
    for name, table in (("rows", rows), ("columns", columns)):
        _expect(table, (len(table), len(table), qkv.shape[-1]), name)
        plain = table.detach().to(torch.float32)
        by_key = functional.pad(plain.transpose(1, 2), (0, -len(table) % _kernels().LANES))
        operands |= {name: by_key.contiguous(), f"to_{name}": plain.contiguous()}
    return _Call(qkv, fill, side, operands, heads_first=False)


def _lay_out_biases(qkv: Tensor, fill: Tensor | None, biases: Tensor) -> _Call:
    """Prepare a call with biases: in base 2, as the softmax, with keys padded to whole panels."""
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
    """One call of the compiled code. It keeps the operands alive while the code runs.

    Args:
        qkv: (b, h, w, 3, heads, d), or (b, h, w, heads, 3, d) with ``heads_first``.
        fill: query, key and value of a padded token, or None.
        side: (th, tw) of a window, in tokens.
        operands: those of ``OPERANDS`` that hold the position's part of the scores.
        heads_first: the order of the axes of ``qkv``.
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
        if not is_supported(qkv):
            kind = type(qkv).__name__
            raise ValueError(
                f"qkv must be a plain tensor of fp32 (or bf16) on the CPU; got {qkv.dtype} on "
                f"{qkv.device}, a {kind}"
            )
        b, h, w, heads, parts, d = (qkv if heads_first else qkv.transpose(3, 4)).shape
        if parts != 3:
            raise ValueError(f"qkv must hold q, k and v; got {tuple(qkv.shape)}")
        if fill is not None:
            _expect(fill, tuple(qkv.shape[3:]), "fill")
            fill = fill.to(qkv.dtype).contiguous()
        elif h % side[0] or w % side[1]:
            raise ValueError(
                f"windows of {side} do not divide a grid of {(h, w)}: fill must be given"
            )
        self.qkv, self.fill, self.operands = qkv.contiguous(), fill, operands
        self.heads_first = heads_first
        # The distances in memory between q, k and v of a token, and between its heads.
        apart = (d, 3 * d) if heads_first else (heads * d, d)
        self.sizes = (*apart, b, h, w, heads, d, *side, int(qkv.dtype == torch.bfloat16))
        self.tiles = tile_count(qkv, side)
        self.shape = (b, h, w, heads, d)

    def norms(self) -> Tensor:
        """Return an empty tensor for what ``backward`` needs: two numbers a query and head.

        They are the largest score and one over the sum of the softmax.
        """
        return self.qkv.new_empty((*self.shape[:4], 2), dtype=torch.float32)

    def forward(self, norms: Tensor | None) -> Tensor:
        """Return the output (b, h, w, heads, d); fill ``norms`` if it is given."""
        out = self.qkv.new_empty(self.shape)
        self._run(self.kernels.forward, out=out, norms=norms)
        return out

    def backward(self, grad: Tensor, out: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of qkv and, in fp32, that of the fill."""
        heads, d = self.shape[3:]
        grad_qkv = torch.empty_like(self.qkv)
        # The gradients of k and v of the padded tokens, one sum for each window and head.
        keys = self.qkv.new_empty((self.tiles, heads, 2, d), dtype=torch.float32)
        grad = grad.to(self.qkv.dtype).contiguous()
        given = {"grad": grad, "out": out, "norms": norms}
        self._run(self.kernels.backward, **given, grad_qkv=grad_qkv, grad_fill=keys)
        grad_fill = functional.pad(keys.sum(0), (0, 0, 1, 0))  # a padded query has none
        return grad_qkv, grad_fill if self.heads_first else grad_fill.transpose(0, 1)

    def _run(self, function: Any, **tensors: Tensor | None) -> None:
        given = {"qkv": self.qkv, "fill": self.fill, **self.operands, **tensors}
        found = [given.get(name) for name in OPERANDS]
        places = tuple(0 if tensor is None else tensor.data_ptr() for tensor in found)
        function(places, self.sizes, self.shape[-1] ** -0.5, torch.get_num_threads())


LayOut = Callable[..., _Call]


class _CompiledAttention(torch.autograd.Function):
    """Keeps inputs, output and two numbers a query and head; backward computes scores again."""

    @staticmethod
    def forward(ctx: Any, lay_out: LayOut, *inputs: Any) -> Tensor:
        call = lay_out(*inputs)
        norms = call.norms()
        out = call.forward(norms)
        ctx.lay_out = lay_out
        ctx.save_for_backward(*inputs, out, norms)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, out, norms = ctx.saved_tensors
        qkv, fill, *places = inputs
        needs = ctx.needs_input_grad[1:]
        if any(needs[2:]):  # the position tables, which only full fine-tuning trains
            rows, columns = (table.to(qkv.dtype) for table in places)
            chunk = default_chunk(qkv)
            found = backward_tiles(qkv, fill, rows, columns, out, grad, needs, chunk)
            pairs = zip(found, inputs, strict=True)
            return None, *(None if g is None else g.to(t.dtype) for g, t in pairs)
        grad_qkv, grad_fill = ctx.lay_out(*inputs).backward(grad, out, norms)
        fill_grad = None if fill is None else grad_fill.to(fill.dtype)
        return None, grad_qkv, fill_grad, *(None for _ in places)
