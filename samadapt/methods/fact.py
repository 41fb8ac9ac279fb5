"""FacT: the updates of all blocks as one tensor in factors (Jie and Deng 2023).

"FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer", section 3.2. The update of
slice i of q, k, v is ``scale * V S_i U``: U (rank, width) and V (width, rank) are shared by all
blocks and slices, S_i (rank, rank) is its own (tensor train, ``tt``), or a sum of ``rank`` shared
matrices with own coefficients (Tucker, ``tucker``). As in MA-SAM and micro-sam it goes on q and v.

Two departures. The authors start V at zero, micro-sam's version none of the factors, so that its
model does not start as it was. Here S_i starts at zero: the same start, and every block gets a
gradient on the first step. And TinyViT has blocks of several widths, which cannot share U and V:
each width has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.errors import nearest
from samadapt.methods.base import (
    LINEARS,
    Method,
    register,
    require,
    require_count,
    require_positive,
    require_slices,
)
from samadapt.methods.decoder_modules import attentions
from samadapt.system.settings import Tuple, Whole

if TYPE_CHECKING:
    from torch import nn

    from samadapt.methods.fact_layer import Factors
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("fact")
@dataclass(frozen=True)
class FacT(Method):
    """Updates of q, k and v in factors that the blocks share.

    The shared factors are held by the first chosen block (of each width), where training begins.
    With ``decoder=own`` the same projections of the decoder's attentions are updated too. They are
    linears of their own, and those of one shape share factors, which are none of the encoder's.

    Attributes:
        rank: of all factors.
        scale: of the update.
        form: tensor train or Tucker.
        slices: which of q, k and v.
    """

    summary: ClassVar[str] = "updates of q and v in factors shared by all blocks"
    lr: ClassVar[float] = 3e-3
    takes_decoder: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = LINEARS

    rank: Whole = Field(default=16, description="rank of the factors", ge=1)
    scale: float = Field(default=1.0, description="scale of the update", gt=0)
    form: Literal["tt", "tucker"] = Field(
        default="tt", description="tensor train or Tucker decomposition"
    )
    slices: Tuple[Literal["q", "k", "v"]] = Field(
        default=("q", "v"), description="which of q, k, v"
    )

    def validate(self) -> None:
        """Check rank, scale, form and slices."""
        require_count("rank", self.rank)
        require_positive("scale", self.scale)
        forms = ("tt", "tucker")
        require(
            self.form in forms,
            f"peft.form must be tt or tucker; got {self.form!r}{nearest(str(self.form), forms)}",
        )
        require_slices(self.slices)

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Hang ``fact`` on every qkv, and on the projections of the decoder."""
        shared: dict[tuple[int, int], Factors] = {}
        for block in blocks:
            groups = block.heads if block.qkv_order == "head_qkv" else 1
            qkv = sam.get_submodule(block.qkv)
            self._hang(qkv, (block.width, block.width), shared, self.slices, groups)
        shared = {}
        for path in self._projections(sam):
            linear: Any = sam.get_submodule(path)
            self._hang(linear, (linear.in_features, linear.out_features), shared)

    def _hang(
        self,
        linear: nn.Module,
        shape: tuple[int, int],
        shared: dict[tuple[int, int], Factors],
        slices: tuple[str, ...] | None = None,
        groups: int = 1,
    ) -> None:
        from samadapt.methods.attached_layer import attach
        from samadapt.methods.fact_layer import Factors, FactorUpdate, add_update

        owns = shape not in shared
        if owns:
            shared[shape] = Factors(*shape, self.rank, tucker=self.form == "tucker")
        update = FactorUpdate(shared[shape], slices, groups, self.scale, owns=owns)
        attach(linear, "fact", update, add_update)

    def _projections(self, sam: Sam) -> list[str]:
        """Return the paths of the decoder's linears that are updated."""
        if self.decoder != "own":
            return []
        return [f"{path}.{name}_proj" for path in attentions(sam) for name in self.slices]

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return the shared factors of each width, and the slices' own."""
        del sam
        tucker, rank = self.form == "tucker", self.rank
        shared = sum(2 * width * rank + tucker * rank**3 for width in {s.width for s in blocks})
        return shared + len(blocks) * len(self.slices) * rank ** (1 if tucker else 2)

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return the factors of both shapes, and the projections' own.

        The attentions with the image have half the inner width.
        """
        tucker, rank = self.form == "tucker", self.rank
        width, depth = sam.build.prompt_width, sam.build.decoder_depth
        shared = rank * (2 * width + width + width // 2) + 2 * tucker * rank**3
        own = (3 * depth + 1) * len(self.slices)
        return shared + own * rank ** (1 if tucker else 2)

    def merge(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Add every update to its linear."""
        import torch

        from samadapt.methods.attached_layer import detach

        paths = [*(block.qkv for block in blocks), *self._projections(sam)]
        with torch.no_grad():
            for path in paths:
                linear: Any = sam.get_submodule(path)
                linear.weight.add_(linear.fact.dense())
        for path in paths:
            detach(sam.get_submodule(path), "fact")
