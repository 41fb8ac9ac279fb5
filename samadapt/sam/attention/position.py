"""Decomposed relative position (Li et al. 2021, MViTv2, section 4.1).

The score of query (i, j) and key (y, x) gets ``q . R_h[i - y] + q . R_w[j - x]``: one learned
vector for each vertical and one for each horizontal distance, instead of one for each pair.
"""

from __future__ import annotations

import torch
from torch import Tensor


def relative_tables(
    table_h: Tensor, table_w: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Look up the vector of every pair of rows and of every pair of columns.

    Args:
        table_h: (2h - 1, d). Entry ``i - y + h - 1`` belongs to query row i and key row y.
        table_w: (2w - 1, d), the same for columns.
        grid: (h, w) in tokens.

    Returns:
        (h, h, d) and (w, w, d), indexed [query, key].

    Raises:
        ValueError: a table does not have the length that the grid needs.
    """
    pairs = []
    for table, side in zip((table_h, table_w), grid, strict=True):
        if table.shape[0] != 2 * side - 1:
            raise ValueError(
                f"a relative position table for {side} tokens needs {2 * side - 1} rows; "
                f"got {table.shape[0]}: build the model for this image size"
            )
        place = torch.arange(side, device=table.device)
        pairs.append(table[place[:, None] - place[None, :] + side - 1])
    return pairs[0], pairs[1]


def relative_scores(q: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positional part of the scores, by key row and by key column.

    Two matrix products give it: one over all queries of a row, one over all queries of a column.

    Args:
        q: (..., h * w, heads, d), not scaled. h may be less than the height of a tile.
        rows: (th, th, d), the vector of each pair of rows [query, key].
        columns: (w, w, d), the same for columns.

    Returns:
        (..., h * w, heads, th) and (..., h * w, heads, w), in float32 or wider.
    """
    w = len(columns)
    h = q.shape[-3] // w
    wide = torch.promote_types(q.dtype, torch.float32)
    rel_h = by_row(q, h) @ rows[:h].transpose(1, 2)
    rel_w = by_column(q, w) @ columns.transpose(1, 2)
    split = (-1, q.shape[-2])
    rel_h = rel_h.to(wide).unflatten(-2, split).flatten(-4, -3)
    rel_w = rel_w.to(wide).unflatten(-2, split).transpose(-4, -3).flatten(-4, -3)
    return rel_h, rel_w


def by_row(x: Tensor, h: int) -> Tensor:
    """Group tokens by their row: (..., h * w, heads, d) -> (..., h, w * heads, d)."""
    return torch.unflatten(x, -3, (h, -1)).flatten(-3, -2)


def by_column(x: Tensor, w: int) -> Tensor:
    """Group tokens by their column: (..., h * w, heads, d) -> (..., w, h * heads, d)."""
    return torch.unflatten(x, -3, (-1, w)).transpose(-4, -3).flatten(-3, -2)
