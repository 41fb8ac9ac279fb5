"""Attention heads see the trained tokens behind a gate that starts closed."""

from __future__ import annotations

import copy

import pytest
import torch

from samadapt.adapters.injection import inject
from samadapt.errors import ConfigError
from samadapt.methods import METHODS


def test_heads_attend_to_the_tokens_behind_a_gate(fresh, perturb):
    sam = fresh()
    plain = copy.deepcopy(sam)
    perturb(inject(sam, METHODS["prompt_tokens"](tokens=3)))
    site = sam.attention_blocks()[0]
    attn, before = sam.get_submodule(site.attn), plain.get_submodule(site.attn)
    x = torch.randn(2, 4, 5, site.width)
    heads, d = site.heads, site.width // site.heads

    def split(tokens):
        rows = tokens @ attn.qkv.weight.T + attn.qkv.bias
        if site.qkv_order == "head_qkv":
            return rows.unflatten(-1, (heads, 3, d)).unbind(-2)
        return rows.unflatten(-1, (3, heads, d)).unbind(-3)

    normed = attn.norm(x) if site.qkv_order == "head_qkv" else x
    (q, _, _), (_, k, v) = split(normed), split(attn.prompt.tokens)
    change = torch.zeros(2, 4, 5, heads, d)
    for head in range(heads):
        shares = torch.softmax(q[..., head, :] @ k[:, head].T / d**0.5, -1)
        change[..., head, :] = attn.prompt.gate[head].tanh() * (shares @ v[:, head])
    expected = before(x) + change.flatten(-2) @ attn.proj.weight.T
    torch.testing.assert_close(attn(x), expected, atol=1e-5, rtol=1e-4)
    assert (expected - before(x)).abs().max() > 1e-2


def test_the_tokens_learn_once_the_gate_is_open(tiny_sam, train):
    injection = inject(tiny_sam, METHODS["prompt_tokens"](decoder="frozen"))
    train(tiny_sam, injection, 2)
    tokens = tiny_sam.get_submodule(tiny_sam.attention_blocks()[0].attn).prompt.tokens
    assert tokens.grad.abs().max() > 0


def test_a_wrong_number_is_refused():
    with pytest.raises(ConfigError, match=r"peft\.tokens.*got 0"):
        METHODS["prompt_tokens"](tokens=0)
