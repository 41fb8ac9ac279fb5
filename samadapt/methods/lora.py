"""LoRA (Hu et al. 2021) on slices of the fused qkv projections, stored as standard peft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from samadapt.errors import nearest
from samadapt.methods.base import LowRank, Method, register, require, require_count
from samadapt.typed import knob

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import BlockSite


@register("lora")
@dataclass(frozen=True)
class LoRA(Method):
    """Low-rank updates of the chosen q, k and v.

    The A of all slices are stacked, and B is zero outside the chosen slices, so one plain LoRA of
    rank ``len(slices) * rank`` on ``qkv`` says the same (DESIGN: decisions).

    Attributes:
        rank: of each slice.
        alpha: the update is scaled by ``alpha / rank``; None is ``rank``, a scale of 1.
        dropout: on the input of A, in training.
        slices: which of q, k and v.
    """

    summary: ClassVar[str] = "low-rank updates on slices of the qkv projections"
    plain_peft: ClassVar[bool] = True

    rank: int = knob(4, help="rank of each slice's update", low=1)
    alpha: float | None = knob(None, help="scale is alpha / rank; null: alpha = rank", above=0)
    dropout: float = knob(0.0, help="dropout before A", low=0, below=1)
    slices: tuple[Literal["q", "k", "v"], ...] = knob(("q", "v"), help="which of q, k, v")

    def validate(self) -> None:
        """Check rank, alpha, dropout and slices."""
        require_count("rank", self.rank)
        require(
            self.alpha is None or (_is_number(self.alpha) and self.alpha > 0),
            f"peft.alpha must be a number above 0 or null; got {self.alpha!r}",
        )
        require(
            _is_number(self.dropout) and 0 <= self.dropout < 1,
            f"peft.dropout must be at least 0 and below 1; got {self.dropout!r}",
        )
        for name in self.slices:
            hint = nearest(str(name), "qkv")
            require(name in ("q", "k", "v"), f"peft.slices must name q, k or v; got {name!r}{hint}")
        require(
            0 < len(self.slices) == len(set(self.slices)),
            f"peft.slices must name one or more of q, k and v, each once; got {self.slices!r}",
        )

    @property
    def low_rank_dropout(self) -> float:
        """Dropout before every LoRA layer."""
        return self.dropout

    def low_rank(self, sites: Sequence[BlockSite]) -> dict[str, LowRank]:
        """Give every ``qkv`` the stacked rank; rank and alpha grow alike, so the scale stays."""
        count = len(self.slices)
        alpha = self.rank if self.alpha is None else self.alpha
        return {site.qkv: LowRank(count * self.rank, count * float(alpha)) for site in sites}

    def inject(self, sam: Sam, sites: Sequence[BlockSite]) -> None:
        """Put the block-structured B in the place of peft's dense one."""
        from samadapt.methods._slices import SlicedProjection
        from samadapt.methods.low_rank import ADAPTER

        for site in sites:
            layers = sam.get_submodule(f"{site.qkv}.lora_B")
            dense = sam.get_parameter(f"{site.qkv}.lora_B.{ADAPTER}.weight")
            groups = site.heads if site.qkv_order == "head_qkv" else 1
            rows = dense.shape[0] // 3
            sliced = SlicedProjection(self.slices, self.rank, rows, groups, dense)
            setattr(layers, ADAPTER, sliced)

    def formula(self, sam: Sam, sites: Sequence[BlockSite]) -> int:
        """Return slices * rank * (inputs + rows of a slice), over all sites."""
        del sam
        return sum(len(self.slices) * self.rank * 2 * site.width for site in sites)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
