"""The compiled kernels of attention: which build this processor runs, and one call of it.

``_attention.c`` is compiled when samadapt is installed, once for AVX-512 and once for AVX2, if
there is a C compiler that takes GNU C's vectors (gcc or clang). ``compiled`` makes operators of
PyTorch of the calls.
"""

from __future__ import annotations

import math
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from samadapt.sam.attention.tiled import tile_count

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


def load_kernels() -> ModuleType | None:
    """Load the compiled module for this processor; None where there is none."""
    for name in MODULES.get(torch.backends.cpu.get_cpu_capability(), ()):
        try:
            build = import_module(f"samadapt.sam.attention.{name}")
        except ImportError:  # describe_attention explains it
            continue
        if build.INTERFACE == INTERFACE:
            return build
    return None


# A constant, not a cached function: ``torch.compile`` reads it while it records a graph.
_build = load_kernels()


def find_kernels() -> ModuleType | None:
    """Return the compiled module that is in use, or None where PyTorch computes attention."""
    return _build


def is_missing() -> bool:
    """Return whether this processor could run a build, but none is installed."""
    return find_kernels() is None and torch.backends.cpu.get_cpu_capability() in MODULES


def describe_attention() -> str:
    """Describe which backend attention uses on the CPU and why, for logs and ``doctor``."""
    build = find_kernels()
    if build is not None:
        which = "AVX-512" if build.LANES == 16 else "AVX2"
        return f"compiled for {which}" + (" with bf16" if build.BF16 else "")
    if not is_missing():
        return "by PyTorch: there is no compiled backend for this processor"
    try:
        import_module(f"samadapt.sam.attention.{MODULES['AVX2'][0]}")
    except ModuleNotFoundError:
        return "by PyTorch: the compiled backend was not built when samadapt was installed"
    except ImportError as error:
        return f"by PyTorch: the compiled backend does not load ({error})"
    return "by PyTorch: the compiled backend belongs to another version of samadapt"


def takes_type(qkv: Tensor) -> bool:
    """Return whether the compiled code takes the device and type of qkv (..., d).

    That is fp32 on the CPU, or bf16 where the processor has it and d is even.
    """
    build = find_kernels()
    if build is None or qkv.device.type != "cpu":
        return False
    if qkv.dtype == torch.float32:
        return True
    return qkv.dtype == torch.bfloat16 and bool(build.BF16) and qkv.shape[-1] % 2 == 0


def check_window_operands(qkv: Tensor, fill: Tensor | None, rows: Tensor, columns: Tensor) -> None:
    """Check the operands of attention with decomposed position; see ``compiled``.

    Raises:
        ValueError: they do not belong together.
    """
    for name, table in (("rows", rows), ("columns", columns)):
        _expect(table, (len(table), len(table), qkv.shape[-1]), name)
    _check_grid(qkv, fill, (len(rows), len(columns)), parts=qkv.shape[3])


def check_biased_operands(qkv: Tensor, fill: Tensor | None, biases: Tensor) -> None:
    """Check the operands of attention with a bias for each pair; see ``compiled``.

    Raises:
        ValueError: they do not belong together.
    """
    tokens = biases.shape[-1]
    side = math.isqrt(tokens)
    _expect(biases, (qkv.shape[3], tokens, side**2), "biases")
    _check_grid(qkv, fill, (side, side), parts=qkv.shape[4])


def _check_grid(qkv: Tensor, fill: Tensor | None, side: tuple[int, int], parts: int) -> None:
    if not takes_type(qkv):
        if find_kernels() is None:
            raise ValueError(f"attention is {describe_attention()}; use PyTorch's attention")
        raise ValueError(
            "qkv must be fp32 on the CPU, or bf16 where the processor has it; got "
            f"{qkv.dtype} on {qkv.device}"
        )
    if parts != 3:
        raise ValueError(f"qkv must hold q, k and v; got {tuple(qkv.shape)}")
    h, w = qkv.shape[1:3]
    if fill is not None:
        _expect(fill, tuple(qkv.shape[3:]), "fill")
    elif h % side[0] or w % side[1]:
        raise ValueError(f"windows of {side} do not divide a grid of {(h, w)}: fill must be given")


