"""Self-attention over a grid of tokens with decomposed relative position.

Li et al. 2021, MViTv2, section 4.1. Three forms of the same function. On x86 processors it is
compiled code (``native_attention``), where that was built. Elsewhere on the CPU, and over the whole
image on every other device, ``tiled_attention`` holds a few scores at a time. Windows on another
device go through PyTorch's fused attention, all at once: conservative and unmeasured.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.attention.compiled import attend_native, suits
from samadapt.sam.attention.tiled import attend_tiles, relative_scores
from samadapt.sam.layers import is_traced

Form = Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]


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


def attend_windows(qkv: Tensor, fill: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
    """Attend within windows, all of them at once: same values as ``attend_tiles``.

    Args:
        qkv: (b, h, w, 3, heads, d).
        fill: (3, heads, d) of a cell beyond the edge; None where the windows divide the grid.
        rows: (window, window, d), embedding of each pair of rows [query, key].
        columns: (window, window, d), likewise of columns.

    Returns:
        (b, h, w, heads, d).
    """
    _, h, w, _, heads, d = qkv.shape
    side = (len(rows), len(columns))
    padding = None if fill is None else fill.flatten()
    cells = partition_windows(qkv.flatten(3), side, padding).unflatten(-1, (3, heads, d))
    q, k, v = cells.flatten(1, 2).unbind(2)
    rel_h, rel_w = relative_scores(q, rows, columns)
    mask = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(-2).transpose(1, 2)
    out = functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask.to(q.dtype)
    )
    windows = out.transpose(1, 2).reshape(-1, *side, heads * d)
    return torch.unflatten(join_windows(windows, (h, w)), -1, (heads, d))


def partition_windows(x: Tensor, side: tuple[int, int], padding: Tensor | None) -> Tensor:
    """Cut x (b, h, w, c) into windows, padded right and below.

    Args:
        x: (b, h, w, c).
        side: (height, width) of a window.
        padding: (c), what a padded cell holds; None: zeros.

    Returns:
        (b * windows, height, width, c), row by row of each image.
    """
    b, h, w, c = x.shape
    down, across = _windows((h, w), side)
    tall, wide = down * side[0], across * side[1]
    value = x.new_zeros(c) if padding is None else padding
    if wide > w:
        x = torch.cat([x, value.expand(b, h, wide - w, c)], dim=2)
    if tall > h:
        x = torch.cat([x, value.expand(b, tall - h, wide, c)], dim=1)
    x = x.view(b, down, side[0], across, side[1], c)
    return x.transpose(2, 3).reshape(-1, *side, c)


def join_windows(windows: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo ``partition_windows``.

    Args:
        windows: (b * windows, height, width, c).
        size: (h, w) before the padding.

    Returns:
        (b, h, w, c).
    """
    (h, w), (height, width) = size, windows.shape[1:3]
    down, across = _windows(size, (height, width))
    x = windows.view(-1, down, across, *windows.shape[1:]).transpose(2, 3)
    return x.reshape(x.shape[0], down * height, across * width, -1)[:, :h, :w]


def _windows(size: tuple[int, int], side: tuple[int, int]) -> tuple[int, int]:
    """Count windows down and across; ONNX would round a negative quotient otherwise."""
    return (size[0] + side[0] - 1) // side[0], (size[1] + side[1] - 1) // side[1]


class RelativePositionAttention(nn.Module):
    """Multi-head self-attention over a grid of tokens, whole or in windows.

    A cell beyond the edge takes part in the softmax of its window. SAM's block pads behind its
    norm, so such a cell is zero in front of ``qkv``, and one zero token gives what all of them are
    behind it.

    Args:
        width: channels of the tokens.
        heads: attention heads; must divide ``width``.
        grid: (h, w) in tokens that the position tables are made for: the window's, or the image's.
        windowed: attend within windows of that size, instead of over a grid of that size.
    """

    def __init__(self, width: int, heads: int, grid: tuple[int, int], *, windowed: bool) -> None:
        """Make the layers."""
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide the width {width}; got {heads}")
        self.num_heads = heads
        self.window = grid if windowed else None
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid[0] - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid[1] - 1, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each of the b grids of x (b, h, w, width)."""
        _, h, w, width = x.shape
        split = (3, self.num_heads, -1)
        qkv: Tensor = torch.unflatten(self.qkv(x), -1, split)
        height, across = side = self.window or (h, w)
        fill = None
        if h % height or w % across:
            fill = torch.unflatten(self.qkv(x.new_zeros(1, 1, 1, width)), -1, split)[0, 0, 0]
        tables = relative_tables(self.rel_pos_h, self.rel_pos_w, side)
        rows, columns = (table.to(qkv.dtype) for table in tables)
        heads = self._form(qkv, rows, columns)(qkv, fill, rows, columns)
        out: Tensor = self.proj(heads.flatten(-2))
        return out

    def _form(self, qkv: Tensor, *tables: Tensor) -> Form:
        """Choose the form: ``python -m benchmarks.run attention`` is why."""
        if any(map(is_traced, (qkv, *tables))):
            return attend_windows
        if suits(qkv):
            return attend_native
        return attend_tiles if self.window is None or qkv.device.type == "cpu" else attend_windows
