"""The method AdaLoRA (Zhang et al. 2023): LoRA as a singular value decomposition, and pruning.

"Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning". The peft library adds the
orthogonality penalty and prunes only inside its own model class and trainer. Here ``penalty`` and
``after_step`` do both in any training loop. Pruned directions stay in the file as zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import register, require
from samadapt.methods.peft_method import LinearMethod
from samadapt.system.settings import Whole

if TYPE_CHECKING:
    from torch import Tensor, nn


@register("adalora")
@dataclass(frozen=True)
class AdaLoRA(LinearMethod):
    """``W + alpha / first_rank B E A`` with a diagonal E, whose least important entries become 0.

    The mean rank of a linear falls from ``first_rank`` to ``rank`` along a cubic. This begins after
    the share ``hold`` of all steps and ends when the share ``settle`` is left. A checkpoint
    holds the importances.

    Attributes:
        rank: mean rank at the end.
        first_rank: rank of every linear at the start.
        alpha: None means ``first_rank``, a scale of 1.
        hold: share of the steps before pruning begins.
        settle: share of the steps after it ends.
        orthogonality: weight of the penalty that keeps the rows of A and columns of B orthogonal.
    """

    summary: ClassVar[str] = "LoRA whose ranks move to where they matter during training"
    lr: ClassVar[float] = 3e-4
    kind: ClassVar[str] = "ADALORA"
    state_copies: ClassVar[int] = 2

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

    def check_options(self) -> None:
        """Check ranks and schedule."""
        require(
            self.first_rank > self.rank,
            f"peft.first_rank must exceed peft.rank {self.rank}; got {self.first_rank}",
        )
        require(
            self.hold + self.settle < 1,
            f"peft.hold and peft.settle must be shares of the steps with a sum below 1; "
            f"got {self.hold!r} and {self.settle!r}",
        )

    def arguments(self) -> Mapping[str, Any]:
        """Return peft's arguments; ``total_step`` is a placeholder, see ``after_step``."""
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
        # E has one entry for each direction.
        return self.first_rank * (inputs + outputs + 1)

    def penalty(self, sam: nn.Module) -> Tensor | float:
        """Return the weighted mean distance of A A^T and B^T B from the identity matrix."""
        import torch

        from samadapt.methods.adalora_layer import is_part

        distances = []
        for name, parameter in sam.named_parameters():
            if is_part(name, "AB"):
                # A (rank, inputs) has orthogonal rows, B (outputs, rank) orthogonal columns.
                rows = parameter if is_part(name, "A") else parameter.t()
                unit = torch.eye(len(rows), device=rows.device, dtype=rows.dtype)
                # The norm is not squared, as in peft.
                distances.append(torch.linalg.matrix_norm(rows @ rows.t() - unit))
        return self.orthogonality * torch.stack(distances).mean() if distances else 0.0

    def after_step(self, sam: nn.Module, step: int, total: int) -> None:
        """Update the importances and set the least important directions to zero."""
        from samadapt.methods.adalora_layer import allocate

        start, settle = int(self.hold * total), int(self.settle * total)
        allocate(sam, self.first_rank, self.rank, step, total, start=start, settle=settle)

    def state_dict(self, sam: nn.Module) -> dict[str, Tensor]:
        """Return the running means of the importances, and which directions are kept."""
        from samadapt.methods.adalora_layer import allocator_state

        return allocator_state(sam)

    def load_state_dict(self, sam: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Restore the importances. Without a state they start anew.

        Raises:
            ValueError: when the tensors do not fit the parameters.
        """
        from samadapt.methods.adalora_layer import restore_allocator

        restore_allocator(sam, self.first_rank, self.rank, state)
