"""The method LoRA (Hu et al. 2021): its options, the linears that it updates, and its size.

The formula, ``W x + scale * B A x``, is computed in ``lora_layer.py``. Slices of the fused qkv are
updated as well as whole linears (``qkv_layer.py``), and the file is a plain one of peft.

"LoRA: Low-Rank Adaptation of Large Language Models". ``rslora`` is the scaling of "A Rank
Stabilization Scaling Factor for Fine-Tuning with LoRA" (Kalajdzievski 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import (
    LowRank,
    PeftLayers,
    register,
    require_slices,
)
from samadapt.methods.peft_method import LinearMethod
from samadapt.system.settings import Tuple, Whole

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("lora")
@dataclass(frozen=True)
class LoRA(LinearMethod):
    """Low-rank updates of the chosen slices q, k and v of qkv, and of other target linears.

    SAM computes q, k and v by one linear with rows (q | k | v). Updates of rank r for q and v are
    stored as one plain LoRA of rank 2r on it, which any program with peft can load::

        A = [A_q]   (2r, inputs)       B = [B_q   0 ]   (3 width, 2r)
            [A_v]                          [ 0    0 ]
                                           [ 0   B_v]

    ``qkv_layer.SlicedProjection`` holds and trains only the blocks of B that are not zero.

    Attributes:
        rank: rank of the update of each slice and of each other linear.
        alpha: the update is scaled by ``alpha / rank``; None means ``rank``, a scale of 1.
        dropout: dropout probability on the input of A in training.
        slices: which of q, k and v are updated if ``qkv`` is a target.
        rslora: scale by ``alpha / sqrt(rank)`` instead; by ``sqrt(rank)`` if alpha is None.
    """

    summary: ClassVar[str] = "low-rank updates on slices of qkv, and optionally on proj and MLP"
    lr: ClassVar[float] = 3e-3
    kind: ClassVar[str] = "LORA"

    rank: Whole = Field(default=4, description="rank of each slice's update", ge=1)
    alpha: float | None = Field(
        default=None, description="scale is alpha / rank; null: alpha = rank", gt=0
    )
    dropout: float = Field(default=0.0, description="dropout before A", ge=0, lt=1)
    slices: Tuple[Literal["q", "k", "v"]] = Field(
        default=("q", "v"), description="which of q, k, v"
    )
    rslora: bool = Field(default=False, description="scale by alpha / sqrt(rank): rank-stabilised")

    def check_options(self) -> None:
        """Check that no slice is named twice."""
        require_slices(self.slices)

    def peft_layers(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> tuple[PeftLayers, ...]:
        """Return LoRA layers; each ``qkv`` has the stacked rank of all its slices."""
        alpha = float(self.rank if self.alpha is None else self.alpha)
        count = len(self.slices)
        # peft divides by the stacked rank (or its root), so alpha grows with it to keep the scale.
        stacked = LowRank(count * self.rank, count ** (0.5 if self.rslora else 1) * alpha)
        qkv = {block.qkv for block in blocks}
        names = [name for layers in super().peft_layers(sam, blocks) for name in layers.names]
        if not names:
            return ()
        plain = LowRank(self.rank, alpha)
        ranks = {name: stacked if name in qkv else plain for name in names}
        options = {"lora_dropout": self.dropout, "use_rslora": self.rslora}
        layers = PeftLayers(
            self.kind, tuple(names), options, ranks, fused=True, reads_base=self.reads_base
        )
        return (layers,)

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Replace the dense B of every ``qkv`` by the block-structured one."""
        from samadapt.methods.peft_library import ADAPTER
        from samadapt.methods.qkv_layer import SlicedProjection

        for block in blocks if "qkv" in self.targets else ():
            layers = sam.get_submodule(f"{block.qkv}.lora_B")
            dense = sam.get_parameter(f"{block.qkv}.lora_B.{ADAPTER}.weight")
            groups = block.heads if block.qkv_order == "head_qkv" else 1
            rows = dense.shape[0] // 3
            sliced = SlicedProjection(self.slices, self.rank, rows, groups, dense)
            # It replaces peft's B under the same name, so peft merges, saves and loads it.
            setattr(layers, ADAPTER, sliced)

    def size(self, inputs: int, outputs: int) -> int:
        """Return the number of parameters that LoRA adds to one linear: A and B of its rank."""
        return self.rank * (inputs + outputs)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return the number of parameters that LoRA adds to the encoder.

        Each slice of a qkv has A (rank, inputs) and B (width, rank). The other linears count as
        ``size`` says.
        """
        qkv = 0
        if "qkv" in self.targets:
            both = sum(block.inputs + block.width for block in blocks)
            qkv = len(self.slices) * self.rank * both
        others = [
            name for block in blocks for name in self.encoder_names(sam, block) if name != block.qkv
        ]
        return qkv + self.count(sam, others)
