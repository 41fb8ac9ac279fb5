"""A small network that makes a prompt for each class from the image embedding, as AutoSAM does.

AutoSAM (Shaharabany et al. 2023, "Adapting SAM to Medical Images by Overloading the Prompt
Encoder") keeps SAM frozen and learns the conditioning that a person would give. There the prompt
comes from an image encoder of its own. Here it comes from SAM's embedding, which is there already::

    embedding (b, c, g, g)
      |  1x1 to h channels, then two 3x3, the second with gaps
      |  1x1 to K * c
      v
    dense prompts (b, K, c, g, g)        in the place of embedded mask prompts
      |  the frozen mask decoder, its single-mask token for each class
      v
    logits (b, K, 4g, 4g)

In the beginning every prompt is that of an object without a mask prompt, so the first answer is
the one that the frozen model gives without any prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from samadapt.sam.layers import LayerNorm2d

if TYPE_CHECKING:
    from samadapt.sam.prompt_encoder import PromptEncoder

HIDDEN = 64
"""Channels between the layers. With K = 2 of LiteMedSAM's 256 channels these are 120,000 weights,
3 % of its mask decoder's."""


class PromptGenerator(nn.Module):
    """Makes the dense prompts of K classes.

    Args:
        encoder: the prompt encoder whose dense prompts it replaces.
        classes: number K of classes.

    Raises:
        ValueError: ``classes`` is less than 1.
    """

    def __init__(self, encoder: PromptEncoder, classes: int) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"the number of classes must be at least 1; got {classes}")
        self.classes = classes
        self.features = nn.Sequential(
            nn.Conv2d(encoder.width, HIDDEN, kernel_size=1),
            LayerNorm2d(HIDDEN),
            nn.GELU(),
            nn.Conv2d(HIDDEN, HIDDEN, kernel_size=3, padding=1),
            LayerNorm2d(HIDDEN),
            nn.GELU(),
            # A larger field of view: a class shows by what lies around it.
            nn.Conv2d(HIDDEN, HIDDEN, kernel_size=3, padding=4, dilation=4),
            LayerNorm2d(HIDDEN),
            nn.GELU(),
        )
        self.prompts = nn.Conv2d(HIDDEN, classes * encoder.width, kernel_size=1)
        with torch.no_grad():
            self.prompts.weight.zero_()
            none = encoder.no_mask_embed.weight[0]
            if self.prompts.bias is not None:
                self.prompts.bias.copy_(none.repeat(classes))

    def forward(self, embeddings: Float[Tensor, "b c g g"]) -> Float[Tensor, "b K c g g"]:
        """Return a dense prompt for each class."""
        made: Tensor = self.prompts(self.features(embeddings))
        return torch.unflatten(made, 1, (self.classes, -1))
