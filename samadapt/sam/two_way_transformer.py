"""The two-way transformer of SAM's decoder: tokens and image attend to each other.

Tokens are (b, p, n, c) and the image is (b, 1 or p, g * g, c): as long as nothing of a prompt has
entered the image (before the end of the first layer, without mask prompts) it is one for all p
objects, and all their tokens attend to it at once.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from samadapt.sam.layers import MLPBlock, is_traced


class Attention(nn.Module):
    """Multi-head self-attention, and what the attention between tokens and image shares.

    Args:
        width: channels c of all inputs and of the output.
        heads: attention heads; must divide the inner width.
        downsample: ``width`` over the inner width.
    """

    def __init__(self, width: int, heads: int, downsample: int = 1) -> None:
        """Make the layers."""
        super().__init__()
        inner = width // downsample
        if inner % heads:
            raise ValueError(f"heads must divide the inner width {inner}; got {heads}")
        self.num_heads = heads
        self.scale = (inner // heads) ** -0.5
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with q (b, p, n, c) over k and v (b, p, m, c)."""
        queries, keys, values = self.split(self.q_proj(q)), self.k_proj(k), self.v_proj(v)
        scores = (queries * self.scale) @ self.split(keys).transpose(-2, -1)
        return self.join(scores.softmax(dim=-1) @ self.split(values))

    def split(self, x: Tensor) -> Tensor:
        """Give each head its channels: (..., n, h * d) -> (..., h, n, d)."""
        return torch.unflatten(x, -1, (self.num_heads, -1)).transpose(-3, -2)

    def join(self, attended: Tensor) -> Tensor:
        """Undo ``split`` and project: (..., h, n, d) -> (..., n, c)."""
        out: Tensor = self.out_proj(attended.transpose(-3, -2).flatten(-2))
        return out

    def scores(self, tokens: Tensor, linear: nn.Module, image: Tensor) -> Tensor:
        """Multiply projected tokens (b, p, h, t, d) by ``linear(image)``: (b, p, h, t, n).

        Args:
            tokens: queries or keys of the tokens.
            linear: ``k_proj`` or ``q_proj``.
            image: (b, p, n, c), with its position.
        """
        if not (is_few(tokens) and only_applies_weights(linear)):
            return tokens @ self.split(linear(image)).transpose(-2, -1)
        weight, bias = self.rows(linear.weight), self.rows(linear.bias)
        mixed = torch.einsum("bphtd,hdc->bphtc", tokens, weight).flatten(2, 3)
        scores = torch.unflatten(mixed @ image.transpose(-2, -1), 2, tokens.shape[2:4])
        return scores.add_(torch.einsum("bphtd,hd->bpht", tokens, bias)[..., None])

    def rows(self, parameter: Tensor) -> Tensor:
        """Split a projection's weight or bias by head: (h * d, ...) -> (h, d, ...)."""
        return torch.unflatten(parameter, 0, (self.num_heads, -1))


class TokenToImage(Attention):
    """Attention of the tokens over the image."""

    def forward(self, tokens: Tensor, placed: Tensor, image: Tensor) -> Tensor:
        """Attend with tokens (b, p, t, c) over the image (b, 1 or p, n, c).

        Args:
            tokens: with their position.
            placed: the image with its position.
            image: without.
        """
        queries = self.split(self.q_proj(fold(tokens, image))) * self.scale
        weights = self.scores(queries, self.k_proj, placed).softmax(dim=-1)
        if is_few(queries) and only_applies_weights(self.v_proj):
            mixed = torch.unflatten(weights.flatten(2, 3) @ image, 2, weights.shape[2:4])
            attended = torch.einsum("bphtc,hdc->bphtd", mixed, self.rows(self.v_proj.weight))
            attended = attended + self.rows(self.v_proj.bias.to(attended.dtype))[:, None]
        else:
            attended = weights @ self.split(self.v_proj(image))
        return self.join(attended).reshape(tokens.shape)


