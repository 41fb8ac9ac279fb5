"""Exact attention with decomposed relative position (Li et al. 2021, MViTv2, section 4.1).

The score of query (i, j) and key (y, x) is ``q.k / sqrt(d) + q.R_h[i - y] + q.R_w[j - x]``. Windows
are small, so their scores are held at once. A global block has (g * g)^2 scores a head: they are
made for a few query rows at a time, and made again in backward, so that only the log-sum-exp of
each row is kept.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Scores held at once by a global block. On the CPU 4 MiB in fp32, to stay in the cache (fastest of
# 2 to 64 MiB in one noisy run). Elsewhere, unmeasured, larger because each launch costs.
CHUNK_SCORES_CPU = 2**20
CHUNK_SCORES_OTHER = 2**27


def relative_tables(
    table_h: Tensor, table_w: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Spread the tables of offsets over all pairs of rows and of columns.

    Args:
        table_h: (2h - 1, d), entry ``i - y + h - 1`` for query row i and key row y.
        table_w: (2w - 1, d), likewise for columns.
        grid: (h, w) in tokens.

    Returns:
        (h, h, d) and (w, w, d), indexed [query, key].

    Raises:
        ValueError: if a table does not have the length that the grid needs.
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


def relative_scores(
    q: Tensor, table_h: Tensor, table_w: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Give the part of the scores that depends on position, per key row and per key column.

    Args:
        q: (b, heads, h * w, d), unscaled.
        table_h: (2h - 1, d).
        table_w: (2w - 1, d).
        grid: (h, w) in tokens.

    Returns:
        (b, heads, h * w, h) and (b, heads, h * w, w).
    """
    rows, columns = relative_tables(table_h, table_w, grid)
    grid_q = torch.unflatten(q, 2, grid)
    rel_h = torch.einsum("bnhwc,hkc->bnhwk", grid_q, rows).flatten(2, 3)
    rel_w = torch.einsum("bnhwc,wkc->bnhwk", grid_q, columns).flatten(2, 3)
    return rel_h, rel_w


