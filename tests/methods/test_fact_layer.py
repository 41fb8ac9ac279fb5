"""FacT's update is the product of shared factors, as in its paper."""

from __future__ import annotations

import copy

import pytest
import torch

from samadapt.adapters.injection import inject
from samadapt.adapters.store import merge_adapter
from samadapt.errors import ConfigError
from samadapt.methods import METHODS


@pytest.mark.parametrize("form", ["tt", "tucker"])
def test_the_update_is_the_papers_product(tiny_sam, perturb, form):
    plain = copy.deepcopy(tiny_sam)
    perturb(inject(tiny_sam, METHODS["fact"](rank=3, form=form, scale=0.7)))
    attention_blocks = tiny_sam.attention_blocks()
    shared = tiny_sam.get_submodule(attention_blocks[0].qkv).fact.factors
    width = tiny_sam.build.embed_dim
    x = torch.randn(5, width)
    for site in (attention_blocks[0], attention_blocks[3]):
        qkv = tiny_sam.get_submodule(site.qkv)
        expected = plain.get_submodule(site.qkv)(x).clone()
        for i, row in enumerate((0, 2)):  # q and v
            own = qkv.fact.own[i]
            if form == "tucker":
                own = sum(p * c for p, c in zip(own, shared.core, strict=True))
            rows = slice(row * width, (row + 1) * width)
            expected[:, rows] += 0.7 * x @ (shared.v @ own @ shared.u).T
        torch.testing.assert_close(qkv(x), expected)


def test_it_finds_q_and_v_in_tiny_vits_order(tiny_t_sam, perturb):
    plain = copy.deepcopy(tiny_t_sam)
    perturb(inject(tiny_t_sam, METHODS["fact"](rank=3)))
    site = tiny_t_sam.attention_blocks()[1]
    x = torch.randn(5, site.width)
    change = tiny_t_sam.get_submodule(site.qkv)(x) - plain.get_submodule(site.qkv)(x)
    q, k, v = change.unflatten(-1, (site.heads, 3, -1)).unbind(2)
    assert q.abs().max() > 1e-4
    assert v.abs().max() > 1e-4
    assert not k.any()


def test_blocks_share_the_factors_of_the_first(tiny_sam, tiny_t_sam):
    injection = inject(tiny_sam, METHODS["fact"](rank=3, blocks=[1, 3], decoder="frozen"))
    assert injection.first_trainable_block == 1
    width = tiny_sam.build.embed_dim
    assert injection.count("block 1") == 2 * width * 3 + 2 * 9
    assert injection.count("block 3") == 2 * 9
    inject(tiny_t_sam, METHODS["fact"](rank=3))  # one set of factors for each of three widths
    owners = [name for name, _ in tiny_t_sam.named_modules() if name.endswith("fact.factors")]
    assert len(owners) == len({site.width for site in tiny_t_sam.attention_blocks()}) == 3


def test_a_copy_shares_its_own_factors(tiny_sam, predict):
    inject(tiny_sam, METHODS["fact"](rank=3))
    copied = copy.deepcopy(tiny_sam)
    before = predict(tiny_sam)
    attention_blocks = copied.attention_blocks()
    with torch.no_grad():
        copied.get_submodule(attention_blocks[0].qkv).fact.factors.v.add_(1)
        copied.get_submodule(attention_blocks[3].qkv).fact.own.add_(1)
    assert torch.equal(predict(tiny_sam), before)
    factors = copied.get_submodule(attention_blocks[0].qkv).fact.factors
    last = copied.get_submodule(attention_blocks[3].qkv).fact.dense()
    width = copied.build.embed_dim
    torch.testing.assert_close(last[:width], factors.v @ torch.ones(3, 3) @ factors.u)


def test_a_merged_copy_has_no_hooks(tiny_sam, perturb):
    injection = inject(tiny_sam, METHODS["fact"](form="tucker"))
    perturb(injection)
    copied = copy.deepcopy(tiny_sam)
    merge_adapter(copied, injection)
    assert not any(m._forward_hooks for m in copied.modules())
    assert any(m._forward_hooks for m in tiny_sam.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"peft\.rank.*got 0"),
        ({"scale": 0}, r"peft\.scale.*got 0"),
        ({"form": "tuker"}, r"peft\.form.*did you mean 'tucker'"),
        ({"slices": ("q", "q")}, r"peft\.slices.*each once"),
        ({"slices": ("x",)}, r"peft\.slices.*q, k, v"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        METHODS["fact"](**options)
