"""Full fine-tuning of the encoder, or of some of its blocks: the most expensive baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass

from samadapt.methods.base import EVERYTHING, Method, register

if TYPE_CHECKING:
    from torch import nn

    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("full")
@dataclass(frozen=True)
class FullFineTuning(Method):
    """Train every weight of the image encoder.

    If ``blocks`` is not ``"all"``, only these blocks are trained. The patch embedding, the merges
    between stages and the neck then stay frozen.
    """

    summary: ClassVar[str] = "every weight of the image encoder, or of the chosen blocks"
    lr: ClassVar[float] = 3e-4
    not_in_decoder: ClassVar[str] = "would train every weight of the decoder, as decoder=full does"
    changes: ClassVar[frozenset[str]] = EVERYTHING

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Make the weights trainable; no module is added."""
        for module in self._modules(sam, blocks):
            module.requires_grad_(True)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return the number of weights of the encoder, or of the chosen blocks."""
        modules = self._modules(sam, blocks)
        return sum(p.numel() for module in modules for p in module.parameters())

    def _modules(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> list[nn.Module]:
        if self.blocks == "all":
            return [sam.image_encoder]
        return [sam.get_submodule(block.block) for block in blocks]
