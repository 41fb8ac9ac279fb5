"""Attention across a stack of slices (``peft.depth`` above 1), for the method in ``adapter.py``."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from samadapt.errors import AdapterError


def add_across(module: Any, inputs: tuple[Tensor, ...], output: Tensor, depth: int) -> Tensor:
    """Add the ``depth`` bottleneck of attention across slices; a forward hook."""
    change: Tensor = module.depth(attend_across(module, inputs[0], depth))
    return output + change


def attend_across(attn: Any, x: Tensor, depth: int) -> Tensor:
    """Let each token attend to the tokens at its place in its stack, with the attention's weights.

    Args:
        attn: a ``RelativePositionAttention``; its positions are not used.
        x: (b, h, w, width); images ``i * depth`` to ``i * depth + depth - 1`` are stack i.
        depth: number of slices in a stack.

    Returns:
        (b, h, w, width).

    Raises:
        AdapterError: when ``depth`` does not divide b.
    """
    b, h, w, _ = x.shape
    if b % depth:
        raise AdapterError(
            f"peft.depth={depth}: a batch must consist of whole stacks of {depth} neighbouring "
            f"slices; got {b} images"
        )
    # (b, h, w, 3 width) -> (stacks, depth, h, w, 3, heads, d)
    cells = attn.qkv(x).unflatten(0, (-1, depth)).unflatten(-1, (3, attn.num_heads, -1))
    # -> three of (stacks * h * w, heads, depth, d): the sequence is the depth at one place
    q, k, v = cells.permute(4, 0, 2, 3, 5, 1, 6).flatten(1, 3).unbind(0)
    heads = functional.scaled_dot_product_attention(q, k, v)
    # -> (stacks, depth, h, w, heads, d) -> (b, h, w, width)
    joined = heads.unflatten(0, (-1, h, w)).permute(0, 4, 1, 2, 3, 5)
    out: Tensor = attn.proj(joined.flatten(-2).flatten(0, 1))
    return out
