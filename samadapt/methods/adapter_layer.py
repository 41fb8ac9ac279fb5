"""Attention across the slices of a stack; imports torch, so ``adapter`` imports it late."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from samadapt.errors import AdapterError


def add_across(module: Any, inputs: tuple[Tensor, ...], output: Tensor, depth: int) -> Tensor:
    """Forward hook of SAM's attention: add the ``depth`` bottleneck of attention across slices."""
    change: Tensor = module.depth(attend_across(module, inputs[0], depth))
    return output + change


def attend_across(attn: Any, x: Tensor, depth: int) -> Tensor:
    """Let each cell attend to those at its place in its stack, with the attention's own weights.

    Args:
        attn: a ``RelativePositionAttention``.
        x: (b, h, w, width); images ``i * depth`` to ``i * depth + depth - 1`` are stack i.
        depth: slices of a stack.

    Returns:
        (b, h, w, width).

    Raises:
        AdapterError: when ``depth`` does not divide b.
    """
    b, h, w, _ = x.shape
    if b % depth:
        raise AdapterError(
            f"peft.depth={depth}: a batch must be whole stacks of {depth} neighbouring slices, one "
            f"behind the other; got {b} images"
        )
    cells = attn.qkv(x).unflatten(0, (-1, depth)).unflatten(-1, (3, attn.num_heads, -1))
    q, k, v = cells.permute(4, 0, 2, 3, 5, 1, 6).flatten(1, 3).unbind(0)  # (cells, heads, depth, d)
    heads = functional.scaled_dot_product_attention(q, k, v)
    joined = heads.unflatten(0, (-1, h, w)).permute(0, 4, 1, 2, 3, 5)
    out: Tensor = attn.proj(joined.flatten(-2).flatten(0, 1))
    return out
