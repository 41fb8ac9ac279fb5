"""The module of the prompt tokens; imports torch, so ``prompt_tokens`` imports it late."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.tiny_vit_blocks import WindowBiasAttention


class GatedTokens(nn.Module):
    """Attention to learned tokens, added to an attention's output; nothing at the start.

    Args:
        count: n, of tokens.
        width: of the stream.
        heads: h, of the attention.
        by_head: the rows of qkv are ordered (head, q | k | v, channel).
    """

    def __init__(self, count: int, width: int, heads: int, *, by_head: bool) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(count, width))
        self.gate = nn.Parameter(torch.zeros(heads))
        self._by_head = by_head

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor, proj: Tensor) -> Tensor:
        """Give what the tokens add to the attention's output, behind its projection.

        ``q K'`` and ``V'`` with the projection are each one product of a cell with (h * n) rows, so
        no query is made anew.

        Args:
            x: (..., width), the input of the queries.
            weight: (3 inner, width) of q, k and v; the inner width is h * d.
            bias: (3 inner,) likewise.
            proj: (width, inner), weight of the attention's last projection.
        """
        heads = len(self.gate)
        weight_q, _, _ = self._split(weight, heads)
        bias_q, _, _ = self._split(bias, heads)
        rows = functional.linear(self.tokens, weight, bias)
        _, keys, values = self._split(rows.t(), heads)  # (h, d, n)
        scale = keys.shape[1] ** -0.5
        to_scores = scale * torch.einsum("hdn,hdw->hnw", keys, weight_q)
        offset = scale * torch.einsum("hdn,hd->hn", keys, bias_q)
        scores = functional.linear(x, to_scores.flatten(0, 1), offset.flatten())
        shares = scores.unflatten(-1, (heads, -1)).softmax(dim=-1) * self.gate.tanh()[:, None]
        out_weight = proj.unflatten(1, (heads, -1))
        to_output = torch.einsum("whd,hdn->whn", out_weight, values)
        return functional.linear(shares.flatten(-2), to_output.flatten(1))

    def _split(self, rows: Tensor, heads: int) -> tuple[Tensor, ...]:
        """Take the rows (3 inner, ...) of qkv apart into q, k and v, each (h, d, ...)."""
        if self._by_head:
            q, k, v = torch.unflatten(rows, 0, (heads, 3, -1)).unbind(1)
        else:
            q, k, v = torch.unflatten(rows, 0, (3, heads, -1)).unbind(0)
        return q, k, v


def add_prompt(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook of the attention; TinyViT's has its norm inside."""
    x = module.norm(inputs[0]) if isinstance(module, WindowBiasAttention) else inputs[0]
    change: Tensor = module.prompt(x, module.qkv.weight, module.qkv.bias, module.proj.weight)
    return output + change.to(output.dtype)


def add_prompt_to_decoder(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook of an attention of the decoder, whose projections are linears of their own."""
    linears = (module.q_proj, module.k_proj, module.v_proj)
    weight = torch.cat([linear.weight for linear in linears])
    bias = torch.cat([linear.bias for linear in linears])
    change: Tensor = module.prompt(inputs[0], weight, bias, module.out_proj.weight)
    return output + change.to(output.dtype)
