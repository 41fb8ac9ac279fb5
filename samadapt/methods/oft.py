"""OFT (Qiu et al. 2023): the inputs of a linear are rotated block by block.

"Controlling Text-to-Image Diffusion by Orthogonal Finetuning", on the input side and with the
Cayley-Neumann series of "Orthogonal Finetuning Made Scalable" (Qiu et al. 2025), as in peft. The
peft library takes a tensor with four axes for the input of a convolution, but SAM's tokens have the
four axes (b, h, w, c). Hooks add axes around the rotation, so the saved adapter needs samadapt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import PeftLayers, register, require
from samadapt.methods.peft_method import LinearMethod
from samadapt.system.settings import Whole

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("oft")
@dataclass(frozen=True)
class OFT(LinearMethod):
    """``W R x`` with a block-diagonal orthogonal matrix R, which starts as the identity.

    Attributes:
        block_size: number of channels that one block rotates; it must divide a linear's inputs.
    """

    summary: ClassVar[str] = "rotations of blocks of the input channels"
    lr: ClassVar[float] = 3e-2
    kind: ClassVar[str] = "OFT"
    plain_peft: ClassVar[bool] = False

    block_size: Whole = Field(default=8, description="channels rotated among themselves", ge=2)

    def peft_layers(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> tuple[PeftLayers, ...]:
        """Return the layers; check that ``block_size`` divides the inputs of every linear."""
        layers = super().peft_layers(sam, blocks)
        for name in [name for one in layers for name in one.names]:
            inputs = sam.get_parameter(f"{name}.weight").shape[1]
            require(
                inputs % self.block_size == 0,
                f"peft.block_size {self.block_size} does not divide the {inputs} inputs of {name}",
            )
        return layers

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Add the hooks that let the rotations take tokens (b, h, w, c)."""
        from peft.tuners.oft.layer import OFTRotationModule

        for module in sam.modules():
            if isinstance(module, OFTRotationModule):
                module.register_forward_pre_hook(_more_axes)
                module.register_forward_hook(_less_axes)

    def arguments(self) -> Mapping[str, Any]:
        """Return the block size; ``r=0`` switches off peft's default, a fixed number of blocks."""
        return {"r": 0, "oft_block_size": self.block_size}

    def size(self, inputs: int, outputs: int) -> int:
        """Return the sum of the upper triangles of all blocks, which parametrise the rotations."""
        del outputs
        return inputs // self.block_size * self.block_size * (self.block_size - 1) // 2


def _more_axes(module: object, inputs: tuple[Tensor]) -> Tensor:
    del module
    # With four more axes, tokens never have exactly four.
    return inputs[0][None, None, None, None]


def _less_axes(module: object, inputs: object, output: Tensor) -> Tensor:
    del module, inputs
    return output[0, 0, 0, 0]
