"""Which backend computes the attention of the image encoder.

All of them compute the same function. ``python -m benchmarks.run attention`` measures them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from samadapt.sam.attention.compiled import attend_compiled, is_supported
from samadapt.sam.attention.folded import MAX_CHANNELS, attend_folded, folded_channels
from samadapt.sam.attention.fused import attend_fused
from samadapt.sam.attention.reference import attend_reference
from samadapt.sam.attention.tiled import attend_tiled
from samadapt.sam.tracing import is_traced, takes_operators

Backend = Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]
"""Attends within the windows of a grid of tokens, each of them th x tw tokens.

Args:
    qkv: (b, h, w, 3, heads, d), query, key and value of each token.
    fill: (3, heads, d), the same of a padded token; None where windows divide the grid.
    rows: (th, th, d), the vector of each pair of rows [query, key].
    columns: (tw, tw, d), the same for columns.

Returns:
    (b, h, w, heads, d).
"""

BACKENDS: dict[str, Backend] = {
    "reference": attend_reference,
    "fused": attend_fused,
    "folded": attend_folded,
    "tiled": attend_tiled,
    "compiled": attend_compiled,
}


def choose_backend(qkv: Tensor, rows: Tensor, columns: Tensor, *, windowed: bool) -> str:
    """Return the name of the backend for these operands.

    Args:
        qkv: (b, h, w, 3, heads, d).
        rows: (th, th, d).
        columns: (tw, tw, d).
        windowed: whether the grid is cut into windows.
    """
    if is_supported(qkv) and takes_operators(rows) and takes_operators(columns):
        return "compiled"
    # Flash and memory-efficient kernels of CUDA hold no scores, neither of windows nor of images.
    # This was chosen by memory and exactness (python -m benchmarks.gpu --rows 'attention*'), and
    # its speed was not measured.
    side = len(rows), len(columns)
    folds = qkv.device.type == "cuda" and folded_channels(qkv.shape[-1], side) <= MAX_CHANNELS
    # A graph needs operators that it can record: no loop over tiles.
    if any(map(is_traced, (qkv, rows, columns))):
        return "folded" if folds and torch.compiler.is_compiling() else "fused"
    if folds:
        return "folded"
    # Elsewhere, and on larger grids, the scores of an image do not fit in the cache or the memory.
    # Windows are small: outside of the CPU one fused call does them all.
    return "tiled" if not windowed or qkv.device.type == "cpu" else "fused"
