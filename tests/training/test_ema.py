"""The moving average of the weights: its rule, its type, and that it leaves the weights alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from samadapt.training.ema import averaged, start_averages, update_averages, warmed_up


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    return {name: nn.Parameter(torch.randn(3, 2).to(dtype)) for name in ("a", "b")}


def test_the_decay_warms_up():
    assert warmed_up(0.99, 1) == 2 / 11
    assert warmed_up(0.99, 10) == 11 / 20
    assert warmed_up(0.99, 10_000) == 0.99
    assert warmed_up(0.1, 1) == 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_follows_the_rule_in_float32(dtype):
    weights = parameters(dtype)
    averages = start_averages(weights, {})
    expected = {name: value.detach().float() for name, value in weights.items()}
    for number in range(1, 30):
        with torch.no_grad():
            for value in weights.values():
                value.add_(0.1 * number)
        update_averages(averages, weights, 0.9, number)
        decay = min(0.9, (1 + number) / (10 + number))
        for name, value in weights.items():
            expected[name] = decay * expected[name] + (1 - decay) * value.detach().float()
    for name, average in averages.items():
        assert average.dtype == torch.float32
        torch.testing.assert_close(average, expected[name])
        assert (average < weights[name].float() - 0.1).all()  # it lags behind


def test_weights_come_back_bit_equal_even_after_an_error():
    weights = parameters()
    averages = {name: value.detach() + 1 for name, value in weights.items()}
    before = {name: value.detach().clone() for name, value in weights.items()}

    def fail():
        assert all(torch.equal(weights[name], averages[name]) for name in weights)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), averaged(weights, averages):
        fail()
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    assert all(value.requires_grad for value in weights.values())


def test_saved_averages_are_continued_and_copied():
    weights = parameters()
    saved = {name: value.detach() + 2 for name, value in weights.items()}
    averages = start_averages(weights, saved)
    assert all(torch.equal(averages[name], saved[name]) for name in weights)
    update_averages(averages, weights, 0.5, 100)
    assert all(torch.equal(saved[name], weights[name].detach() + 2) for name in weights)


def test_without_averages_nothing_happens():
    weights = parameters()
    before = {name: value.detach().clone() for name, value in weights.items()}
    update_averages({}, weights, 0.9, 1)
    with averaged(weights, {}):
        assert all(torch.equal(weights[name], before[name]) for name in weights)
