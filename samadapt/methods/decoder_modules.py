"""Module paths of the mask decoder's attentions and MLPs, where ``decoder=own`` adds layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samadapt.sam.model import Sam

_TRANSFORMER = "mask_decoder.transformer"


def two_way_layers(sam: Sam) -> list[str]:
    """Return the paths of the layers of the two-way transformer."""
    return [f"{_TRANSFORMER}.layers.{index}" for index in range(sam.build.decoder_depth)]


def attentions(sam: Sam) -> list[str]:
    """Return the paths of the three attentions of every layer and of the final attention."""
    names = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
    inner = [f"{layer}.{name}" for layer in two_way_layers(sam) for name in names]
    return [*inner, f"{_TRANSFORMER}.final_attn_token_to_image"]


def mlps(sam: Sam) -> list[str]:
    """Return the paths of the MLPs of the layers."""
    return [f"{layer}.mlp" for layer in two_way_layers(sam)]
