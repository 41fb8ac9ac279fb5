"""Conv-LoRA: convolutions at several scales between LoRA's two matrices (Zhong et al. 2024).

"Convolution Meets LoRA: Parameter Efficient Finetuning for Segment Anything Model", section 3.2:
``qkv(x) + alpha / rank * B (z + share_e * expert_e(z))`` with ``z = A x`` on the image's grid.
Expert e enlarges z by the factor e, convolves it 3x3, applies GELU and shrinks it back. A gate on
the mean of z chooses one expert for each image.

This differs from the authors' code in four points:

- The output of the expert is multiplied by its share in the gate's softmax over all experts, as in
  Fedus et al. 2022, "Switch Transformers". In the authors' code it is not, so their gate learns
  from a balancing loss only. That loss and the noise on the gate are left out here.
- The convolutions have no bias. Padding tokens are zero before ``qkv`` and so stay ``qkv.bias``.
- The convolutions see the whole grid, also in blocks with window attention. The authors' stop at
  the border of a window, and each window chooses its expert. For TinyViT it is the same here, since
  its attention receives the image in strips of whole windows.
- Sizes change by bilinear interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import LINEARS, Method, register
from samadapt.system.settings import Whole

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("conv_lora")
@dataclass(frozen=True)
class ConvLoRA(Method):
    """A low-rank update of qkv with a mixture of convolutions inside.

    Attributes:
        rank: rank of the update.
        alpha: the update is scaled by ``alpha / rank``; None means ``rank``, a scale of 1.
        experts: number of convolutions; they work at 1, 2, ... times the size of the grid.
    """

    summary: ClassVar[str] = "LoRA on qkv with convolutions at several scales inside"
    lr: ClassVar[float] = 3e-3
    can_merge: ClassVar[bool] = False
    not_in_decoder: ClassVar[str] = (
        "convolves over a grid of cells, and the decoder's attentions take lists of tokens"
    )
    changes: ClassVar[frozenset[str]] = LINEARS

    rank: Whole = Field(default=3, description="rank of the update", ge=1)
    alpha: float | None = Field(
        default=None, description="scale is alpha / rank; null: alpha = rank", gt=0
    )
    experts: Whole = Field(
        default=8, description="convolutions, at 1, 2, ... times the grid's size", ge=1
    )

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Attach ``conv_lora`` to every qkv."""
        from samadapt.methods.attached_layer import attach
        from samadapt.methods.conv_lora_layer import ConvUpdate, add_update

        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        for block in blocks:
            attn: Any = sam.get_submodule(block.attn)
            # TinyViT's qkv sees strips of windows instead of the grid; see the third point above.
            window = attn.window if sam.build.encoder == "tiny_vit" else None
            child = ConvUpdate(block.inputs, block.width, self.rank, self.experts, scale, window)
            attach(sam.get_submodule(block.qkv), "conv_lora", child, add_update)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return the size of A, B, the experts and the gate of every block."""
        del sam
        # Kernels (rank, rank, 3, 3) and one row of the gate for each expert; A and B have the rest.
        inner = self.experts * (9 * self.rank**2 + self.rank)
        return sum((s.inputs + 3 * s.width) * self.rank + inner for s in blocks)
