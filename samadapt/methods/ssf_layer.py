"""The module of SSF and its hooks, the formula of ``ssf.py``, and folding it into weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ScaleShift(nn.Module):
    """``scale * x + shift`` for each channel; the identity at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift x (..., width). Under autocast the result is rounded once, at the end."""
        return torch.addcmul(self.shift, x, self.scale).to(x.dtype)


def scale_output(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Scale and shift the layer's output; a forward hook."""
    del inputs
    scaled: Tensor = module.ssf(output)
    return scaled


def scale_input(module: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    """Scale and shift the layer's input; a forward pre-hook of the layer after a norm."""
    scaled: Tensor = module.ssf_norm(inputs[0])
    return scaled


@torch.no_grad()
def fold(layer: Any, change: Any) -> None:
    """Fold a ``ScaleShift`` into weight and bias of the linear or norm that it follows."""
    scale = change.scale
    # A linear's rows are its output channels; a norm's weight is a vector.
    layer.weight.mul_(scale[:, None] if layer.weight.ndim == 2 else scale)
    layer.bias.mul_(scale).add_(change.shift)
