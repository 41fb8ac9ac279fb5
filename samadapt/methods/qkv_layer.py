"""The B of a LoRA that updates only some of q, k and v of a fused projection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from samadapt.errors import AdapterError
from samadapt.methods.matrix_layer import MatrixLayer

QKV = ("q", "k", "v")


class SlicedProjection(MatrixLayer):
    """A block-structured B that holds and trains only its non-zero blocks.

    For slices q and v, B has this form, with the rows in the order (q | k | v, head, channel)::

                 rank  rank
        q rows [  B_q   0   ]  width
        k rows [   0    0   ]  width
        v rows [   0   B_v  ]  width

    In TinyViT the rows are ordered (head, q | k | v, channel) instead. In a state dict, and through
    ``weight``, this module is the dense matrix, so peft's own merge, save and load see a plain
    LoRA.

    Args:
        slices: some of ``"q"``, ``"k"``, ``"v"``, in the order of the stacked A.
        rank: rank of each slice.
        width: number of rows of one slice.
        groups: 1 if the rows are ordered (q | k | v, head, channel); the number of heads if they
            are ordered (head, q | k | v, channel).
        like: a tensor with the wanted device and dtype.
    """

    def __init__(
        self, slices: Sequence[str], rank: int, width: int, groups: int, like: Tensor
    ) -> None:
        super().__init__()
        self.rows = tuple(QKV.index(name) for name in slices)
        self.rank, self.width, self.groups = rank, width, groups
        zeros = torch.zeros(len(slices), width, rank, device=like.device, dtype=like.dtype)
        self.blocks = nn.Parameter(zeros)

    @property
    def weight(self) -> Tensor:
        """The dense matrix (3 width, n rank)."""
        count = len(self.rows)
        # (q | k | v, row, slice of A, rank)
        dense = self.blocks.new_zeros(3, self.width, count, self.rank)
        for i, row in enumerate(self.rows):
            dense[row, :, i] = self.blocks[i]
        # (3, width, n rank) -> (3, groups, channels, n rank) -> (groups, 3, channels, n rank)
        return (
            dense.reshape(3, self.groups, -1, count * self.rank)
            .transpose(0, 1)
            .reshape(3 * self.width, count * self.rank)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n rank) to (..., 3 width)."""
        return functional.linear(x, self.weight)

    def load_weight(self, weight: Tensor) -> None:
        """Load the blocks from a dense matrix (3 width, n rank).

        Raises:
            AdapterError: when the matrix is not zero outside the blocks.
        """
        # The inverse of ``weight``: first the rows in the order q | k | v, then the columns.
        count = len(self.rows)
        grid = weight.reshape(self.groups, 3, -1, count, self.rank).transpose(0, 1)
        grid = grid.reshape(3, self.width, count, self.rank)
        blocks = torch.stack([grid[row, :, i] for i, row in enumerate(self.rows)])
        # With equal counts, everything outside of the blocks is zero.
        if torch.count_nonzero(grid) != torch.count_nonzero(blocks):
            raise AdapterError(
                "lora_B has values outside the chosen slices of qkv; expected zeros there. "
                "Was it trained with other slices, or for a model whose rows have another order?"
            )
        with torch.no_grad():
            self.blocks.copy_(blocks)
