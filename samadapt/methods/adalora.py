"""AdaLoRA (Zhang et al. 2023): LoRA as a singular value decomposition whose ranks are pruned.

"Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning". peft adds the orthogonality
penalty and moves the ranks only inside its own model and trainer; here ``penalty`` and
``after_step`` do it in any training. The pruned directions stay in the file, as zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import register, require, require_count
from samadapt.methods.peft_method import LinearMethod, require_alpha
from samadapt.system.settings import Whole

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.sam.model import Sam


@register("adalora")
@dataclass(frozen=True)
class AdaLoRA(LinearMethod):
    """``W + alpha / first_rank B E A``, with a diagonal E of which the least important are zeroed.

    The sum of the ranks falls by a cubic from ``first_rank`` to ``rank`` a linear, from ``hold`` of
    all steps on until ``settle`` of them are left. A resumed run gathers the importances anew.

    Attributes:
        rank: mean rank at the end.
        first_rank: rank of every linear at the start.
        alpha: None is ``first_rank``, a scale of 1.
        hold: share of the steps before pruning begins.
        settle: share of the steps after it ends.
        orthogonality: weight of the penalty on A and B that are not orthogonal.
    """

    summary: ClassVar[str] = "LoRA whose ranks move to where they matter during training"
    lr: ClassVar[float] = 3e-4
    kind: ClassVar[str] = "ADALORA"

    rank: Whole = Field(default=4, description="mean rank at the end", ge=1)
    first_rank: Whole = Field(default=8, description="rank of every linear at the start", ge=2)
    alpha: float | None = Field(
        default=None, description="scale is alpha / first_rank; null: alpha = first_rank", gt=0
    )
    hold: float = Field(default=0.1, description="share of the steps before pruning", ge=0, lt=1)
    settle: float = Field(default=0.3, description="share of the steps after pruning", ge=0, lt=1)
    orthogonality: float = Field(
        default=0.1, description="weight of the orthogonality penalty", ge=0
    )

    def validate(self) -> None:
        """Check ranks, alpha and schedule."""
        require_count("rank", self.rank)
        require_count("first_rank", self.first_rank)
        require(
            self.first_rank > self.rank,
            f"peft.first_rank must exceed peft.rank {self.rank}; got {self.first_rank}",
        )
        require_alpha(self.alpha)
        require(
            self.hold >= 0 and self.settle >= 0 and self.hold + self.settle < 1,
            f"peft.hold and peft.settle must be shares of the steps with a sum below 1; "
            f"got {self.hold!r} and {self.settle!r}",
        )
        require(
            self.orthogonality >= 0,
            f"peft.orthogonality must be at least 0; got {self.orthogonality!r}",
        )

    def arguments(self) -> Mapping[str, Any]:
        """Return peft's arguments; the real number of steps is known only in training."""
        alpha = self.first_rank if self.alpha is None else self.alpha
        return {
            "init_r": self.first_rank,
            "target_r": self.rank,
            "lora_alpha": alpha,
            "total_step": 1,
            "orth_reg_weight": self.orthogonality,
        }

    def size(self, inputs: int, outputs: int) -> int:
        """Return first_rank * (inputs + outputs + 1)."""
        return self.first_rank * (inputs + outputs + 1)

    def penalty(self, sam: Sam) -> Tensor | float:
        """Return the mean distance of A A^T and B^T B from the identity, weighted."""
        import torch

        from samadapt.methods.adalora_layer import is_part

        distances = []
        for name, parameter in sam.named_parameters():
            if is_part(name, "AB"):
                rows = parameter if is_part(name, "A") else parameter.t()
                unit = torch.eye(len(rows), device=rows.device, dtype=rows.dtype)
                distances.append(torch.linalg.matrix_norm(rows @ rows.t() - unit))
        return self.orthogonality * torch.stack(distances).mean() if distances else 0.0

    def after_step(self, sam: Sam, step: int, total: int) -> None:
        """Gather importances and zero the least important directions."""
        from samadapt.methods.adalora_layer import allocate

        start, settle = int(self.hold * total), int(self.settle * total)
        allocate(sam, self.first_rank, self.rank, step, total, start=start, settle=settle)
