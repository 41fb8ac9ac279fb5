"""The modules of FacT, the formula of ``fact.py``: shared factors, and the update of one linear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from samadapt.methods.qkv_layer import QKV


class Factors(nn.Module):
    """Shared factors: U (rank, inputs), V (rows, rank), and for Tucker the core (rank,) * 3."""

    def __init__(self, inputs: int, rows: int, rank: int, *, tucker: bool) -> None:
        super().__init__()
        self.u = nn.Parameter(nn.Linear(inputs, rank, bias=False).weight.detach())
        self.v = nn.Parameter(nn.Linear(rank, rows, bias=False).weight.detach())
        core = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, rank, rank)))
        self.register_parameter("core", core if tucker else None)


class FactorUpdate(nn.Module):
    """The update of a fused qkv or of a plain linear; zero at the start.

    Args:
        factors: the factors shared with other linears; registered here if ``owns``.
        slices: some of ``"q"``, ``"k"``, ``"v"``; None: the linear is not a fused qkv.
        groups: 1 if the rows of qkv are ordered (q | k | v, head, channel); the number of heads if
            they are ordered (head, q | k | v, channel).
        scale: factor of the update.
        owns: whether this module holds the shared factors.
    """

    def __init__(
        self,
        factors: Factors,
        slices: Sequence[str] | None,
        groups: int,
        scale: float,
        *,
        owns: bool,
    ) -> None:
        super().__init__()
        rank = len(factors.u)
        self._rows = [0] if slices is None else [QKV.index(name) for name in slices]
        self._parts = 1 if slices is None else len(QKV)
        # S_i itself in a tensor train; in Tucker form the coefficients of the core's matrices
        own = (rank, rank) if factors.core is None else (rank,)
        self.own = nn.Parameter(torch.zeros(len(self._rows), *own))
        if owns:
            self.factors = factors
        self._shared = (
            factors,
        )  # a tuple, so that torch does not register the module a second time
        self._groups, self._scale = groups, scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the change of the linear's output for x (..., inputs)."""
        return functional.linear(functional.linear(x, self._shared[0].u), self._rest())

    def dense(self) -> Tensor:
        """Return the update of the weight, (outputs, inputs)."""
        return self._rest() @ self._shared[0].u

    def _rest(self) -> Tensor:
        """Return ``scale * V S_i`` of all slices in the order of the rows (outputs, rank)."""
        factors = self._shared[0]
        inner: Tensor = self.own
        if factors.core is not None:
            # Tucker: S_i is the sum over p of coefficient (i, p) times matrix p of the core.
            inner = torch.einsum("sp,pij->sij", self.own, factors.core)
        products = self._scale * (factors.v @ inner)
        rows = products.new_zeros(self._parts, *products.shape[1:])
        rows[self._rows] = products
        rank = rows.shape[-1]
        # (q | k | v, head x channel) -> (head, q | k | v, channel) if groups is the number of heads
        return rows.reshape(self._parts, self._groups, -1, rank).transpose(0, 1).reshape(-1, rank)


def add_update(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Add the update to the linear's output; a forward hook."""
    change: Tensor = module.fact(inputs[0])
    return output + change
