"""The attention of SAM 2 that conditions an image embedding on memories (Ravi et al. 2024).

Its tensors have the official state-dict names. A layer attends to the image itself and then to the
memories, which are maps of other slices and, after them, pointers to the object. Places in a map
are rotary codes (Su et al. 2021); pointers have no place.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

ROTARY_BASE = 10_000.0
DEPTH = 4
"""Layers of the attention in all sizes of SAM 2."""


def rotary_angles(side: int, width: int) -> Float[Tensor, "n half"]:
    """Return the angles by which the channels of the cells of a square grid are turned.

    Args:
        side: side of the grid.
        width: channels of a cell, a multiple of 4. Two neighbouring channels turn together.

    Returns:
        (side * side, width / 2): for each cell first the angles of its column, then of its row.
    """
    steps = torch.arange(0, width // 2, 2, dtype=torch.float32) / (width // 2)
    frequencies = ROTARY_BASE**-steps
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([columns, rows], dim=-1).flatten(0, 1)  # (n, 2)
    return (places[..., None] * frequencies).flatten(1)


def turned(x: Float[Tensor, "b m c"], angles: Float[Tensor, "n half"]) -> Float[Tensor, "b m c"]:
    """Turn pairs of channels by the angles of their cell.

    Args:
        x: (b, m, c), one or several maps of n cells, one after the other.
        angles: (n, c / 2).
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = wide.unflatten(1, (-1, len(angles))).unflatten(-1, (-1, 2))  # (b, maps, n, c / 2, 2)
    cosine, sine = angles.to(wide).cos(), angles.to(wide).sin()
    first, second = pairs.unbind(-1)
    out = torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
    return out.flatten(-2).flatten(1, 2).to(x.dtype)


class RotaryAttention(nn.Module):
    """Attention of one head whose queries and keys know their places.

    Args:
        width: channels of queries and results.
        memory_width: channels of keys and values.
    """

    def __init__(self, width: int, memory_width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(memory_width, width)
        self.v_proj = nn.Linear(memory_width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        queries: Float[Tensor, "b n c"],
        keys: Float[Tensor, "b m k"],
        values: Float[Tensor, "b m k"],
        angles: Float[Tensor, "n half"],
        placeless: int = 0,
    ) -> Float[Tensor, "b n c"]:
        """Attend from one map to maps of the same size.

        Args:
            queries: (b, n, c).
            keys: (b, m, k), maps of n cells, then tokens without a place.
            values: (b, m, k).
            angles: (n, c / 2), from ``rotary_angles``.
            placeless: number of tokens without a place.
        """
        q, k, v = self.q_proj(queries), self.k_proj(keys), self.v_proj(values)
        placed = k.shape[1] - placeless
        k = torch.cat([turned(k[:, :placed], angles), k[:, placed:]], dim=1)
        # One head: (b, 1, tokens, c).
        attended = functional.scaled_dot_product_attention(
            turned(q, angles)[:, None], k[:, None], v[:, None]
        )
        out: Tensor = self.out_proj(attended[:, 0])
        return out


class MemoryAttentionLayer(nn.Module):
    """Self-attention, attention to the memories and an MLP, each after a normalisation.

    Args:
        width: channels c of the image embedding.
        memory_width: channels k of the memories.
        hidden: hidden width of the MLP.
    """

    def __init__(self, width: int, memory_width: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = RotaryAttention(width, width)
        self.cross_attn_image = RotaryAttention(width, memory_width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        memories: Float[Tensor, "b m k"],
        codes: Float[Tensor, "b m k"],
        angles: Float[Tensor, "n half"],
        pointers: int,
    ) -> Float[Tensor, "b n c"]:
        """Transform the cells of an image; arguments are those of ``MemoryAttention``."""
        own = self.norm1(x)
        x = x + self.self_attn(own, own, own, angles)
        x = x + self.cross_attn_image(
            self.norm2(x), memories + codes, memories, angles, placeless=pointers
        )
        out: Tensor = x + self.linear2(functional.relu(self.linear1(self.norm3(x))))
        return out


class MemoryAttention(nn.Module):
    """Conditions the embedding of an image on memories; arguments are those of a layer."""

    def __init__(self, width: int, memory_width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            MemoryAttentionLayer(width, memory_width, hidden) for _ in range(DEPTH)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        memories: Float[Tensor, "b m k"],
        codes: Float[Tensor, "b m k"],
        angles: Float[Tensor, "n half"],
        pointers: int,
    ) -> Float[Tensor, "b n c"]:
        """Condition b images.

        Args:
            x: (b, n, c), the cells of each image.
            memories: (b, m, k), maps of n cells, then pointers.
            codes: (b, m, k), what says when a memory was made, and where in its map it is.
            angles: (n, c / 2), from ``rotary_angles``.
            pointers: number of tokens at the end that have no place.
        """
        for layer in self.layers:
            x = layer(x, memories, codes, angles, pointers)
        out: Tensor = self.norm(x)
        return out
