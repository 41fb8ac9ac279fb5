"""LayerNorm tuning (Zhao et al. 2023): only gains and biases of the blocks' layer norms.

"Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass

from samadapt.methods.base import VECTORS, register
from samadapt.methods.peft_method import PeftMethod

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("layernorm")
@dataclass(frozen=True)
class LayerNormTuning(PeftMethod):
    """Train the layer norms of the chosen blocks and, with ``decoder=own``, of the decoder."""

    summary: ClassVar[str] = "gains and biases of the layer norms"
    lr: ClassVar[float] = 3e-3
    changes: ClassVar[frozenset[str]] = VECTORS
    kind: ClassVar[str] = "LN_TUNING"

    def encoder_names(self, sam: Sam, block: AttentionBlock) -> list[str]:
        """Return the paths of a block's layer norms."""
        from samadapt.methods.peft_library import norms

        return norms(sam, block.block)

    def decoder_names(self, sam: Sam) -> list[str]:
        """Return the paths of the decoder's layer norms."""
        from samadapt.methods.peft_library import norms

        return norms(sam, "mask_decoder")

    def count(self, sam: Sam, names: Sequence[str]) -> int:
        """Return the number of gains and biases, one of each for every channel."""
        return sum(2 * sam.get_parameter(f"{name}.weight").numel() for name in names)
