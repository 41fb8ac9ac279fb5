"""Full fine-tuning of the last blocks; everything before them is frozen.

The idea is older than any name for it. Lee et al. 2019, "What Would Elsa Do? Freezing Layers During
Transformer Fine-Tuning", measured that training a quarter of the layers comes close to all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import EVERYTHING, Method, register
from samadapt.methods.decoder_modules import two_way_layers
from samadapt.system.settings import Tuple, Whole

if TYPE_CHECKING:
    from torch import nn

    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("late_blocks")
@dataclass(frozen=True)
class LateBlocks(Method):
    """Train every weight of the chosen blocks, the last two by default.

    ``decoder=own`` also trains the last two-way layer of the decoder, and nothing after it. The
    patch embedding, the merges between stages and the neck always stay frozen; ``full`` trains
    them.
    """

    summary: ClassVar[str] = "every weight of the last blocks"
    lr: ClassVar[float] = 3e-4
    takes_decoder: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = EVERYTHING

    blocks: str | Tuple[Whole] = Field(
        default="last:2",
        description="attention blocks: last:K, all, first:K, global, window or [0, 3]",
    )

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Make the weights trainable; no module is added."""
        for block in _blocks(sam, blocks):
            block.requires_grad_(True)
        if self.decoder == "own":
            sam.get_submodule(two_way_layers(sam)[-1]).requires_grad_(True)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return the number of weights of the chosen blocks."""
        return sum(p.numel() for block in _blocks(sam, blocks) for p in block.parameters())

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return the number of weights of the last two-way layer."""
        width, mlp = sam.build.prompt_width, sam.build.decoder_mlp
        # Self-attention keeps the width. The two attentions with the image halve it inside.
        # With half the width inside, q, k, v and out have 4 w w / 2 weights and 3 w / 2 + w biases.
        attentions = 4 * width * (width + 1) + 2 * (4 * width * width // 2 + 5 * width // 2)
        norms = 4 * 2 * width  # gain and bias of four norms
        return attentions + 2 * width * mlp + mlp + width + norms


def _blocks(sam: Sam, blocks: Sequence[AttentionBlock]) -> list[nn.Module]:
    return [sam.get_submodule(block.block) for block in blocks]
