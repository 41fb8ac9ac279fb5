"""The attention layer of SAM's image encoder, with decomposed relative position."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from samadapt.sam.attention.dispatch import BACKENDS, choose_backend
from samadapt.sam.attention.position import relative_tables


class RelativePositionAttention(nn.Module):
    """Multi-head self-attention over a grid of tokens, as a whole or within windows.

    A window that reaches over the edge of the grid is padded, and its padded tokens take part in
    the softmax. SAM pads after the norm: padding tokens are zero before ``qkv``, so they all share
    one constant output, which is computed once.

    Args:
        width: channels of the tokens.
        heads: attention heads; must divide ``width``.
        grid: (h, w) in tokens that the position tables are made for: the window's or the image's.
        windowed: attend within windows of size ``grid`` instead of over the whole grid.
    """

    def __init__(self, width: int, heads: int, grid: tuple[int, int], *, windowed: bool) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide the width {width}; got {heads}")
        self.num_heads = heads
        self.window = grid if windowed else None
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid[0] - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid[1] - 1, width // heads))

    def forward(self, x: Float[Tensor, "b h w width"]) -> Float[Tensor, "b h w width"]:
        """Attend within each of the b grids of x (b, h, w, width)."""
        _, h, w, width = x.shape
        split = (3, self.num_heads, -1)
        qkv: Tensor = torch.unflatten(self.qkv(x), -1, split)  # (b, h, w, 3, heads, d)
        height, across = side = self.window or (h, w)
        fill = None
        if h % height or w % across:
            fill = torch.unflatten(self.qkv(x.new_zeros(1, 1, 1, width)), -1, split)[0, 0, 0]
        tables = relative_tables(self.rel_pos_h, self.rel_pos_w, side)
        rows, columns = (table.to(qkv.dtype) for table in tables)
        backend = choose_backend(qkv, rows, columns, windowed=self.window is not None)
        attended = BACKENDS[backend](qkv, fill, rows, columns)  # (b, h, w, heads, d)
        out: Tensor = self.proj(attended.flatten(-2))
        return out
