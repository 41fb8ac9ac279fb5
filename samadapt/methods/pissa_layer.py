"""The matrices of PiSSA (``pissa.py``): a trained half, and a frozen one that subtracts the start.

In a state dict, and through ``weight``, the two halves are one matrix, so peft's own merge, save
and load see a plain LoRA of twice the rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from samadapt.errors import ConfigError
from samadapt.methods.matrix_layer import MatrixLayer
from samadapt.methods.peft_library import ADAPTER


class Paired(MatrixLayer):
    """A or B of a LoRA whose first half along one axis is trained and whose second half is frozen.

    Args:
        trained: initial values of the trained half.
        frozen: the frozen half.
        dim: axis along which ``weight`` joins the halves: 0 for A, 1 for B.
    """

    frozen: Tensor

    def __init__(self, trained: Tensor, frozen: Tensor, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.trained = nn.Parameter(trained.clone())
        self.register_buffer("frozen", frozen.clone(), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The joined matrix."""
        return torch.cat([self.trained, self.frozen], dim=self.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x by ``weight``, each half separately, so that equal halves cancel exactly."""
        if self.dim == 0:
            return torch.cat(
                [functional.linear(x, self.trained), functional.linear(x, self.frozen)], dim=-1
            )
        # Copies give both halves one memory layout, so that their products round alike and cancel.
        own, start = (half.contiguous() for half in x.chunk(2, dim=-1))
        return functional.linear(own, self.trained) + functional.linear(start, self.frozen)

    def load_weight(self, weight: Tensor) -> None:
        """Load both halves from the joined matrix."""
        trained, frozen = weight.chunk(2, dim=self.dim)
        with torch.no_grad():
            self.trained.copy_(trained)
            self.frozen.copy_(frozen)


def pair(layer: LoraLayer, rank: int, name: str) -> None:
    """Start a LoRA layer of twice the rank at the first singular directions of its linear.

    Raises:
        ConfigError: when the linear has fewer directions than ``rank``.
    """
    base: Any = layer.get_base_layer()
    weight = base.weight.detach()
    if rank > min(weight.shape):
        raise ConfigError(f"peft.rank {rank} exceeds the smaller side of {name}: {weight.shape}")
    u, values, v = torch.linalg.svd(weight.float(), full_matrices=False)
    # W is close to U S V. With B0 = U sqrt(S) and A0 = sqrt(S) V, the product scale * B0 A0 is it.
    root = (values[:rank] / layer.scaling[ADAPTER]).sqrt()
    a = (root[:, None] * v[:rank]).to(weight.dtype)
    b = (u[:, :rank] * root).to(weight.dtype)
    # The frozen half of B has the other sign, so that the start adds up to zero.
    layer.lora_A[ADAPTER] = Paired(a, a, dim=0)
    layer.lora_B[ADAPTER] = Paired(b, -b, dim=1)
