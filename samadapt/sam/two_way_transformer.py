"""The two-way transformer of SAM's mask decoder (Kirillov et al. 2023, appendix A, figure 14).

Tokens (the decoder's own and the prompts) and image attend to each other. This is the textbook
form; the model uses ``two_way_transformer_fast``, which the tests compare with it.

Tokens are (b, p, n, c): n tokens for each of p objects in each of b images. The image is
(b, 1 or p, g * g, c): before anything of an object has entered it, one copy serves all p objects.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from samadapt.sam.layers import MLPBlock


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the width of its inputs.

    Args:
        width: channels c of the inputs and of the output.
        heads: attention heads; must divide the inner width.
        downsample: ``width`` over the inner width.
    """

    def __init__(self, width: int, heads: int, downsample: int = 1) -> None:
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

    def forward(
        self,
        q: Float[Tensor, " b #p n c"],
        k: Float[Tensor, " b #p m c"],
        v: Float[Tensor, " b #p m c"],
    ) -> Float[Tensor, " b #p n c"]:
        """Attend with q (b, p, n, c) over k and v (b, p, m, c); p may be 1 on either side."""
        queries, keys = self.split(self.q_proj(q)), self.split(self.k_proj(k))
        values = self.split(self.v_proj(v))
        scores = (queries * self.scale) @ keys.transpose(-2, -1)  # (b, p, heads, n, m)
        return self.join(scores.softmax(dim=-1) @ values)

    def split(self, x: Tensor) -> Tensor:
        """Give each head its channels: (..., n, heads * d) -> (..., heads, n, d)."""
        return torch.unflatten(x, -1, (self.num_heads, -1)).transpose(-3, -2)

    def join(self, attended: Tensor) -> Tensor:
        """Undo ``split`` and project: (..., heads, n, d) -> (..., n, c)."""
        out: Tensor = self.out_proj(attended.transpose(-3, -2).flatten(-2))
        return out


class TwoWayAttentionBlock(nn.Module):
    """One layer: self-attention of the tokens, tokens to image, MLP, image to tokens.

    Args:
        width: channels c.
        heads: attention heads.
        mlp: hidden width of the MLP.
        first: whether this is the first layer, whose self-attention has no position and no
            residual.
    """

    token_to_image_class: ClassVar[type[Attention]] = Attention
    image_to_token_class: ClassVar[type[Attention]] = Attention

    def __init__(self, width: int, heads: int, mlp: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = self.token_to_image_class(width, heads, downsample=2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLPBlock(width, mlp, nn.ReLU)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = self.image_to_token_class(width, heads, downsample=2)

    def forward(
        self,
        tokens: Float[Tensor, "b p n c"],
        image: Float[Tensor, " b #p cells c"],
        token_position: Float[Tensor, "b p n c"],
        image_position: Float[Tensor, "cells c"],
    ) -> tuple[Float[Tensor, "b p n c"], Float[Tensor, "b p cells c"]]:
        """Update tokens (b, p, n, c) and image (b, 1 or p, g * g, c).

        Args:
            tokens: (b, p, n, c).
            image: (b, 1 or p, g * g, c).
            token_position: (b, p, n, c), added to the tokens wherever they are queries or keys.
            image_position: (g * g, c), the same for the image.

        Returns:
            tokens (b, p, n, c) and image (b, p, g * g, c).
        """
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
    """Layers of two-way attention, and a last attention of the tokens over the image.

    Args:
        depth: number of layers.
        width: channels c.
        heads: attention heads.
        mlp: hidden width of the MLPs of the layers.
    """

    block_class: ClassVar[type[TwoWayAttentionBlock]] = TwoWayAttentionBlock

    def __init__(self, depth: int, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        block = self.block_class
        self.layers = nn.ModuleList(
            block(width, heads, mlp, first=index == 0) for index in range(depth)
        )
        self.final_attn_token_to_image = block.token_to_image_class(width, heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(
        self,
        image: Float[Tensor, " b #p cells c"],
        position: Float[Tensor, "cells c"],
        tokens: Float[Tensor, "b p n c"],
    ) -> tuple[Float[Tensor, "b p n c"], Float[Tensor, "b p cells c"]]:
        """Let tokens and image attend to each other.

        Args:
            image: (b, 1 or p, g * g, c).
            position: (g * g, c), the position embedding of the image's cells.
            tokens: (b, p, n, c). They also serve as their own position embedding.

        Returns:
            tokens (b, p, n, c) and image (b, p, g * g, c).
        """
        queries = tokens
        for layer in self.layers:
            queries, image = layer(queries, image, tokens, position)
        attended = self.final_attn_token_to_image(queries + tokens, image + position, image)
        return self.norm_final_attn(queries + attended), image
