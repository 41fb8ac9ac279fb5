"""Sums of tensors over the processes of a run; with a single process they are its own tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from samadapt.system import processes


def total(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes.

    Its gradient is that of the own values alone. If every process uses the sum in the same way, the
    gradients of all processes add up to the gradient of one process that has all values.
    """
    if processes.count() == 1:
        return values
    summed: Tensor = _Total.apply(values)
    return summed


def own_part(value: Tensor) -> Tensor:
    """Return a number that all processes computed alike, as this one's part in a sum over all.

    The parts add up to the number, and their gradients to its gradient.
    """
    count = processes.count()
    return value if count == 1 else value - value.detach() * (1 - 1 / count)


def add_up(tensor: Tensor) -> None:
    """Replace a tensor, on any device, by its sum over all processes.

    Raises:
        RunError: another process ended.
    """
    if processes.count() > 1:
        with processes.lost_others():
            distributed.all_reduce(tensor)


class _Total(torch.autograd.Function):
    """The sum over all processes, whose gradient goes to the own values."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        """Return the sum."""
        summed = own.detach().clone()
        add_up(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient of the own values."""
        return gradient