def attend_window(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Attend with all scores held at once: for windows.

    Args:
        q: (b, heads, n, d).
        k: (b, heads, n, d).
        v: (b, heads, n, d).
        rel_h: (b, heads, n, h) with n = h * w.
        rel_w: (b, heads, n, w).

    Returns:
        (b, heads, n, d).
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    by_grid = torch.unflatten(scores, -1, (rel_h.shape[-1], rel_w.shape[-1]))
    scores = (by_grid + rel_h[..., :, None] + rel_w[..., None, :]).flatten(-2)
    out: Tensor = scores.softmax(dim=-1).to(v.dtype) @ v
    return out


def attend_global(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    *,
    chunk_scores: int | None = None,
) -> Tensor:
    """Attend over the whole image without holding all scores: same values as ``attend_window``.

    Args:
        q: (b, heads, n, d).
        k: (b, heads, n, d).
        v: (b, heads, n, d).
        rel_h: (b, heads, n, h) with n = h * w.
        rel_w: (b, heads, n, w).
        chunk_scores: scores held at once, by the device if None; at least one query row of all
            heads is.

    Returns:
        (b, heads, n, d). First derivatives only.
    """
    q, k, v, rel_h, rel_w = (t.contiguous() for t in (q, k, v, rel_h, rel_w))
    inputs = (q, k, v, rel_h, rel_w)
    if chunk_scores is None:
        chunk_scores = CHUNK_SCORES_CPU if q.device.type == "cpu" else CHUNK_SCORES_OTHER
    rows = max(1, min(q.shape[2], chunk_scores // math.prod((*q.shape[:2], k.shape[2]))))
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        out: Tensor = _RowChunkedAttention.apply(*inputs, rows)
        return out
    return _forward_chunks(q, k, v, rel_h, rel_w, rows)[0]


def _chunk_scores(q: Tensor, k: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Scores (b, heads, rows, n) of some query rows, in fp32 at least."""
    scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    by_grid = scores.view(*scores.shape[:-1], rel_h.shape[-1], rel_w.shape[-1])
    by_grid += rel_h[..., :, None]
    by_grid += rel_w[..., None, :]
    return scores


def _forward_chunks(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, rows: int
) -> tuple[Tensor, Tensor]:
    """Output (b, heads, n, d) and log-sum-exp (b, heads, n, 1) of the scores."""
    out = torch.empty_like(v)
    accumulate = torch.promote_types(q.dtype, torch.float32)
    log_sum = torch.empty((*q.shape[:3], 1), dtype=accumulate, device=q.device)
    with torch.autocast(q.device.type, enabled=False):
        for start in range(0, q.shape[2], rows):
            part = slice(start, start + rows)
            scores = _chunk_scores(q[:, :, part], k, rel_h[:, :, part], rel_w[:, :, part])
            top = scores.amax(dim=-1, keepdim=True)
            weights = scores.sub_(top).exp_()
            total = weights.sum(dim=-1, keepdim=True)
            out[:, :, part] = (weights.to(v.dtype) @ v) / total
            log_sum[:, :, part] = top + total.log()
    return out, log_sum


class _RowChunkedAttention(torch.autograd.Function):
    """Attention over chunks of query rows that recomputes its scores in backward."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        q, k, v, rel_h, rel_w, rows = inputs
        out, log_sum = _forward_chunks(q, k, v, rel_h, rel_w, rows)
        ctx.save_for_backward(q, k, v, rel_h, rel_w, out, log_sum)
        ctx.rows = rows
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rel_h, rel_w, out, log_sum = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        accumulate = log_sum.dtype
        grads = [torch.zeros_like(t, dtype=accumulate) for t in (q, k, v, rel_h, rel_w)]
        grad_q, grad_k, grad_v, grad_h, grad_w = grads
        with torch.autocast(q.device.type, enabled=False):
            delta = (grad.to(accumulate) * out.to(accumulate)).sum(dim=-1, keepdim=True)
            for start in range(0, q.shape[2], ctx.rows):
                part = slice(start, start + ctx.rows)
                q_part, grad_part = q[:, :, part], grad[:, :, part]
                scores = _chunk_scores(q_part, k, rel_h[:, :, part], rel_w[:, :, part])
                weights = scores.sub_(log_sum[:, :, part]).exp_()
                grad_v += weights.to(v.dtype).transpose(-2, -1) @ grad_part
                slope = (grad_part @ v.transpose(-2, -1)).to(accumulate)
                slope.sub_(delta[:, :, part]).mul_(weights)
                by_grid = slope.view(*slope.shape[:-1], rel_h.shape[-1], rel_w.shape[-1])
                grad_h[:, :, part] = by_grid.sum(dim=-1)
                grad_w[:, :, part] = by_grid.sum(dim=-2)
                low = slope.to(q.dtype)
                grad_q[:, :, part] = (low @ k) * scale
                grad_k += (low.transpose(-2, -1) @ q_part) * scale
        sources = (q, k, v, rel_h, rel_w)
        return (*(g.to(t.dtype) for g, t in zip(grads, sources, strict=True)), None)


class RelativePositionAttention(nn.Module):
    """Multi-head self-attention over an (h, w) grid of tokens, with relative position.

    Args:
        width: channels of the tokens.
        heads: attention heads; must divide ``width``.
        grid: (h, w) in tokens that the position tables are made for.
        kind_global: attend in chunks of query rows; the values are the same.
    """

    def __init__(self, width: int, heads: int, grid: tuple[int, int], *, kind_global: bool) -> None:
        """Make the layers."""
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide the width {width}; got {heads}")
        self.num_heads = heads
        self.attend = attend_global if kind_global else attend_window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid[0] - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid[1] - 1, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each of the b grids of x (b, h, w, width)."""
        b, h, w, _ = x.shape
        qkv: Tensor = self.qkv(x)
        q, k, v = qkv.reshape(b, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        rel_h, rel_w = relative_scores(q, self.rel_pos_h, self.rel_pos_w, (h, w))
        heads = self.attend(q, k, v, rel_h, rel_w)
        out: Tensor = self.proj(heads.transpose(1, 2).reshape(b, h, w, -1))
        return out
