"""Sums of tensors over all processes of a run, and over the parts of a batch that is too large.

With a single process and a batch in one part, a sum is the tensor itself.

A part of a batch needs sums over the other parts, which come later. So all parts go through the
loss twice: ``PartSums.recorded`` keeps what each would add, and ``PartSums.replayed`` gives every
part the sums of all, where only its own values carry a gradient. This is what happens between
processes too, which lie side by side and not one after another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

from samadapt.system import processes


class PartSums:
    """The sums that the parts of one batch need of each other.

    Args:
        parts: number of parts.
    """

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self._kept: list[list[Tensor]] = [[] for _ in range(parts)]
        self._all: list[Tensor] = []
        self._part, self._next, self._replays = 0, 0, False

    @contextmanager
    def recorded(self, part: int) -> Iterator[None]:
        """Keep what a part adds to each sum; the losses in this block mean nothing."""
        with self._active(part, replays=False):
            yield

    @contextmanager
    def replayed(self, part: int) -> Iterator[None]:
        """Give a part the sums over all parts; all of them must have been recorded."""
        if not self._all:
            self._all = [sum(kept[1:], kept[0]) for kept in zip(*self._kept, strict=True)]
            for summed in self._all:
                add_up(summed)
        with self._active(part, replays=True):
            yield

    @contextmanager
    def _active(self, part: int, *, replays: bool) -> Iterator[None]:
        self._part, self._next, self._replays = part, 0, replays
        _ACTIVE.append(self)
        try:
            yield
        finally:
            _ACTIVE.remove(self)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all parts, or keep it for that."""
        if not self._replays:
            self._kept[self._part].append(values.detach().clone())
            return values
        number, self._next = self._next, self._next + 1
        return values + (self._all[number] - self._kept[self._part][number])


_ACTIVE: list[PartSums] = []
"""The parts of the batch that is learnt at the moment; empty if it is learnt as a whole."""


def total(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, and over all parts of a batch.

    Its gradient is that of the own values alone. If every process uses the sum in the same way, the
    gradients of all processes add up to the gradient of one process that has all values.
    """
    if _ACTIVE:
        return _ACTIVE[-1].total(values)
    if processes.count() == 1:
        return values
    summed: Tensor = _Total.apply(values)
    return summed


def own_part(value: Tensor) -> Tensor:
    """Return a number that all processes and parts computed alike, as this one's part in a sum.

    The parts add up to the number, and their gradients to its gradient.
    """
    count = processes.count() * (_ACTIVE[-1].parts if _ACTIVE else 1)
    return value if count == 1 else value - value.detach() * (1 - 1 / count)


def add_up(tensor: Tensor) -> None:
    """Replace a tensor, on any device, by its sum over all processes.

    Raises:
        RunError: another process ended.
    """
    if processes.count() == 1:
        return
    with processes.lost_others():
        if tensor.device.type == "cpu" or distributed.get_backend() != "gloo":
            distributed.all_reduce(tensor)
            return
        # gloo alone knows no GPU, such as that of a Mac.
        copy = tensor.cpu()
        distributed.all_reduce(copy)
        tensor.copy_(copy)


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
