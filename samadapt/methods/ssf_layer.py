"""The module of SSF; imports torch, so ``ssf`` imports it when it injects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ScaleShift(nn.Module):
    """``scale * x + shift`` for each channel; leaves x as it is at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., width); under autocast rounded once, at the end."""
        return torch.addcmul(self.shift, x, self.scale).to(x.dtype)


def scale_output(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook of the layer itself."""
    del inputs
    scaled: Tensor = module.ssf(output)
    return scaled


def scale_input(module: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    """Forward pre-hook of the layer that follows."""
    scaled: Tensor = module.ssf_norm(inputs[0])
    return scaled


@torch.no_grad()
def fold(layer: Any, change: Any) -> None:
    """Put a ``ScaleShift`` into the weight and bias of the linear or norm before it."""
    scale = change.scale
    layer.weight.mul_(scale[:, None] if layer.weight.ndim == 2 else scale)
    layer.bias.mul_(scale).add_(change.shift)
