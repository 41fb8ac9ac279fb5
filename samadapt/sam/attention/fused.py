"""Attention by PyTorch's fused kernel, all windows at once.

The positional scores are its additive mask, so that a graph (ONNX, ``torch.compile``) holds one
attention operator. The mask has the size of all scores.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from samadapt.sam.attention.position import relative_scores
from samadapt.sam.attention.windows import join_windows, window_tokens


def attend_fused(
    qkv: Float[Tensor, "b h w 3 heads d"],
    fill: Float[Tensor, "3 heads d"] | None,
    rows: Float[Tensor, "th th d"],
    columns: Float[Tensor, "tw tw d"],
) -> Float[Tensor, "b h w heads d"]:
    """Attend within windows; arguments and result are those of ``dispatch.Backend``."""
    _, h, w, _, heads, d = qkv.shape
    side = (len(rows), len(columns))
    q, k, v = window_tokens(qkv, fill, side)
    rel_h, rel_w = relative_scores(q, rows, columns)
    # (windows, n, heads, y, x) -> (windows, heads, n, n)
    mask = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(-2).transpose(1, 2)
    out = functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask.to(q.dtype)
    )
    windows = out.transpose(1, 2).reshape(-1, *side, heads * d)
    return torch.unflatten(join_windows(windows, (h, w)), -1, (heads, d))