def _expect(tensor: Tensor, shape: tuple[int, ...], name: str) -> None:
    if tuple(tensor.shape) != shape or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} must be {shape} on the CPU; got {tuple(tensor.shape)} on {tensor.device}"
        )


def window_call(qkv: Tensor, fill: Tensor | None, rows: Tensor, columns: Tensor) -> KernelCall:
    """Prepare a call with decomposed position, whose operands are checked.

    Forward reads the tables with the keys last, padded to whole vectors; backward reads them as
    they are.
    """
    check_window_operands(qkv, fill, rows, columns)
    operands: dict[str, Tensor] = {}
    for name, table in (("rows", rows), ("columns", columns)):
        plain = table.detach().to(torch.float32)
        by_key = functional.pad(plain.transpose(1, 2), (0, -len(table) % _kernels().LANES))
        operands |= {name: by_key.contiguous(), f"to_{name}": plain.contiguous()}
    return KernelCall(qkv, fill, (len(rows), len(columns)), operands, heads_first=False)


def biased_call(qkv: Tensor, fill: Tensor | None, biases: Tensor) -> KernelCall:
    """Prepare a call with biases: in base 2, as the softmax, with keys padded to whole panels."""
    check_biased_operands(qkv, fill, biases)
    tokens = biases.shape[-1]
    scaled = biases.detach().to(torch.float32) * math.log2(math.e)
    padding = -tokens % (2 * _kernels().LANES)
    bias = functional.pad(scaled, (0, padding), value=_kernels().FAR).contiguous()
    return KernelCall(qkv, fill, (math.isqrt(tokens),) * 2, {"bias": bias}, heads_first=True)


def _kernels() -> Any:
    return find_kernels()  # the checks have refused what needs another


class KernelCall:
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
        b, h, w, heads, _, d = (qkv if heads_first else qkv.transpose(3, 4)).shape
        self.qkv, self.operands = qkv.contiguous(), operands
        self.fill = None if fill is None else fill.to(qkv.dtype).contiguous()
        self.heads_first = heads_first
        # The distances in memory between q, k and v of a token, and between its heads.
        apart = (d, 3 * d) if heads_first else (heads * d, d)
        self.sizes = (*apart, b, h, w, heads, d, *side, int(qkv.dtype == torch.bfloat16))
        self.tiles = tile_count(qkv, side)
        self.shape = (b, h, w, heads, d)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the output (b, h, w, heads, d) and what ``backward`` needs beside it.

        That is (b, h, w, heads, 2) in fp32, two numbers a query and head: the largest score and one
        over the sum of the softmax.
        """
        out = self.qkv.new_empty(self.shape)
        norms = self.qkv.new_empty((*self.shape[:4], 2), dtype=torch.float32)
        self._run(self.kernels.forward, out=out, norms=norms)
        return out, norms

    def backward(self, grad: Tensor, out: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of qkv and, in fp32, that of the fill."""
        heads, d = self.shape[3:]
        grad_qkv = torch.empty_like(self.qkv)
        # The gradients of k and v of the padded tokens, one sum for each window and head.
        keys = self.qkv.new_empty((self.tiles, heads, 2, d), dtype=torch.float32)
        grad = grad.to(self.qkv.dtype).contiguous()
        given = {"grad": grad, "out": out.contiguous(), "norms": norms.contiguous()}
        self._run(self.kernels.backward, **given, grad_qkv=grad_qkv, grad_fill=keys)
        grad_fill = functional.pad(keys.sum(0), (0, 0, 1, 0))  # a padded query has none
        if not self.heads_first:
            grad_fill = grad_fill.transpose(0, 1).contiguous()
        return grad_qkv, grad_fill

    def _run(self, function: Any, **tensors: Tensor | None) -> None:
        given = {"qkv": self.qkv, "fill": self.fill, **self.operands, **tensors}
        found = [given.get(name) for name in OPERANDS]
        places = tuple(0 if tensor is None else tensor.data_ptr() for tensor in found)
        function(places, self.sizes, self.shape[-1] ** -0.5, torch.get_num_threads())
