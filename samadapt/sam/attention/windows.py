"""Cutting a grid of tokens into windows, and joining the windows again."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def partition_windows(
    x: Float[Tensor, "b h w c"], side: tuple[int, int], padding: Tensor | None
) -> Float[Tensor, "n height width c"]:
    """Cut x into windows; the grid is padded below and to the right where they do not divide it.

    Args:
        x: (b, h, w, c).
        side: (height, width) of a window, in tokens.
        padding: (c,), the values of a padded token; None pads with zeros.

    Returns:
        (b * windows, height, width, c). The windows of an image are in row-major order.
    """
    b, h, w, c = x.shape
    down, across = count_windows((h, w), side)
    tall, wide = down * side[0], across * side[1]
    value = x.new_zeros(c) if padding is None else padding
    if wide > w:
        x = torch.cat([x, value.expand(b, h, wide - w, c)], dim=2)
    if tall > h:
        x = torch.cat([x, value.expand(b, tall - h, wide, c)], dim=1)
    # (b, tall, wide, c) -> (b, down, height, across, width, c) -> (b * windows, height, width, c)
    x = x.view(b, down, side[0], across, side[1], c)
    return x.transpose(2, 3).reshape(-1, *side, c)


def window_tokens(
    qkv: Float[Tensor, "b h w 3 heads d"],
    fill: Float[Tensor, "3 heads d"] | None,
    side: tuple[int, int],
) -> tuple[Tensor, ...]:
    """Return q, k and v of the tokens of each window, (b * windows, height * width, heads, d) each.

    Args:
        qkv: (b, h, w, 3, heads, d), query, key and value of each token.
        fill: (3, heads, d), the same of a padded token; None where windows divide the grid.
        side: (height, width) of a window, in tokens.
    """
    padding = None if fill is None else fill.flatten()
    cells = partition_windows(qkv.flatten(3), side, padding)
    tokens: tuple[Tensor, ...] = (
        torch.unflatten(cells, -1, tuple(qkv.shape[3:])).flatten(1, 2).unbind(2)
    )
    return tokens


def join_windows(
    windows: Float[Tensor, "n height width c"], size: tuple[int, int]
) -> Float[Tensor, "b h w c"]:
    """Undo ``partition_windows`` and drop the padding.

    Args:
        windows: (b * windows, height, width, c).
        size: (h, w) of the grid before it was padded, in tokens.

    Returns:
        (b, h, w, c).
    """
    (h, w), (height, width) = size, windows.shape[1:3]
    down, across = count_windows(size, (height, width))
    # (b * windows, height, width, c) -> (b, down, height, across, width, c) -> (b, h, w, c)
    x = windows.view(-1, down, across, *windows.shape[1:]).transpose(2, 3)
    return x.reshape(x.shape[0], down * height, across * width, -1)[:, :h, :w]


def count_windows(size: tuple[int, int], side: tuple[int, int]) -> tuple[int, int]:
    """Return how many windows of ``side`` cover a grid of ``size``, down and across."""
    # Not -(-h // side): ONNX rounds the quotient of a negative number toward zero.
    return (size[0] + side[0] - 1) // side[0], (size[1] + side[1] - 1) // side[1]
