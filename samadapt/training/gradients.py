"""Add up the gradients of all processes, once a step."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from samadapt.system import processes
from samadapt.system.collectives import add_up


def sum_over_processes(
    parameters: Collection[nn.Parameter], numbers: Sequence[float]
) -> list[float]:
    """Replace each gradient by its sum over all processes, and return the sums of some numbers.

    Everything goes through one tensor, so that a step waits for the network once. A parameter
    without a gradient counts as zero; it has none afterwards only if no process has one, so the
    optimizer leaves it alone as it does with a single process.

    Args:
        parameters: the trained parameters, in the same order in all processes.
        numbers: such as the process's part of the loss. NaN of one process gives NaN in all.

    Raises:
        RunError: another process ended.
    """
    if processes.count() == 1:
        return list(numbers)
    own = list(parameters)
    device = own[0].device
    # Sums of fp64 weights stay exact; all others are trained and summed in fp32.
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in own) else torch.float32
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
    present = torch.tensor([p.grad is not None for p in own], dtype=dtype, device=device)
    told = torch.tensor(list(numbers), dtype=dtype, device=device)
    flat = torch.cat([*(part.reshape(-1).to(dtype) for part in parts), present, told])
    add_up(flat)
    pieces = flat.split([*(p.numel() for p in own), len(own), len(told)])
    *gradients, present, told = pieces
    for parameter, summed, holders in zip(own, gradients, present.tolist(), strict=True):
        parameter.grad = _like(summed, parameter) if holders else None
    return [float(number) for number in told]


def digest(parameters: Collection[nn.Parameter]) -> str:
    """Return a hash of the values of some parameters, which is the same in all processes."""
    content = hashlib.sha256()
    for parameter in parameters:
        raw = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        content.update(raw.numpy().data)
    return content.hexdigest()


def _like(flat: Tensor, parameter: nn.Parameter) -> Tensor:
    return flat.view_as(parameter).to(parameter.dtype)
