"""Exact attention with relative position that never stores all scores.

A tile is one window of one image, or the whole grid of an image. The scores of some heads and some
query rows of a tile are computed in one buffer that stays in the cache, used, and overwritten. The
backward pass computes them again. Windows are cut and joined without a copy of the whole image, and
padded tokens are never projected: they all have the same query, key and value (``fill``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from samadapt.sam.attention.position import by_column, by_row, relative_scores

# How many scores are held at once. On the CPU each thread computes heads of its own, and 2**20
# scores a thread take 4 MiB in fp32, which stay in the cache. On other devices the number is
# larger, because each kernel launch costs time; it was not measured.
CHUNK_SCORES_PER_THREAD = 2**20
CHUNK_SCORES_OTHER = 2**27


class _GridTile(NamedTuple):
    """One window of one image: the part of the grid that it covers."""

    image: int
    rows: slice
    columns: slice

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the tokens that lie within the grid; less than the tile's at an edge."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def attend_tiled(
    qkv: Float[Tensor, "b h w 3 heads d"],
    fill: Float[Tensor, "3 heads d"] | None,
    rows: Float[Tensor, "th th d"],
    columns: Float[Tensor, "tw tw d"],
    *,
    chunk_scores: int | None = None,
) -> Float[Tensor, "b h w heads d"]:
    """Attend within each tile of a grid of tokens; see ``dispatch.Backend``.

    Args:
        qkv: (b, h, w, 3, heads, d), query, key and value of each token.
        fill: (3, heads, d), the same of a padded token; None where tiles divide the grid.
        rows: (th, th, d), the vector of each pair of rows [query, key]; th is a tile's height.
        columns: (tw, tw, d), the same for columns.
        chunk_scores: how many scores are held at once, at least one row of one head; None takes
            the default of the device.

    Returns:
        (b, h, w, heads, d). Only first derivatives are supported.
    """
    if chunk_scores is None:
        chunk_scores = default_chunk(qkv)
    inputs = (qkv, fill, rows, columns)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        out: Tensor = _GridTiledAttention.apply(*inputs, chunk_scores)
        return out
    return _forward(*inputs, chunk_scores)


def default_chunk(qkv: Tensor) -> int:
    """Return how many scores are held at once on the device of qkv."""
    per_thread = CHUNK_SCORES_PER_THREAD * torch.get_num_threads()
    return per_thread if qkv.device.type == "cpu" else CHUNK_SCORES_OTHER


def tile_count(qkv: Tensor, side: tuple[int, int]) -> int:
    """Return how many tiles of ``side`` the images of qkv (b, h, w, ...) have."""
    b, h, w = qkv.shape[:3]
    return b * -(-h // side[0]) * -(-w // side[1])


def _tiles(qkv: Tensor, side: tuple[int, int]) -> Iterator[_GridTile]:
    b, h, w = qkv.shape[:3]
    for image in range(b):
        for y in range(0, h, side[0]):
            for x in range(0, w, side[1]):
                bottom, right = min(y + side[0], h), min(x + side[1], w)
                yield _GridTile(image, slice(y, bottom), slice(x, right))


def _take(grid: Tensor, tile: _GridTile, side: tuple[int, int], fill: Tensor | None) -> Tensor:
    """Return the tokens of a tile of a grid (b, h, w, ...): (th * tw, ...), padded by ``fill``."""
    cells = grid[tile.image, tile.rows, tile.columns]
    if tile.size != side:
        padded = grid.new_empty(*side, *grid.shape[3:])
        padded[:] = 0 if fill is None else fill
        padded[: tile.size[0], : tile.size[1]] = cells
        cells = padded
    return cells.flatten(0, 1)


def _by_head(cells: Tensor) -> tuple[Tensor, ...]:
    """Return q, k and v of tokens (n, 3, heads, d), each (heads, n, d) and contiguous."""
    return tuple(t.transpose(0, 1).contiguous() for t in cells.unbind(1))


def _put(grid: Tensor, tile: _GridTile, cells: Tensor, width: int) -> None:
    """Write the tokens (n, ...) of a tile into the grid and drop its padding.

    ``width`` is the width of the tile.
    """
    grid[tile.image, tile.rows, tile.columns] = cells.unflatten(0, (-1, width))[
        : tile.size[0], : tile.size[1]
    ]


class _Chunks:
    """Buffers for the scores of one tile, of some heads and some query rows at a time.

    Args:
        shape: (queries, keys, heads).
        limit: how many scores a buffer holds.
        like: a tensor on the device. The buffers have its type, or fp32 where that is wider.
        buffers: how many buffers there are.
    """

    def __init__(self, shape: tuple[int, int, int], limit: int, like: Tensor, buffers: int) -> None:
        queries, keys, heads = shape
        self.keys, self.all_heads = keys, heads
        # As many heads as fit with all their queries, but at least one for each thread; then as
        # many query rows as fit.
        self.heads = min(heads, max(torch.get_num_threads(), limit // (queries * keys)))
        self.rows = max(1, min(queries, limit // (self.heads * keys)))
        wide = torch.promote_types(like.dtype, torch.float32)
        size = self.heads * self.rows * keys
        self.buffers = [torch.empty(size, dtype=wide, device=like.device) for _ in range(buffers)]

    def __call__(self, queries: int) -> Iterator[tuple[slice, slice]]:
        """Yield the slices (heads, query rows) of every chunk."""
        for head in range(0, self.all_heads, self.heads):
            for row in range(0, queries, self.rows):
                heads = slice(head, min(head + self.heads, self.all_heads))
                yield heads, slice(row, min(row + self.rows, queries))

    def buffer(self, index: int, heads: slice, rows: slice) -> Tensor:
        """Return a buffer of the size of a chunk: (heads, rows, keys)."""
        shape = (heads.stop - heads.start, rows.stop - rows.start, self.keys)
        return self.buffers[index][: shape[0] * shape[1] * shape[2]].view(shape)


def _probabilities(q: Tensor, k: Tensor, rel_h: Tensor, rel_w: Tensor, out: Tensor) -> Tensor:
    """Write the attention weights of r queries over n keys to ``out``.

    Args:
        q: (heads, r, d).
        k: (heads, n, d).
        rel_h: (heads, r, h) with n = h * w.
        rel_w: (heads, r, w).
        out: (heads, r, n), in fp32 or wider.

    Returns:
        ``out``.
    """
    by_grid = out.view(*out.shape[:2], rel_h.shape[-1], rel_w.shape[-1])
    torch.add(rel_h[..., :, None], rel_w[..., None, :], out=by_grid)
    _product(q, k.transpose(1, 2), out, 1, q.shape[-1] ** -0.5)
    return torch.softmax(out, dim=-1, out=out)


def _forward(
    qkv: Tensor, fill: Tensor | None, rows: Tensor, columns: Tensor, chunk_scores: int
) -> Tensor:
    side = (len(rows), len(columns))
    n, heads = side[0] * side[1], qkv.shape[4]
    out = qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])
    attended = qkv.new_empty(heads, n, qkv.shape[5])
    chunks = _Chunks((n, n, heads), chunk_scores, qkv, buffers=1)
    with torch.autocast(qkv.device.type, enabled=False):
        for tile in _tiles(qkv, side):
            q, k, v = _by_head(_take(qkv, tile, side, fill))
            queries = tile.size[0] * side[1]
            rel_h, rel_w = relative_scores(q[:, :queries].transpose(0, 1), rows, columns)
            for part, some in chunks(queries):
                p = _probabilities(
                    q[part, some],
                    k[part],
                    rel_h[some, part].transpose(0, 1),
                    rel_w[some, part].transpose(0, 1),
                    chunks.buffer(0, part, some),
                )
                attended[part, some] = torch.bmm(p.to(v.dtype), v[part])
            _put(out, tile, attended[:, :queries].transpose(0, 1), side[1])
    return out


class _GridTiledAttention(torch.autograd.Function):
    """Keeps only the inputs and the output for backward, which computes the scores again."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        qkv, fill, rows, columns, chunk_scores = inputs
        out = _forward(qkv, fill, rows, columns, chunk_scores)
        ctx.save_for_backward(qkv, fill, rows, columns, out)
        ctx.chunk_scores = chunk_scores
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, fill, rows, columns, out = ctx.saved_tensors
        needs, chunk_scores = ctx.needs_input_grad, ctx.chunk_scores
        return *backward_tiles(qkv, fill, rows, columns, out, grad, needs, chunk_scores), None


