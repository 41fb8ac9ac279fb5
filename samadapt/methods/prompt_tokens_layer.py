"""The module of the learned tokens and its hooks, the formula of ``prompt_tokens.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.hiera_blocks import pool_tokens
from samadapt.sam.tiny_vit_blocks import WindowBiasAttention


class GatedTokens(nn.Module):
    """Attention to learned tokens, added to the output of an attention; zero at the start.

    Args:
        count: number n of tokens.
        width: channels of the tokens that the attention takes.
        heads: number h of attention heads.
        by_head: the rows of qkv are ordered (head, q | k | v, channel), else (q | k | v, head,
            channel).
    """

    def __init__(self, count: int, width: int, heads: int, *, by_head: bool) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(count, width))
        self.gate = nn.Parameter(torch.zeros(heads))
        self._by_head = by_head

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        proj: Tensor,
        pool: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return what the tokens add to the output of the attention, after its projection.

        The queries are not computed, unless they are pooled. ``q K'`` is one linear map of x with
        h * n rows, and ``V'`` followed by the projection is one linear map back, so the cost grows
        with n and not with the inner width.

        Args:
            x: (..., width), the input of the queries.
            weight: (3 inner, width), weight of q, k and v; the inner width is h * d.
            bias: (3 inner,), their bias.
            proj: (width, inner), weight of the last projection of the attention.
            pool: what the attention does to its queries (b, h, w, inner); None: nothing.
        """
        heads = len(self.gate)
        weight_q, _, _ = self._split(weight, heads)
        bias_q, _, _ = self._split(bias, heads)
        # (n, 3 inner): the tokens' own queries are not used.
        rows = functional.linear(self.tokens, weight, bias)
        _, keys, values = self._split(rows.t(), heads)  # (h, d, n)
        scale = keys.shape[1] ** -0.5
        if pool is None:
            # q K' = (W_q x + b_q) K' = (K'^T W_q) x + K'^T b_q, for each head
            to_scores = scale * torch.einsum("hdn,hdw->hnw", keys, weight_q)
            offset = scale * torch.einsum("hdn,hd->hn", keys, bias_q)
            scores = functional.linear(x, to_scores.flatten(0, 1), offset.flatten())
        else:
            queries = pool(functional.linear(x, weight_q.flatten(0, 1), bias_q.flatten()))
            pairs = scale * queries.unflatten(-1, (heads, 1, -1)) @ keys  # (..., h, 1, n)
            scores = pairs.flatten(-3)
        # (..., h, n): each head's softmax over the n tokens, times its gate
        shares = scores.unflatten(-1, (heads, -1)).softmax(dim=-1) * self.gate.tanh()[:, None]
        # (W_o V') of each head, as one (width, n) map
        out_weight = proj.unflatten(1, (heads, -1))
        to_output = torch.einsum("whd,hdn->whn", out_weight, values)
        return functional.linear(shares.flatten(-2), to_output.flatten(1))

    def _split(self, rows: Tensor, heads: int) -> tuple[Tensor, ...]:
        """Split the rows (3 inner, ...) of qkv into q, k and v, each (h, d, ...)."""
        if self._by_head:
            q, k, v = torch.unflatten(rows, 0, (heads, 3, -1)).unbind(1)
        else:
            q, k, v = torch.unflatten(rows, 0, (3, heads, -1)).unbind(0)
        return q, k, v


def add_prompt(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Add the prompt's output to that of the encoder's attention; a forward hook."""
    # In TinyViT the norm is part of the attention; in SAM's ViT and in Hiera it comes before.
    x = module.norm(inputs[0]) if isinstance(module, WindowBiasAttention) else inputs[0]
    pool = pool_tokens if getattr(module, "is_pooling", False) else None
    qkv = module.qkv
    change: Tensor = module.prompt(x, qkv.weight, qkv.bias, module.proj.weight, pool)
    return output + change.to(output.dtype)


def add_prompt_to_decoder(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Add the prompt's output to that of a decoder's attention, where q, k, v are three linears."""
    # The attention's inputs are (q, k, v). The learned tokens answer to the queries.
    linears = (module.q_proj, module.k_proj, module.v_proj)
    weight = torch.cat([linear.weight for linear in linears])
    bias = torch.cat([linear.bias for linear in linears])
    change: Tensor = module.prompt(inputs[0], weight, bias, module.out_proj.weight)
    return output + change.to(output.dtype)
