"""LoHa (Hyeon-Woo et al. 2021): the update is the elementwise product of two low-rank matrices.

"FedPara: Low-rank Hadamard Product for Communication-Efficient Federated Learning". LyCORIS (Yeh et
al. 2023) brought it to adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import register
from samadapt.methods.peft_method import LinearMethod
from samadapt.system.settings import Whole


@register("loha")
@dataclass(frozen=True)
class LoHa(LinearMethod):
    """``W + alpha / rank (B1 A1) * (B2 A2)``, an update whose rank can reach ``rank ** 2``.

    Attributes:
        rank: rank of each of the two factors.
        alpha: None means ``rank``, a scale of 1.
    """

    takes_quantized: ClassVar[bool] = False  # peft takes the shape of the update from them
    summary: ClassVar[str] = "updates of high rank: the elementwise product of two low-rank ones"
    lr: ClassVar[float] = 3e-2
    kind: ClassVar[str] = "LOHA"

    rank: Whole = Field(default=4, description="rank of each of the two factors", ge=1)
    alpha: float | None = Field(
        default=None, description="scale is alpha / rank; null: alpha = rank", gt=0
    )

    def arguments(self) -> Mapping[str, Any]:
        """Return rank and alpha."""
        return {"r": self.rank, "alpha": self.rank if self.alpha is None else self.alpha}

    def size(self, inputs: int, outputs: int) -> int:
        """Return 2 * rank * (inputs + outputs)."""
        return 2 * self.rank * (inputs + outputs)
