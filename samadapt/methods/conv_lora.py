"""Conv-LoRA: convolutions at several scales between LoRA's two matrices (Zhong et al. 2024).

"Convolution Meets LoRA: Parameter Efficient Finetuning for Segment Anything Model", section 3.2:
``qkv(x) + alpha / rank * B (z + share_e * expert_e(z))`` with ``z = A x`` on the image's grid.
Expert e enlarges z e times, convolves it 3x3, applies GELU and shrinks it back; a gate on the mean
of z chooses one expert for each image.

Where this departs from the authors' code: the expert's output is multiplied by its share in the
gate's softmax over all experts (as in Fedus et al. 2022, "Switch Transformers"); there it is not,
so that their gate learns from a balancing loss alone. That loss and the noise on the gate are left
out. The convolutions have no bias, so that a cell beyond the image's edge, which is zero in front
of ``qkv``, stays ``qkv.bias``. They go over the whole grid, also in blocks that attend in windows;
the authors' stop at the window's edge, and each window chooses an expert. So it is here in TinyViT,
whose attention is given the image in strips of whole windows. Sizes change bilinearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import LINEARS, Method, register, require_count, require_positive
from samadapt.system.settings import Whole

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("conv_lora")
@dataclass(frozen=True)
class ConvLoRA(Method):
    """A low-rank update of qkv with a mixture of convolutions inside.

    Attributes:
        rank: of the update.
        alpha: the update is scaled by ``alpha / rank``; None is ``rank``, a scale of 1.
        experts: convolutions, at 1, 2, ... times the grid's size.
    """

    summary: ClassVar[str] = "LoRA on qkv with convolutions at several scales inside "
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

    def validate(self) -> None:
        """Check rank, alpha and experts."""
        require_count("rank", self.rank)
        require_count("experts", self.experts)
        if self.alpha is not None:
            require_positive("alpha", self.alpha)

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Hang ``conv_lora`` on every qkv."""
        from samadapt.methods.attached_layer import attach
        from samadapt.methods.conv_lora_layer import ConvUpdate, add_update

        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        for block in blocks:
            attn: Any = sam.get_submodule(block.attn)
            window = attn.window if sam.build.encoder == "tiny_vit" else None
            child = ConvUpdate(block.width, self.rank, self.experts, scale, window)
            attach(sam.get_submodule(block.qkv), "conv_lora", child, add_update)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return A and B, the experts and the gate of every block."""
        del sam
        inner = self.experts * (9 * self.rank**2 + self.rank)
        return sum(4 * block.width * self.rank + inner for block in blocks)
