"""PiSSA (Meng et al. 2024): LoRA that starts at the weight's principal singular directions.

"PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models". The
paper, and peft, put the rest of the weight in the place of the base. Here the base stays as it is,
and the start is subtracted: ``W + alpha / rank (B A - B0 A0)``, with B0 A0 frozen. That is the same
function with the same gradients, the identity at the start exactly, and on the disk a plain LoRA
of twice the rank, as peft's own conversion makes it: it fits the untouched base, and no program
has to find the singular vectors again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import LowRank, PeftLayers, register, require_count
from samadapt.methods.peft_method import LinearMethod, require_alpha
from samadapt.system.settings import Whole

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("pissa")
@dataclass(frozen=True)
class PiSSA(LinearMethod):
    """LoRA whose A and B are the first ``rank`` singular vectors, times the root of their values.

    Attributes:
        rank: number of singular directions; at most the smaller side of a linear.
        alpha: the update is scaled by ``alpha / rank``; None is ``rank``, a scale of 1.
    """

    summary: ClassVar[str] = "LoRA that starts at the principal singular directions"
    lr: ClassVar[float] = 3e-3
    kind: ClassVar[str] = "LORA"

    rank: Whole = Field(default=4, description="number of singular directions", ge=1)
    alpha: float | None = Field(
        default=None, description="scale is alpha / rank; null: alpha = rank", gt=0
    )

    def validate(self) -> None:
        """Check rank and alpha."""
        require_count("rank", self.rank)
        require_alpha(self.alpha)

    def peft_layers(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> tuple[PeftLayers, ...]:
        """Return plain LoRA layers of twice the rank and alpha: the trained half and the start."""
        alpha = float(self.rank if self.alpha is None else self.alpha)
        layer = LowRank(2 * self.rank, 2 * alpha)
        return tuple(
            PeftLayers(
                self.kind, plain.names, ranks=dict.fromkeys(plain.names, layer), reads_base=False
            )
            for plain in super().peft_layers(sam, blocks)
        )

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Put the pairs of trained and frozen halves in the place of peft's A and B."""
        from peft.tuners.lora import LoraLayer

        from samadapt.methods.pissa_layer import pair

        places = [f"{block.block}." for block in blocks]
        if self.decoder == "own":
            places.append("mask_decoder.")
        for name, layer in sam.named_modules():
            if isinstance(layer, LoraLayer) and name.startswith(tuple(places)):
                pair(layer, self.rank, name)

    def size(self, inputs: int, outputs: int) -> int:
        """Return rank * (inputs + outputs)."""
        return self.rank * (inputs + outputs)
