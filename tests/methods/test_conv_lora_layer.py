"""Conv-LoRA's update is a gated convolution between its two factors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from samadapt.adapters.injection import inject
from samadapt.errors import ConfigError
from samadapt.methods import METHODS
from samadapt.sam import tiny_vit_blocks_fast


def test_the_update_is_a_gated_convolution(tiny_sam, perturb):
    perturb(inject(tiny_sam, METHODS["conv_lora"](rank=3, alpha=6, experts=4)))
    qkv = tiny_sam.get_submodule(tiny_sam.attention_blocks()[0].qkv)
    update = qkv.conv_lora
    x = torch.randn(6, 5, 7, qkv.in_features)
    chosen = set()
    for image, found in zip(x, qkv(x), strict=True):
        z = image @ update.a.weight.T
        shares = torch.softmax(z.mean((0, 1)) @ update.gate.weight.T, 0)
        best = int(shares.argmax())
        chosen.add(best)
        planes = z.permute(2, 0, 1)[None]
        if best:
            planes = functional.interpolate(planes, scale_factor=best + 1, mode="bilinear")
        planes = functional.gelu(functional.conv2d(planes, update.kernels[best], padding=1))
        back = functional.interpolate(planes, (5, 7), mode="bilinear")[0].permute(1, 2, 0)
        expected = image @ qkv.weight.T + qkv.bias
        expected += 2 * (z + shares[best] * back) @ update.b.weight.T
        torch.testing.assert_close(found, expected)
    assert len(chosen) > 1, "one expert alone shows nothing of the choice"


def test_a_cell_beyond_the_edge_stays_the_bias(tiny_sam, perturb):
    perturb(inject(tiny_sam, METHODS["conv_lora"]()))
    qkv = tiny_sam.get_submodule(tiny_sam.attention_blocks()[0].qkv)
    assert torch.equal(qkv(torch.zeros(1, 1, 1, qkv.in_features))[0, 0, 0], qkv.bias)


def test_the_gate_learns_from_the_loss(tiny_sam, perturb, predict):
    """A share of one, as in the authors' code, would give it no gradient."""
    perturb(inject(tiny_sam, METHODS["conv_lora"]()))
    predict(tiny_sam).square().mean().backward()
    gate = tiny_sam.get_submodule(tiny_sam.attention_blocks()[0].qkv).conv_lora.gate.weight
    assert gate.grad.abs().max() > 0


def test_convolutions_stay_within_the_windows_of_tiny_vit(tiny_t_sam, perturb):
    perturb(inject(tiny_t_sam, METHODS["conv_lora"](experts=3)))
    site = tiny_t_sam.attention_blocks()[0]
    qkv = tiny_t_sam.get_submodule(site.qkv)
    x = torch.randn(2, 6, 5, site.width)  # windows of 3, the last ones cut
    alone = qkv(x[:, 3:, :3])
    torch.testing.assert_close(qkv(x)[:, 3:, :3], alone)
    plain = x @ qkv.weight.T + qkv.bias
    assert (alone - plain[:, 3:, :3]).abs().max() > 1e-2
    cell = torch.randn(site.width)
    assert torch.equal(qkv(cell), torch.nn.functional.linear(cell, qkv.weight, qkv.bias))


@torch.no_grad()
def test_tiny_vit_in_parts_gives_the_same_embedding(tiny_t_sam, perturb, monkeypatch):
    perturb(inject(tiny_t_sam, METHODS["conv_lora"]()))
    images = torch.randn(2, 3, 64, 64)
    whole = tiny_t_sam.encode(images)
    monkeypatch.setattr(tiny_vit_blocks_fast, "PART_PER_THREAD", 1)
    torch.testing.assert_close(tiny_t_sam.encode(images), whole)


@pytest.mark.parametrize("key", ["rank", "alpha", "experts"])
def test_wrong_options_are_refused(key):
    with pytest.raises(ConfigError, match=rf"peft\.{key}.*got 0"):
        METHODS["conv_lora"](**{key: 0})
