"""The two-way transformer of SAM's decoder: tokens and image attend to each other.

Tokens are (b, p, n, c) and the image is (b, 1 or p, g * g, c): as long as nothing of a prompt has
entered the image (before the end of the first layer, without mask prompts) it is one for all p
objects, and its projections are computed once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samadapt.sam.layers import MLPBlock


class Attention(nn.Module):
    """Multi-head attention of q over k and v, at a fraction of the width.

    Args:
        width: channels of all inputs and of the output.
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
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with q (b, p, n, c) over k and v (b, p, m, c); an axis p of 1 is broadcast."""
        queries, keys, values = (
            torch.unflatten(projection(x), -1, (self.num_heads, -1)).transpose(-3, -2)
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        scores = (queries @ keys.transpose(-2, -1)) * queries.shape[-1] ** -0.5
        attended = scores.softmax(dim=-1).to(values.dtype) @ values
        out: Tensor = self.out_proj(attended.transpose(-3, -2).flatten(-2))
        return out


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
        self.cross_attn_token_to_image = Attention(width, heads, downsample=2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLPBlock(width, mlp, nn.ReLU)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, heads, downsample=2)

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
        placed_image = image + image_position
        tokens = tokens + self.cross_attn_token_to_image(
            tokens + token_position, placed_image, image
        )
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(
            placed_image, tokens + token_position, tokens
        )
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
        self.final_attn_token_to_image = Attention(width, heads, downsample=2)
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