def backward_tiles(
    qkv: Tensor,
    fill: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    out: Tensor,
    grad: Tensor,
    needs: Sequence[bool],
    chunk_scores: int,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the first four inputs of ``attend_tiled``.

    Args:
        qkv: (b, h, w, 3, heads, d).
        fill: (3, heads, d), or None.
        rows: (th, th, d).
        columns: (tw, tw, d).
        out: (b, h, w, heads, d), what ``attend_tiled`` returned for them.
        grad: (b, h, w, heads, d), the gradient of ``out``.
        needs: for each of the four whether its gradient is wanted; that of qkv is always computed.
        chunk_scores: how many scores are held at once.

    Returns:
        One gradient for each of the four, None where it is not wanted.
    """
    side = (len(rows), len(columns))
    n, heads = side[0] * side[1], qkv.shape[4]
    wide = torch.promote_types(qkv.dtype, torch.float32)
    grad_qkv = torch.empty_like(qkv)
    grad_fill = torch.zeros_like(fill, dtype=wide) if fill is not None and needs[1] else None
    grad_rows = torch.zeros_like(rows, dtype=wide) if needs[2] else None
    grad_columns = torch.zeros_like(columns, dtype=wide) if needs[3] else None
    chunks = _Chunks((n, n, heads), chunk_scores, qkv, buffers=2)
    with torch.autocast(qkv.device.type, enabled=False):
        # The gradient of a softmax needs sum_k(p_k * dp_k), which equals out . grad.
        delta = (grad.to(wide) * out).sum(dim=-1)
        for tile in _tiles(qkv, side):
            queries = tile.size[0] * side[1]
            cells = _take(qkv, tile, side, fill)
            grad_out = _take(grad, tile, side, None)[:queries]
            deltas = _take(delta, tile, side, None)[:queries]
            grad_cells, slopes = _backward_tile(cells, grad_out, deltas, rows, columns, chunks)
            _put(grad_qkv, tile, grad_cells, side[1])
            q = cells[:queries, 0].to(wide)
            if grad_rows is not None:
                h = tile.size[0]
                grad_rows[:h] += by_row(slopes[0], h).transpose(1, 2) @ by_row(q, h)
            if grad_columns is not None:
                w = side[1]
                grad_columns += by_column(slopes[1], w).transpose(1, 2) @ by_column(q, w)
            if grad_fill is not None:
                # What the tokens within the grid do not account for belongs to the padding.
                inside = grad_cells.unflatten(0, side)[: tile.size[0], : tile.size[1]]
                grad_fill += grad_cells.sum(0) - inside.sum((0, 1))
    others = zip((grad_fill, grad_rows, grad_columns), (fill, rows, columns), strict=True)
    return (grad_qkv, *(None if g is None or t is None else g.to(t.dtype) for g, t in others))


def _backward_tile(
    cells: Tensor, grad: Tensor, delta: Tensor, rows: Tensor, columns: Tensor, chunks: _Chunks
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the gradients of a tile's tokens and of its positional scores.

    With p the attention weights and g the gradient of the output, in each head:
    dv = p^T g; dp = g v^T; ds = p * (dp - delta); dq = ds k / sqrt(d); dk = ds^T q / sqrt(d).

    Args:
        cells: (n, 3, heads, d).
        grad: (r, heads, d), the gradient of the first r outputs. The others are padding and have
            none.
        delta: (r, heads), the dot product of each output with its gradient.
        rows: (th, th, d).
        columns: (tw, tw, d).
        chunks: two buffers.

    Returns:
        (n, 3, heads, d) and the sums of ds by key row (r, heads, th) and by key column
        (r, heads, tw), in fp32 or wider.
    """
    scale, wide = cells.shape[-1] ** -0.5, delta.dtype
    q, k, v = _by_head(cells)
    queries, (h, w) = len(grad), (len(rows), len(columns))
    rel_h, rel_w = relative_scores(q[:, :queries].transpose(0, 1), rows, columns)
    slope_h, slope_w = torch.empty_like(rel_h), torch.empty_like(rel_w)
    grads = torch.zeros(3, *q.shape, dtype=wide, device=q.device)
    grad_q, grad_k, grad_v = grads
    grad, delta = grad.transpose(0, 1).contiguous(), delta.t()[..., None]
    for part, some in chunks(queries):
        p = _probabilities(
            q[part, some],
            k[part],
            rel_h[some, part].transpose(0, 1),
            rel_w[some, part].transpose(0, 1),
            chunks.buffer(0, part, some),
        )
        g, slope = grad[part, some], chunks.buffer(1, part, some)
        _product(p.to(g.dtype).transpose(1, 2), g, grad_v[part], 1, 1)
        _product(g, v[part].transpose(1, 2), slope, 0, 1)
        slope.sub_(delta[part, some]).mul_(p)
        by_grid = slope.unflatten(-1, (h, w))
        slope_h[some, part] = by_grid.sum(dim=-1).transpose(0, 1)
        slope_w[some, part] = by_grid.sum(dim=-2).transpose(0, 1)
        low = slope.to(q.dtype)
        _product(low, k[part], grad_q[part, some], 0, scale)
        _product(low.transpose(1, 2), q[part, some], grad_k[part], 1, scale)
    # The queries also enter the positional scores.
    through_h = by_row(slope_h, queries // w) @ rows[: queries // w].to(wide)
    through_w = by_column(slope_w, w) @ columns.to(wide)
    grad_q[:, :queries] += through_h.view(queries, -1, q.shape[-1]).transpose(0, 1)
    from_columns = through_w.view(w, queries // w, -1, q.shape[-1]).transpose(0, 1)
    grad_q[:, :queries] += from_columns.flatten(0, 1).transpose(0, 1)
    return grads.permute(2, 0, 1, 3), (slope_h, slope_w)


def _product(a: Tensor, b: Tensor, out: Tensor, keep: int, scale: float) -> None:
    """Set ``out`` to ``keep * out + scale * (a @ b)``; ``out`` may be of a wider type.

    ``keep`` is 1 or 0. With 0, ``out`` may hold any values before, even NaN.
    """
    if a.dtype == out.dtype:
        out.baddbmm_(a, b, beta=keep, alpha=scale)
    elif keep:
        out.add_(torch.bmm(a, b), alpha=scale)
    else:
        out.copy_(torch.bmm(a, b)).mul_(scale)
