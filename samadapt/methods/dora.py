"""DoRA (Liu et al. 2024): LoRA trains the direction of the weights, a vector their magnitude.

"DoRA: Weight-Decomposed Low-Rank Adaptation", section 4.
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


@register("dora")
@dataclass(frozen=True)
class DoRA(LinearMethod):
    """``W' = m (W + alpha / rank B A) / |W + alpha / rank B A|``, with the norm of each row.

    The fused ``qkv`` is treated as one linear, so the magnitudes m hold those of q, k and v. As in
    the paper (section 4.3), no gradient flows through the norm.

    Attributes:
        rank: rank of the update of the direction.
        alpha: the update is scaled by ``alpha / rank``; None means ``rank``, a scale of 1.
    """

    summary: ClassVar[str] = (
        "LoRA on the direction of the weights, and a vector for their magnitude"
    )
    lr: ClassVar[float] = 3e-3
    kind: ClassVar[str] = "LORA"
    reads_base: ClassVar[bool] = True

    rank: Whole = Field(default=4, description="rank of the update", ge=1)
    alpha: float | None = Field(
        default=None, description="scale is alpha / rank; null: alpha = rank", gt=0
    )

    def peft_layers(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> tuple[PeftLayers, ...]:
        """Return LoRA layers with ``use_dora``."""
        layer = LowRank(self.rank, float(self.rank if self.alpha is None else self.alpha))
        return tuple(
            PeftLayers(
                self.kind, plain.names, {"use_dora": True}, dict.fromkeys(plain.names, layer)
            )
            for plain in super().peft_layers(sam, blocks)
        )

    def size(self, inputs: int, outputs: int) -> int:
        """Return rank * (inputs + outputs), plus a magnitude for each row."""
        return self.rank * (inputs + outputs) + outputs
