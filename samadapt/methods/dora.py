"""DoRA (Liu et al. 2024): direction by LoRA, magnitude by a vector of its own.

"DoRA: Weight-Decomposed Low-Rank Adaptation", section 4.
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


@register("dora")
@dataclass(frozen=True)
class DoRA(LinearMethod):
    """``W' = m (W + alpha / rank B A) / |W + alpha / rank B A|``, with a norm for each row.

    The whole ``qkv`` is one linear here: its magnitudes are those of q, k and v. As in the paper
    (section 4.3), no gradient flows through the norm.

    Attributes:
        rank: of the direction's update.
        alpha: the update is scaled by ``alpha / rank``; None is ``rank``, a scale of 1.
    """

    summary: ClassVar[str] = "LoRA on the direction of the weights, their magnitude a vector"
    lr: ClassVar[float] = 3e-3
    kind: ClassVar[str] = "LORA"
    reads_base: ClassVar[bool] = True

    rank: Whole = Field(default=4, description="rank of the update", ge=1)
    alpha: float | None = Field(
        default=None, description="scale is alpha / rank; null: alpha = rank", gt=0
    )

    def validate(self) -> None:
        """Check rank and alpha."""
        require_count("rank", self.rank)
        require_alpha(self.alpha)

    def peft_layers(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> tuple[PeftLayers, ...]:
        """Return LoRA layers with magnitudes."""
        layer = LowRank(self.rank, float(self.rank if self.alpha is None else self.alpha))
        return tuple(
            PeftLayers(
                self.kind, plain.names, {"use_dora": True}, dict.fromkeys(plain.names, layer)
            )
            for plain in super().peft_layers(sam, blocks)
        )

    def size(self, inputs: int, outputs: int) -> int:
        """Return rank * (inputs + outputs) and a magnitude a row."""
        return self.rank * (inputs + outputs) + outputs
