"""SSF scales and shifts the output of every layer, and merges into the weights."""

from __future__ import annotations

import copy

import torch

from samadapt.adapters.injection import inject
from samadapt.adapters.store import merge_adapter
from samadapt.methods import METHODS

WIDTHS = 11  # output channels of a block's layers, in widths: 1 + 3 + 1 + 1 + 4 + 1


def test_every_layer_is_scaled_and_shifted(tiny_sam, perturb):
    perturb(inject(tiny_sam, METHODS["ssf"]()))
    block = tiny_sam.get_submodule(tiny_sam.attention_blocks()[0].block)
    x = torch.randn(2, 8, 8, tiny_sam.build.embed_dim)

    def plain(layer, value):
        if isinstance(layer, torch.nn.Linear):
            value = value @ layer.weight.T + layer.bias
        else:
            mean, var = value.mean(-1, keepdim=True), value.var(-1, correction=0, keepdim=True)
            value = (value - mean) / (var + layer.eps).sqrt() * layer.weight + layer.bias
        assert not torch.equal(layer.ssf.scale, torch.ones_like(layer.ssf.scale))
        return value * layer.ssf.scale + layer.ssf.shift

    layers = (block.norm1, block.attn.qkv, block.attn.proj, block.norm2, block.mlp.lin1)
    for layer in layers:
        torch.testing.assert_close(layer(x), plain(layer, x))
    hidden = torch.randn(3, block.mlp.lin2.in_features)
    torch.testing.assert_close(block.mlp.lin2(hidden), plain(block.mlp.lin2, hidden))


def test_tiny_vits_padding_is_scaled_like_every_other_cell(tiny_t_sam, perturb):
    """Windows that do not divide the image: a padded cell is the attention norm's bias."""
    perturb(inject(tiny_t_sam, METHODS["ssf"]()))
    site = tiny_t_sam.attention_blocks()[0]
    attn = tiny_t_sam.get_submodule(site.attn)
    x = torch.randn(1, attn.window + 1, attn.window + 2, site.width)
    by_hand, change = copy.deepcopy(attn), attn.qkv.ssf_norm
    by_hand.norm.weight.data *= change.scale
    by_hand.norm.bias.data = by_hand.norm.bias.data * change.scale + change.shift
    with torch.no_grad():
        by_hand.qkv.ssf_norm.scale.fill_(1)
        by_hand.qkv.ssf_norm.shift.zero_()
        torch.testing.assert_close(attn(x), by_hand(x))
        by_hand.norm.bias.zero_()  # of cells and padding
        assert (attn(x) - by_hand(x)).abs().max() > 1e-3


def test_a_copy_is_merged_and_the_model_is_not(fresh, perturb, predict):
    sam = fresh()
    injection = inject(sam, METHODS["ssf"]())
    perturb(injection)
    before, copied = predict(sam), copy.deepcopy(sam)
    merge_adapter(copied, injection)
    assert torch.equal(predict(sam), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in copied.modules())


def test_what_it_trains(tiny_sam):
    injection = inject(tiny_sam, METHODS["ssf"](blocks="last:1", decoder="frozen"))
    assert injection.trainable == 2 * WIDTHS * tiny_sam.build.embed_dim


def test_under_autocast_the_output_stays_in_bf16(tiny_sam):
    inject(tiny_sam, METHODS["ssf"]())
    layer = tiny_sam.get_submodule(tiny_sam.attention_blocks()[0].qkv)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, layer.in_features)).dtype == torch.bfloat16
