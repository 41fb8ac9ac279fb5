"""A toy loss and a short training that the tests of the methods share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from samadapt.adapters.injection import Injection
from samadapt.sam.model import Sam


@pytest.fixture
def loss(predict: Callable[..., Tensor]) -> Callable[[Sam], Tensor]:
    """``loss(sam)``: what ``train`` lowers."""

    def distance(sam: Sam) -> Tensor:
        chooser = getattr(sam.mask_decoder, "stable_mask", None)
        was_training = chooser is not None and chooser.training
        if chooser is not None:  # of SAM 2's single masks the one that trains, not the stable one
            chooser.train()
        output = predict(sam, 4).float()
        if chooser is not None:
            chooser.train(was_training)
        return (output - torch.linspace(-1, 1, len(output)).sin()).square().mean()

    return distance


@pytest.fixture
def train(loss: Callable[[Sam], Tensor]) -> Callable[[Sam, Injection, int], list[float]]:
    """``train(sam, injection, steps)``: 4 images, AdamW with weight decay, a fixed target."""

    def steps(sam: Sam, injection: Injection, count: int) -> list[float]:
        optimizer = torch.optim.AdamW(injection.parameters.values(), lr=5e-3, weight_decay=0.1)
        losses = []
        injection.set_training(sam)
        for step in range(count):
            value = loss(sam)
            optimizer.zero_grad()
            (value + injection.method.penalty(sam)).backward()
            optimizer.step()
            injection.method.after_step(sam, step + 1, 100)
            losses.append(value.item())
        injection.set_training(sam, False)
        return losses

    return steps
