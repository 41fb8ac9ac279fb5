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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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
from samadapt.typed import knob

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import BlockSite


@register("fact")
@dataclass(frozen=True)
class FacT(Method):
    """Updates of q, k and v in factors that the blocks share.

    The shared factors are held by the first chosen block (of each width), where training begins.

    Attributes:
        rank: of all factors.
        scale: of the update.
        form: tensor train or Tucker.
        slices: which of q, k and v.
    """

    summary: ClassVar[str] = "updates of q and v in factors shared by all blocks"
    changes: ClassVar[frozenset[str]] = LINEARS

    rank: int = knob(16, help="rank of the factors", low=1)
    scale: float = knob(1.0, help="scale of the update", above=0)
    form: Literal["tt", "tucker"] = knob("tt", help="tensor train or Tucker decomposition")
    slices: tuple[Literal["q", "k", "v"], ...] = knob(("q", "v"), help="which of q, k, v")

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

    def inject(self, sam: Sam, sites: Sequence[BlockSite]) -> None:
        """Hang ``fact`` on every qkv."""
        from samadapt.methods._attached import attach
        from samadapt.methods._fact import Factors, FactorUpdate, add_update

        shared: dict[int, Factors] = {}
        for site in sites:
            owns = site.width not in shared
            factors = shared.setdefault(
                site.width, Factors(site.width, self.rank, tucker=self.form == "tucker")
            )
            groups = site.heads if site.qkv_order == "head_qkv" else 1
            update = FactorUpdate(factors, self.slices, groups, self.scale, owns=owns)
            attach(sam.get_submodule(site.qkv), "fact", update, add_update)

    def formula(self, sam: Sam, sites: Sequence[BlockSite]) -> int:
        """Return the shared factors of each width, and the slices' own."""
        del sam
        tucker, rank = self.form == "tucker", self.rank
        shared = sum(2 * width * rank + tucker * rank**3 for width in {s.width for s in sites})
        return shared + len(sites) * len(self.slices) * rank ** (1 if tucker else 2)

    def merge(self, sam: Sam, sites: Sequence[BlockSite]) -> None:
        """Add every update to its qkv."""
        import torch

        from samadapt.methods._attached import detach

        with torch.no_grad():
            for site in sites:
                qkv: Any = sam.get_submodule(site.qkv)
                qkv.weight.add_(qkv.fact.dense())
        for site in sites:
            detach(sam.get_submodule(site.qkv), "fact")
