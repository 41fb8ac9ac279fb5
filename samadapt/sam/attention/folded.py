"""Attention with relative position as plain attention, for kernels that take no score mask.

The positional score of a query and a key is a sum of two numbers: one belongs to the query and the
key's row, the other to the query and the key's column. So it is an inner product of further
channels, in which a key only says where it is::

    q' = [ q | by row / scale | by column / scale ]     k' = [ k | one-hot row | one-hot column ]
    scale * q' . k' = scale * q . k + by row [y] + by column [x]

A flash kernel then gives exact values and gradients, and no tensor holds all scores. The channels
of a head grow from d to d + height + width: 92 in SAM's windows of 14 and 192 on a grid of 64 for
ViT-B and ViT-L, 108 and 208 for ViT-H. Values are padded with zeros to that width, because these
kernels want one width for all.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from samadapt.sam.attention.position import relative_scores
from samadapt.sam.attention.windows import join_windows, window_tokens

MULTIPLE = 8
"""Flash kernels take channels in multiples of this."""

MAX_CHANNELS = 256
"""Flash kernels take at most this many channels."""


def attend_folded(
    qkv: Float[Tensor, "b h w 3 heads d"],
    fill: Float[Tensor, "3 heads d"] | None,
    rows: Float[Tensor, "th th d"],
    columns: Float[Tensor, "tw tw d"],
) -> Float[Tensor, "b h w heads d"]:
    """Attend within windows; arguments and result are those of ``dispatch.Backend``."""
    _, h, w, _, heads, d = qkv.shape
    side = (len(rows), len(columns))
    q, k, v = window_tokens(qkv, fill, side)
    by_row, by_column = relative_scores(q, rows, columns)
    scale = d**-0.5
    # The scale stays with the kernel: a scaled query would be rounded once more in half precision.
    further = torch.cat([by_row, by_column], dim=-1) / scale
    place = _one_hot_places(side, like=k)[:, None].expand(len(k), -1, heads, -1)
    spare = folded_channels(d, side) - d - sum(side)
    out = functional.scaled_dot_product_attention(
        _padded(torch.cat([q, further.to(q.dtype)], dim=-1), spare).transpose(1, 2),
        _padded(torch.cat([k, place], dim=-1), spare).transpose(1, 2),
        _padded(v, sum(side) + spare).transpose(1, 2),
        scale=scale,
    )
    windows = out[..., :d].transpose(1, 2).reshape(-1, *side, heads * d)
    return torch.unflatten(join_windows(windows, (h, w)), -1, (heads, d))


def folded_channels(d: int, side: tuple[int, int]) -> int:
    """Return the channels of a head of d channels with those of its position, padded."""
    return -(-(d + sum(side)) // MULTIPLE) * MULTIPLE


def _one_hot_places(side: tuple[int, int], like: Tensor) -> Tensor:
    """Return the row and the column of each token of a window, one-hot: (n, height + width)."""
    height, width = side
    row = torch.eye(height, dtype=like.dtype, device=like.device)
    column = torch.eye(width, dtype=like.dtype, device=like.device)
    return torch.cat([row.repeat_interleave(width, dim=0), column.repeat(height, 1)], dim=1)


def _padded(tokens: Tensor, channels: int) -> Tensor:
    """Add channels of zeros, which add nothing to a score or an output."""
    return functional.pad(tokens, (0, channels)) if channels else tokens
