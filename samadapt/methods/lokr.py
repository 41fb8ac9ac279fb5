"""LoKr (Edalati et al. 2022; LyCORIS, Yeh et al. 2023): the update is a Kronecker product.

"KronA: Parameter Efficient Tuning with Kronecker Adapter" and "Navigating Text-To-Image
Customization: From LyCORIS Fine-Tuning to Model Evaluation".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import register, require
from samadapt.methods.peft_method import LinearMethod
from samadapt.system.settings import Whole


@register("lokr")
@dataclass(frozen=True)
class LoKr(LinearMethod):
    """``W + alpha / rank C (x) (B A)``; the second factor is a full matrix if that is smaller.

    Attributes:
        rank: rank of the larger factor B A.
        alpha: None means ``rank``, a scale of 1.
        factor: side of the small factor C; -1 splits every side near its square root.
    """

    takes_quantized: ClassVar[bool] = False  # peft takes the shape of the update from them
    summary: ClassVar[str] = "Kronecker products of a small and a low-rank matrix"
    lr: ClassVar[float] = 1e-3
    kind: ClassVar[str] = "LOKR"

    rank: Whole = Field(default=4, description="rank of the larger factor", ge=1)
    alpha: float | None = Field(
        default=None, description="scale is alpha / rank; null: alpha = rank", gt=0
    )
    factor: Whole = Field(
        default=-1, description="side of the small factor; -1: near the square root", ge=-1
    )

    def check_options(self) -> None:
        """Check factor, which may be -1 but not 0."""
        require(
            self.factor != 0,
            f"peft.factor must be -1 or an integer of at least 1; got {self.factor!r}",
        )

    def arguments(self) -> Mapping[str, Any]:
        """Return rank, alpha and factor."""
        alpha = self.rank if self.alpha is None else self.alpha
        return {"r": self.rank, "alpha": alpha, "decompose_factor": self.factor}

    def size(self, inputs: int, outputs: int) -> int:
        """Return the sizes of both factors; the larger one has low rank if that is smaller."""
        from peft.tuners.lokr.layer import factorization

        in_small, in_large = factorization(inputs, self.factor)
        out_small, out_large = factorization(outputs, self.factor)
        # peft's own rule (LoKrLayer): the large factor is in factors only below this rank.
        low = self.rank < max(out_large, in_large) / 2
        large = self.rank * (out_large + in_large) if low else out_large * in_large
        return int(out_small * in_small + large)
