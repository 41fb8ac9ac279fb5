"""PiSSA (Meng et al. 2024): LoRA that starts at the principal singular directions of the weight.

"PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models". The
paper and the peft library replace the base weight by what is left after subtracting these
directions. Here the base stays as it is and the start is subtracted instead:
``W + alpha / rank (B A - B0 A0)`` with frozen B0 and A0. This is the same function with the same
gradients, and it equals the base exactly at the start. It is stored as a plain LoRA of twice the
rank, like the result of peft's own conversion, so it fits the untouched base and no program has to
compute the singular vectors again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import LowRank, PeftLayers, register
from samadapt.methods.peft_method import LinearMethod
from samadapt.system.settings import Whole

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("pissa")
@dataclass(frozen=True)
class PiSSA(LinearMethod):
    """LoRA that starts at the first ``rank`` singular vectors times the roots of their values.

    Attributes:
        rank: number of singular directions; at most the smaller side of every target linear.
        alpha: the update is scaled by ``alpha / rank``; None means ``rank``, a scale of 1.
    """

    summary: ClassVar[str] = "LoRA that starts at the principal singular directions"
    lr: ClassVar[float] = 3e-3
    kind: ClassVar[str] = "LORA"

    rank: Whole = Field(default=4, description="number of singular directions", ge=1)
    alpha: float | None = Field(
        default=None, description="scale is alpha / rank; null: alpha = rank", gt=0
    )

    def peft_layers(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> tuple[PeftLayers, ...]:
        """Return LoRA layers of twice the rank and alpha: one half is trained, one is the start."""
        alpha = float(self.rank if self.alpha is None else self.alpha)
        # With both doubled, the scale stays alpha / rank.
        layer = LowRank(2 * self.rank, 2 * alpha)
        return tuple(
            PeftLayers(
                self.kind, plain.names, ranks=dict.fromkeys(plain.names, layer), reads_base=False
            )
            for plain in super().peft_layers(sam, blocks)
        )

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Replace peft's A and B by pairs of a trained and a frozen half."""
        from peft.tuners.lora import LoraLayer

        from samadapt.methods.pissa_layer import pair

        # Only the method's own layers: with ``decoder=lora`` the decoder has plain LoRA layers.
        places = [f"{block.block}." for block in blocks]
        if self.decoder == "own":
            places.append("mask_decoder.")
        for name, layer in sam.named_modules():
            if isinstance(layer, LoraLayer) and name.startswith(tuple(places)):
                pair(layer, self.rank, name)

    def size(self, inputs: int, outputs: int) -> int:
        """Return rank * (inputs + outputs)."""
        return self.rank * (inputs + outputs)
