"""The encoder of SAM 2 that makes a memory of an image and a mask in it (Ravi et al. 2024).

Its tensors have the official state-dict names.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.layers import LayerNorm2d

FUSER_DEPTH = 2
"""Blocks that mix image and mask in all sizes of SAM 2."""


class MaskDownsampler(nn.Module):
    """Shrink a mask 16 times: (b, 1, s, s) -> (b, width, s / 16, s / 16)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = (1, 4, 16, 64, 256)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [
                nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1),
                LayerNorm2d(after),
                nn.GELU(),
            ]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(channels[-1], width, kernel_size=1))

    def forward(self, masks: Float[Tensor, "b 1 s s"]) -> Float[Tensor, "b c g g"]:
        """Shrink masks (b, 1, s, s)."""
        out: Tensor = self.encoder(masks)
        return out


class FuserBlock(nn.Module):
    """A block of ConvNeXt (Liu et al. 2022): (b, width, g, g) -> (b, width, g, g)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, kernel_size=7, padding=3, groups=width)
        self.norm = LayerNorm2d(width)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Float[Tensor, "b c g g"]) -> Float[Tensor, "b c g g"]:
        """Mix each cell of x (b, c, g, g) with its neighbours and add the result."""
        mixed = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)
        mixed = self.gamma * self.pwconv2(functional.gelu(self.pwconv1(mixed)))
        out: Tensor = x + mixed.permute(0, 3, 1, 2)
        return out


class Fuser(nn.Module):
    """The blocks that mix image and mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FuserBlock(width) for _ in range(FUSER_DEPTH))

    def forward(self, x: Float[Tensor, "b c g g"]) -> Float[Tensor, "b c g g"]:
        """Mix x (b, c, g, g)."""
        for layer in self.layers:
            x = layer(x)
        return x


class MemoryEncoder(nn.Module):
    """Makes memories of images and masks.

    Args:
        width: channels c of the image embedding.
        memory_width: channels k of a memory.
    """

    def __init__(self, width: int, memory_width: int) -> None:
        super().__init__()
        self.mask_downsampler = MaskDownsampler(width)
        self.pix_feat_proj = nn.Conv2d(width, width, kernel_size=1)
        self.fuser = Fuser(width)
        self.out_proj = nn.Conv2d(width, memory_width, kernel_size=1)

    def forward(
        self, embeddings: Float[Tensor, "b c g g"], masks: Float[Tensor, "b 1 s s"]
    ) -> Float[Tensor, "b k g g"]:
        """Encode images (b, c, g, g) with a mask (b, 1, s, s) each; s = 16g."""
        x = self.pix_feat_proj(embeddings) + self.mask_downsampler(masks)
        out: Tensor = self.out_proj(self.fuser(x))
        return out
