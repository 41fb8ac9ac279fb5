"""The exponential moving average (EMA) of the trained weights.

The weights jump from step to step, most of all with few labelled images. Their average over the
last steps often scores better and varies less. It is what validations score and what the adapter
keeps; training itself goes on with the weights as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

if TYPE_CHECKING:
    from torch import nn


def start_averages(
    parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the averages that training begins with: those saved, or else the weights themselves.

    They are float32, whatever the parameters are: small steps would vanish in bf16.
    """
    return {
        name: saved.get(name, parameter).detach().to(parameter.device, torch.float32, copy=True)
        for name, parameter in parameters.items()
    }


def warmed_up(decay: float, updates: int) -> float:
    """Return the decay of an update: ``min(decay, (1 + updates) / (10 + updates))``.

    A long average would hold the untrained weights for too long, so the first ones are short. The
    rule is that of TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``.

    Args:
        decay: the decay after the warm-up, 0 to 1.
        updates: number of this update, from 1 on.
    """
    return min(decay, (1 + updates) / (10 + updates))


def update_averages(
    averages: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    decay: float,
    updates: int,
) -> None:
    """Move the averages towards the weights after a step; without averages nothing happens.

    Args:
        averages: by name of the parameter; changed in place. Empty: there are none.
        parameters: the weights after the step.
        decay: as in ``warmed_up``.
        updates: number of steps that changed the weights, with this one.
    """
    if averages:
        now = [parameters[name].detach().float() for name in averages]
        get_ema_multi_avg_fn(warmed_up(decay, updates))(list(averages.values()), now, updates)


@contextmanager
def averaged(
    parameters: Mapping[str, nn.Parameter], averages: Mapping[str, Tensor]
) -> Iterator[None]:
    """Put the averages into the model while the block runs; without averages nothing happens."""
    kept = {name: parameters[name].detach().clone() for name in averages}
    with torch.no_grad():
        for name, average in averages.items():
            parameters[name].copy_(average)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weights in kept.items():
                parameters[name].copy_(weights)