class ImageToToken(Attention):
    """Attention of the image over the tokens."""

    def forward(self, placed: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with the image (b, 1 or p, n, c) over k and v (b, p, t, c)."""
        keys = self.split(self.k_proj(fold(k, placed))) * self.scale
        values = self.split(self.v_proj(v))
        scores = self.scores(keys, self.q_proj, placed)
        if scores.shape[1] != v.shape[1]:
            scores = torch.unflatten(scores[:, 0], 2, v.shape[1:3]).transpose(1, 2)
        weights = scores.softmax(dim=-2)
        if not (is_few(values) and only_applies_weights(self.out_proj)):
            return self.join(weights.transpose(-2, -1) @ values)
        columns = torch.unflatten(self.out_proj.weight, 1, (self.num_heads, -1))
        mixed = torch.einsum("bphtd,chd->bphtc", values, columns)
        bias = self.out_proj.bias.to(mixed.dtype)
        mixed = mixed + bias / self.num_heads  # a head's weights sum to one
        return weights.flatten(2, 3).transpose(-2, -1) @ mixed.flatten(2, 3)


def fold(tokens: Tensor, image: Tensor) -> Tensor:
    """Put the tokens (b, p, t, c) of all objects together if the image (b, 1 or p, n, c) is one."""
    return tokens.flatten(1, 2)[:, None] if image.shape[1] == 1 else tokens


def is_few(tokens: Tensor) -> bool:
    """Tell whether tokens (..., t, d) of a head are fewer than its channels.

    Then the image is multiplied by what the tokens make of the weights, t * h columns, and not by
    the weights, d * h columns: (image @ weight) @ tokens = image @ (weight @ tokens). A traced
    graph, whose t may change, multiplies by the weights.
    """
    return not is_traced(tokens) and tokens.shape[-2] < tokens.shape[-1]


def only_applies_weights(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Tell whether a linear layer does no more than apply its weights: no LoRA, no hook."""
    hooks = (
        linear._forward_pre_hooks,
        linear._forward_hooks,
        linear._backward_pre_hooks,
        linear._backward_hooks,
    )
    return type(linear) is nn.Linear and not any(hooks)


class TwoWayAttentionBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, MLP of the tokens, image to tokens.

    Args:
        width: channels c.
        heads: attention heads.
        mlp: hidden width of the MLP.
        first: the first layer, whose self-attention has no position and no residual.
    """

    def __init__(self, width: int, heads: int, mlp: int, *, first: bool) -> None:
        """Make the layers."""
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = TokenToImage(width, heads, downsample=2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLPBlock(width, mlp, nn.ReLU)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = ImageToToken(width, heads, downsample=2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_position: Tensor, image_position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Update tokens (b, p, n, c) and image (b, 1 or p, g * g, c)."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_position
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        placed = image + image_position
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_position, placed, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(placed, tokens + token_position, tokens)
        return tokens, self.norm4(image)


class TwoWayTransformer(nn.Module):
    """Layers of two-way attention and a last attention of the tokens over the image.

    Args:
        depth: number of layers.
        width: channels c.
        heads: attention heads.
        mlp: hidden width of the layers' MLPs.
    """

    def __init__(self, depth: int, width: int, heads: int, mlp: int) -> None:
        """Make the layers."""
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(width, heads, mlp, first=index == 0) for index in range(depth)
        )
        self.final_attn_token_to_image = TokenToImage(width, heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, image: Tensor, position: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Let tokens and image attend to each other.

        Args:
            image: (b, 1 or p, g * g, c).
            position: (g * g, c), of the image's cells.
            tokens: (b, p, n, c); they are their own position as well.

        Returns:
            tokens (b, p, n, c) and image (b, p, g * g, c).
        """
        queries = tokens
        for layer in self.layers:
            queries, image = layer(queries, image, tokens, position)
        attended = self.final_attn_token_to_image(queries + tokens, image + position, image)
        return self.norm_final_attn(queries + attended), image
