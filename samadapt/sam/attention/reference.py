"""The textbook form of attention with decomposed relative position.

It is slow and takes the memory of all scores. The tests compare every other backend with it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from samadapt.sam.attention.windows import join_windows, partition_windows


def attend(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads n d"],
    v: Float[Tensor, "b heads n d"],
    rows: Float[Tensor, "h h d"],
    columns: Float[Tensor, "w w d"],
) -> Float[Tensor, "b heads n d"]:
    """Attend within one grid of h x w tokens: softmax(q k^T / sqrt(d) + position) v.

    Args:
        q: (b, heads, h * w, d).
        k: (b, heads, h * w, d).
        v: (b, heads, h * w, d).
        rows: (h, h, d), the vector of each pair of rows [query, key].
        columns: (w, w, d), the same for columns.

    Returns:
        (b, heads, h * w, d).
    """
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (b, heads, h * w, h * w)
    # Query (i, j) and key (y, x) are at distance (i - y, j - x). Queries are not scaled here.
    placed = q.unflatten(2, (len(rows), len(columns)))  # (b, heads, i, j, d)
    by_row = torch.einsum("bhijd,iyd->bhijy", placed, rows)
    by_column = torch.einsum("bhijd,jxd->bhijx", placed, columns)
    position = by_row[..., :, None] + by_column[..., None, :]  # (b, heads, i, j, y, x)
    scores = scores + position.flatten(4).flatten(2, 3)
    out: Tensor = scores.softmax(dim=-1) @ v
    return out


def attend_reference(
    qkv: Float[Tensor, "b h w 3 heads d"],
    fill: Float[Tensor, "3 heads d"] | None,
    rows: Float[Tensor, "th th d"],
    columns: Float[Tensor, "tw tw d"],
) -> Float[Tensor, "b h w heads d"]:
    """Cut the grid into windows, attend within each, and join them; see ``dispatch.Backend``."""
    side, grid = (len(rows), len(columns)), (qkv.shape[1], qkv.shape[2])
    padding = None if fill is None else fill.flatten()
    windows = partition_windows(qkv.flatten(3), side, padding)
    # (windows, height, width, 3 * heads * d) -> q, k and v, each (windows, heads, tokens, d)
    tokens = windows.flatten(1, 2).unflatten(-1, qkv.shape[3:])
    q, k, v = tokens.permute(2, 0, 3, 1, 4)
    attended = attend(q, k, v, rows, columns)
    joined = join_windows(attended.transpose(1, 2).flatten(2).unflatten(1, side), grid)
    return torch.unflatten(joined, -1, tuple(qkv.shape[4:]))
