"""The bottlenecks of the adapter method compute what the paper says."""

from __future__ import annotations

import copy

import pytest
import torch

from samadapt.adapters.injection import inject
from samadapt.errors import AdapterError, ConfigError
from samadapt.methods import METHODS
from samadapt.methods.adapter import Adapter


def test_the_bottlenecks_do_what_they_say(fresh, perturb):
    sam, plain = fresh(), fresh()
    site = sam.attention_blocks()[0]
    perturb(inject(sam, Adapter(scale=0.3, hidden=5)))
    mlp, before = sam.get_submodule(site.mlp), plain.get_submodule(site.mlp)
    x = torch.randn(2, 9, site.width)

    def bottleneck(module, value):
        down, up = module.bottleneck[0], module.bottleneck[2]
        return torch.nn.functional.gelu(value @ down.weight.T + down.bias) @ up.weight.T + up.bias

    seen = mlp.norm(x) if site.qkv_order == "head_qkv" else x  # TinyViT's norm is in its MLP
    torch.testing.assert_close(mlp(x), before(x) + 0.3 * bottleneck(mlp, seen))
    assert mlp.bottleneck[0].out_features == 5

    attn, before = sam.get_submodule(site.attn), plain.get_submodule(site.attn)
    x = x.reshape(2, 3, 3, site.width)
    torch.testing.assert_close(attn(x), before(x) + bottleneck(attn, before(x)))


def test_hidden_is_a_quarter_by_default(tiny_sam):
    inject(tiny_sam, Adapter())
    for site in tiny_sam.attention_blocks():
        assert tiny_sam.get_submodule(site.attn).bottleneck[0].out_features == site.width // 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, r"peft\.hidden.*got 0"),
        ({"scale": 0.0}, r"peft\.scale.*got 0\.0"),
        ({"depth": 0}, r"peft\.depth.*got 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        METHODS["adapter"](**options)


def test_slices_of_a_stack_attend_to_each_other(tiny_sam, perturb):
    plain = copy.deepcopy(tiny_sam)
    perturb(inject(tiny_sam, Adapter(depth=3)))
    site = tiny_sam.attention_blocks()[0]
    attn, before = tiny_sam.get_submodule(site.attn), plain.get_submodule(site.attn)
    x = torch.randn(6, 4, 5, site.width)  # two stacks
    d = site.width // site.heads
    q, k, v = (x @ attn.qkv.weight.T + attn.qkv.bias).unflatten(-1, (3, site.heads, d)).unbind(-3)
    across = torch.zeros(6, 4, 5, site.heads, d)
    for image in range(6):
        others = range(image // 3 * 3, image // 3 * 3 + 3)
        scores = torch.stack([(q[image] * k[other]).sum(-1) for other in others], -1) / d**0.5
        for share, other in zip(scores.softmax(-1).unbind(-1), others, strict=True):
            across[image] += share[..., None] * v[other]
    alone = before(x)
    joined = across.flatten(-2) @ attn.proj.weight.T + attn.proj.bias
    torch.testing.assert_close(attn(x), alone + attn.bottleneck(alone) + attn.depth(joined))
    with torch.no_grad():
        other = x.clone()
        other[4] += 1
        changed = (attn(other) - attn(x)).abs().amax((1, 2, 3)) > 1e-4
    assert changed.tolist() == [False, False, False, True, True, True]


@torch.no_grad()
def test_a_stack_starts_as_the_base(tiny_sam, predict):
    before = predict(tiny_sam)
    injection = inject(tiny_sam, Adapter(depth=2))
    assert torch.equal(predict(tiny_sam), before)
    attention_blocks = tiny_sam.attention_blocks()
    assert injection.count("block 0") == Adapter(depth=2).count_parameters(
        tiny_sam, attention_blocks[:1]
    )
    assert injection.count("block 0") == 3 * (2 * 32 * 8 + 8 + 32)


def test_a_batch_of_no_whole_stacks_is_refused(tiny_sam):
    inject(tiny_sam, Adapter(depth=3))
    with pytest.raises(AdapterError, match=r"stacks of 3 neighbouring slices.*got 4 images"):
        tiny_sam.encode(torch.zeros(4, 3, 64, 64))


def test_depth_does_not_fit_tiny_vit(tiny_t_sam):
    with pytest.raises(ConfigError, match=r"adapter .* needs an encoder of kind vit"):
        inject(tiny_t_sam, Adapter(depth=2))
