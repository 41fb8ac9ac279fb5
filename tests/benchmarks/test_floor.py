"""What the floor counts as a product, with which operands."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks import floor
from benchmarks.harness import Timed


def shapes(call):
    """Watch a call: (function, sizes of the operands) with how often."""
    with floor.Watcher() as watcher:
        call()
    found = Counter()
    for (function, args, _), count in watcher.counts.items():
        sizes = tuple(s[1] for s in args if isinstance(s, tuple) and s[:1] == ("tensor",))
        found[str(function), sizes] += count
    return found


def test_a_linear_is_its_product_without_the_bias():
    linear, x = nn.Linear(5, 7), torch.randn(2, 3, 5)
    found = shapes(lambda: linear(linear(x)[..., :5]))
    assert found == {(str(torch.mm), ((6, 5), (5, 7))): 2}


def test_backward_counts_too():
    weight, x = torch.randn(5, 7), torch.randn(3, 5, requires_grad=True)
    found = shapes(lambda: (x @ weight).sum().backward())
    assert found == {
        (str(torch.mm), ((3, 5), (5, 7))): 1,
        (str(torch.mm), ((3, 7), (7, 5))): 1,
    }


def test_convolutions_and_fused_attention_are_taken_whole():
    x, kernel = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    q, mask = torch.randn(1, 2, 6, 4), torch.zeros(1, 2, 6, 6)

    def call():
        functional.conv2d(x, kernel, padding=1).relu()
        functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    with torch.no_grad():
        names = sorted(name for name, _ in shapes(call))
    assert names == [
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        "aten.convolution.default",
    ]


@pytest.mark.parametrize("build", ["encoder", "step"])
def test_every_product_of_ours_can_be_done_alone(build, tiny_t_sam, tiny_sam):
    def make():
        sam = tiny_t_sam if build == "encoder" else tiny_sam.requires_grad_(True)
        images = torch.randn(1, 3, sam.image_size, sam.image_size)

        def call():
            with torch.set_grad_enabled(build == "step"):
                found = sam.encode(images)
            if build == "step":
                found.sum().backward()

        return call

    alone = floor.products_alone(make)()
    assert isinstance(alone, Timed)
    assert 0 < alone.seconds < 10
