"""BitFit: only the biases are trained (Ben Zaken et al. 2022).

"BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models". The
biases are those of linears and norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass

from samadapt.methods.base import VECTORS, Method, register

if TYPE_CHECKING:
    from torch import nn

    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("bias")
@dataclass(frozen=True)
class Bias(Method):
    """Train the biases of the chosen blocks: attention, MLP and norms.

    ``decoder=own`` also trains every bias of the decoder, including its upscaling. TinyViT's
    convolution in a block has its bias in the batch norm after it. Biases are weights of the base,
    so there is nothing to merge.
    """

    summary: ClassVar[str] = "only the biases of linears and norms (BitFit)"
    lr: ClassVar[float] = 3e-3
    takes_decoder: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = VECTORS

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Make the biases trainable; no module is added."""
        own = ("mask_decoder",) if self.decoder == "own" else ()
        for bias in _biases(sam, *(block.block for block in blocks), *own):
            bias.requires_grad_(True)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return the number of biases in the chosen blocks."""
        return sum(bias.numel() for bias in _biases(sam, *(block.block for block in blocks)))

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return the number of biases in the decoder."""
        return sum(bias.numel() for bias in _biases(sam, "mask_decoder"))


def _biases(sam: Sam, *roots: str) -> list[nn.Parameter]:
    return [
        parameter
        for root in roots
        for name, parameter in sam.get_submodule(root).named_parameters()
        # TinyViT's table of attention biases has another name and stays frozen.
        if name.endswith(".bias")
    ]
