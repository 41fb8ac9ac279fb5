"""The blocks of Hiera (Ryali et al. 2023) as SAM 2 has them. Tokens are (b, h, w, width).

A window that reaches over the edge of the grid is padded in SAM 2, after the norm, so all padded
tokens are ``qkv(0)`` and take part in the softmax. Here they are never made: a window is as large
as its real tokens, and one further key stands for its n padded ones. Its score is raised by log(n),
which is what n equal keys add up to. At 256 and 512 pixels padding would be two thirds and two
fifths of the tokens of the longest stage.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.layers_fast import FastMLPBlock


class PoolingAttention(nn.Module):
    """Multi-head self-attention over a grid of tokens, as a whole or within windows.

    Args:
        inputs: channels of the tokens that come in.
        width: channels of the tokens that go out.
        heads: attention heads; must divide ``width``.
        window: side of a window in tokens; 0 attends over the whole grid.
        is_pooling: halve the grid: of 2 x 2 queries the largest value of each channel remains.
    """

    def __init__(
        self, inputs: int, width: int, heads: int, window: int, *, is_pooling: bool
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide the width {width}; got {heads}")
        self.num_heads, self.window, self.is_pooling = heads, window, is_pooling
        self.qkv = nn.Linear(inputs, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b h w inputs"]) -> Float[Tensor, "b _ _ width"]:
        """Attend within x: (b, h, w, inputs) -> (b, h, w, width), or half the sides if pooling."""
        height, across = x.shape[1:3]
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # each (b, h, w, width)
        q = pool_tokens(q) if self.is_pooling else q
        step = 2 if self.is_pooling else 1
        side = self.window or max(height, across)
        fill = None
        if self.window and (height % side or across % side):
            fill = self.qkv(x.new_zeros(1, 1, 1, x.shape[-1])).chunk(3, dim=-1)[1:]
        rows = []
        for top, bottom in _parts(height, side):
            row = []
            for left, right in _parts(across, side):
                inner = (slice(None), slice(top, bottom), slice(left, right))
                pooled = (
                    slice(None),
                    slice(top // step, bottom // step),
                    slice(left // step, right // step),
                )
                row.append(self._attend(q[pooled], k[inner], v[inner], fill, side))
            rows.append(torch.cat(row, dim=2) if len(row) > 1 else row[0])
        out: Tensor = self.proj(torch.cat(rows, dim=1) if len(rows) > 1 else rows[0])
        return out

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, fill: tuple[Tensor, ...] | None, side: int
    ) -> Tensor:
        """Attend within windows of at most ``side`` x ``side`` tokens that fill a part of the grid.

        Args:
            q: (b, y, x, width), maybe pooled.
            k: (b, h, w, width).
            v: (b, h, w, width).
            fill: key and value (1, 1, 1, width) of a padded token.
            side: side of a whole window.

        Returns:
            (b, y, x, width).
        """
        height, across = (min(side, length) for length in k.shape[1:3])
        step = k.shape[1] // q.shape[1]
        tile = height // step, across // step
        queries = self._split(q, *tile)
        keys, values = self._split(k, height, across), self._split(v, height, across)
        padded, bias = side**2 - height * across, None
        if padded and fill is not None:
            shape = (keys.shape[0], self.num_heads, 1, keys.shape[-1])
            more = [x.view(1, self.num_heads, 1, -1).expand(shape).to(keys) for x in fill]
            keys, values = torch.cat([keys, more[0]], dim=2), torch.cat([values, more[1]], dim=2)
            bias = keys.new_zeros(1, 1, 1, keys.shape[2])
            bias[..., -1] = math.log(padded)
        attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        # (windows, heads, tokens, d) -> (b, rows, columns, y, x, heads * d) -> (b, y, x, width)
        # No ``len``: in a graph it would fix the number of images.
        grid = (q.shape[0], q.shape[1] // tile[0], q.shape[2] // tile[1], *tile)
        joined = attended.transpose(1, 2).flatten(2).view(*grid, -1)
        return joined.transpose(2, 3).reshape(q.shape)

    def _split(self, x: Tensor, height: int, across: int) -> Tensor:
        """Cut tokens (b, h, w, width) into windows: (windows, heads, tokens, d)."""
        b, h, w, _ = x.shape
        cut = x.reshape(b, h // height, height, w // across, across, self.num_heads, -1)
        windows = cut.permute(0, 1, 3, 5, 2, 4, 6)  # (b, rows, columns, heads, y, x, d)
        return windows.flatten(4, 5).flatten(0, 2)


class HieraBlock(nn.Module):
    """One transformer block: attention and MLP, each after a norm and with a residual.

    Args:
        inputs: channels of the tokens that come in.
        width: channels of the tokens that go out.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over ``width``.
        window: side of an attention window in tokens; 0 attends over the whole grid.
        is_pooling: halve the grid. Then the residual is a projection, pooled as the queries are.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        heads: int,
        mlp_ratio: float,
        window: int,
        *,
        is_pooling: bool,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(inputs, eps=1e-6)
        self.attn = PoolingAttention(inputs, width, heads, window, is_pooling=is_pooling)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FastMLPBlock(width, int(width * mlp_ratio))
        if is_pooling:
            self.proj = nn.Linear(inputs, width)

    def forward(self, x: Float[Tensor, "b h w inputs"]) -> Float[Tensor, "b _ _ width"]:
        """Transform tokens x (b, h, w, inputs)."""
        normed = self.norm1(x)
        shortcut = pool_tokens(self.proj(normed)) if self.attn.is_pooling else x
        x = shortcut + self.attn(normed)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def pool_tokens(x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b _ _ c"]:
    """Halve a grid of tokens: of 2 x 2 the largest value of each channel remains."""
    return functional.max_pool2d(x.permute(0, 3, 1, 2), kernel_size=2).permute(0, 2, 3, 1)


def _parts(length: int, side: int) -> list[tuple[int, int]]:
    """Cut an axis into the part that whole windows fill and the rest; each is (start, stop)."""
    whole = length - length % side
    return [part for part in ((0, whole), (whole, length)) if part[0] < part[1]]
