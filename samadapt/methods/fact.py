"""FacT: the updates of all blocks as one tensor in factors (Jie and Deng 2023).

"FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer", section 3.2. The update of
slice i (of q, k or v in some block) is ``scale * V S_i U``. All blocks and slices share U (rank,
width) and V (width, rank). S_i (rank, rank) belongs to the slice alone (tensor train, ``tt``), or
is a sum of ``rank`` shared matrices with the slice's own coefficients (Tucker, ``tucker``). As in
MA-SAM and micro-sam, q and v are updated by default.

There are two departures. The authors start V at zero; micro-sam starts no factor at zero, so its
model does not start at the base. Here S_i starts at zero, which is the same start as the authors'
and gives every block a gradient in the first step. And TinyViT and Hiera have blocks of several
widths, which cannot share U and V, so each shape of a slice has its own. The first block of a stage
of Hiera widens the tokens, so it shares its factors with no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import (
    LINEARS,
    Method,
    register,
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
    """Updates of q, k and v by factors that the blocks share.

    The first chosen block (of each shape) holds the shared factors, because training begins there.
    ``decoder=own`` also updates these projections of the decoder's attentions. There q, k and v are
    separate linears. Those of one shape share factors, separately from the encoder's.

    Attributes:
        rank: rank of all factors.
        scale: factor of the update.
        form: ``"tt"`` for a tensor train or ``"tucker"`` for a Tucker decomposition.
        slices: which of q, k and v are updated.
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

    def check_options(self) -> None:
        """Check that no slice is named twice."""
        require_slices(self.slices)

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Attach ``fact`` to every qkv and to the projections of the decoder."""
        shared: dict[tuple[int, int], Factors] = {}
        for block in blocks:
            # TinyViT's rows are (head, q | k | v, channel): one group of rows for each head.
            groups = block.heads if block.qkv_order == "head_qkv" else 1
            qkv = sam.get_submodule(block.qkv)
            self._attach(qkv, (block.inputs, block.width), shared, self.slices, groups)
        shared = {}
        for path in self._projections(sam):
            linear: Any = sam.get_submodule(path)
            self._attach(linear, (linear.in_features, linear.out_features), shared)

    def _attach(
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
        """Return the paths of the linears in the decoder that are updated."""
        if self.decoder != "own":
            return []
        return [f"{path}.{name}_proj" for path in attentions(sam) for name in self.slices]

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return the size of the shared factors of each shape and of the slices' own."""
        del sam
        tucker, rank = self.form == "tucker", self.rank
        shapes = {(block.inputs, block.width) for block in blocks}
        shared = sum(sum(shape) * rank + tucker * rank**3 for shape in shapes)
        # S_i has ``rank`` coefficients in Tucker form, and rank ** 2 entries in a tensor train.
        return shared + len(blocks) * len(self.slices) * rank ** (1 if tucker else 2)

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return the size of the shared factors of both shapes and of the projections' own."""
        tucker, rank = self.form == "tucker", self.rank
        width, depth = sam.build.prompt_width, sam.build.decoder_depth
        # Self-attention maps width to width, attention between tokens and image to half of it.
        shared = rank * (2 * width + width + width // 2) + 2 * tucker * rank**3
        own = (3 * depth + 1) * len(self.slices)  # three attentions a layer, and the final one
        return shared + own * rank ** (1 if tucker else 2)

    def merge(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Add every update to the weight of its linear."""
        import torch

        from samadapt.methods.attached_layer import detach

        paths = [*(block.qkv for block in blocks), *self._projections(sam)]
        with torch.no_grad():
            for path in paths:
                linear: Any = sam.get_submodule(path)
                linear.weight.add_(linear.fact.dense())
        for path in paths:
            detach(sam.get_submodule(path), "fact")
