"""Weights in 4 bits (``nf4``): which frozen weights are held so, and the values that this gives.

QLoRA (Dettmers et al., 2023) trains an adapter beside such weights, so the adapter fits them and
not the whole ones: LiteMedSAM's Dice fell from 0.881 to 0.859 on the whole weights (hippocampus, 60
steps, one run). Whoever loads such an adapter rounds the same weights. On a GPU bitsandbytes
computes with 4 bits; to round, it is not needed.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from samadapt.errors import ConfigError

BLOCK = 64
"""Weights that share a scale."""

# Quantiles of a normal distribution, with a zero (Dettmers et al., 2023, appendix E).
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)

ENCODER = "image_encoder."


def frozen_linears(model: nn.Module, exact: Collection[str]) -> list[str]:
    """Return the paths of the linears that are held in 4 bits: the frozen ones of the encoder.

    Linears with children or hooks of their own are none of them: these may read the weight.

    Args:
        model: SAM with its adapter.
        exact: paths of linears that keep their values, ``Injection.exact``.

    Raises:
        ConfigError: there is no such linear.
    """
    found = [
        name
        for name, linear in model.named_modules()
        if name.startswith(ENCODER)
        and name not in exact
        and type(linear) is nn.Linear
        and not any(parameter.requires_grad for parameter in linear.parameters())
        and not linear._forward_hooks
        and not list(linear.children())
    ]
    if not found:
        raise ConfigError(
            "model.quantize=nf4: this run has no frozen linears in the encoder; choose fewer "
            "peft.blocks, or model.quantize=none"
        )
    return found


def round_frozen(model: nn.Module, exact: Collection[str]) -> None:
    """Give the linears of ``frozen_linears`` the values that they have in 4 bits.

    Each gets a new parameter, because models may share the old one.
    """
    for name in frozen_linears(model, exact):
        linear = model.get_submodule(name)
        weight = rounded(linear.get_parameter("weight").detach())
        linear.register_parameter("weight", nn.Parameter(weight, requires_grad=False))


def rounded(weight: Tensor) -> Tensor:
    """Return the values of a weight in 4 bits: the nearest level times the largest of its block."""
    flat = weight.float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    levels = torch.tensor(LEVELS, device=weight.device)
    between = (levels[1:] + levels[:-1]) / 2
    nearest = levels[torch.bucketize(blocks / scale.clamp(min=1e-38), between)]
    return (nearest * scale).flatten()[: len(flat)].view_as(weight).to(weight.dtype)
