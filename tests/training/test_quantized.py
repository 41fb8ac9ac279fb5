"""Frozen weights in 4 bits: the products and gradients of the rounded weights, in less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from samadapt.adapters.four_bits import round_frozen
from samadapt.adapters.injection import inject
from samadapt.errors import ConfigError
from samadapt.methods import METHODS
from samadapt.sam.model import build_sam
from samadapt.sam.types import Prompts
from samadapt.sam.weights.loading import load_sam
from samadapt.training.quantized import check_quantize, quantize_frozen

pytest.importorskip("bitsandbytes")
from bitsandbytes.nn import Linear4bit

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _in_fp32(monkeypatch):
    """On some CPUs bitsandbytes computes in bf16 outside of training."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


def pair(method):
    """Return a model with 4-bit weights, the same with rounded weights, and what was changed.

    bitsandbytes also computes on CPUs, but (version 0.50) wrongly where the inputs of a linear are
    no multiple of 64. So this is a ViT-B, and a run refuses 4 bits on CPUs.
    """
    torch.manual_seed(0)
    small = build_sam("vit_b", image_size=64)
    injection = inject(small, method)
    for parameter in injection.parameters.values():  # LoRA's B starts at zero
        nn.init.normal_(parameter, std=0.02)
    whole = copy.deepcopy(small)
    round_frozen(whole, injection.exact)
    changed = quantize_frozen(small, injection.exact, torch.float32)
    return small, whole, changed


def masks_of(sam):
    torch.manual_seed(1)
    images = torch.randn(1, 3, sam.image_size, sam.image_size)
    prompts = Prompts(boxes=torch.tensor([[[4.0, 6.0, 40.0, 50.0]]]))
    return sam.decode(sam.encode(images), prompts, multimask=True).logits


def close(found, expected):
    return (found - expected).norm() <= 1e-4 * expected.norm() + 1e-9


def test_masks_and_gradients_are_those_of_the_rounded_weights():
    small, whole, changed = pair(METHODS["lora"](blocks="last:2"))
    assert len(changed) > 6
    found, expected = masks_of(small), masks_of(whole)
    assert close(found, expected)
    found.square().mean().backward()
    expected.square().mean().backward()
    gradients = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    assert len(gradients) > 10
    for name, parameter in small.named_parameters():
        assert (parameter.grad is None) == (name not in gradients), name
        if parameter.grad is not None:
            assert close(parameter.grad, gradients[name]), name


def test_weights_take_a_seventh_of_fp32():
    small, whole, changed = pair(METHODS["lora"]())
    layers = [small.get_submodule(name) for name in changed]
    assert all(isinstance(layer, Linear4bit) for layer in layers)
    held = sum(layer.weight.numel() + layer.weight.quant_state.absmax.nbytes for layer in layers)
    before = sum(whole.get_submodule(name).weight.nbytes for name in changed)
    assert held < before / 7
    assert all(name.startswith("image_encoder.") for name in changed)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_computes_with_the_rounded_weights(name):
    method = METHODS[name](blocks="last:2") if name not in ("none", "decoder") else METHODS[name]()
    if not method.takes_quantized:
        with pytest.raises(ConfigError, match=f"peft={name} reads the frozen weights itself"):
            check_quantize("nf4", CUDA, method)
        return
    small, whole, _ = pair(method)
    with torch.no_grad():
        assert close(masks_of(small), masks_of(whole))


def test_refusals(monkeypatch):
    lora = METHODS["lora"]()
    check_quantize("none", CPU, lora)
    with pytest.raises(ConfigError, match="nf4 needs a CUDA GPU; this run computes on cpu"):
        check_quantize("nf4", CPU, lora)
    check_quantize("nf4", CUDA, lora)
    monkeypatch.setattr("samadapt.training.quantized.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'samadapt\[qlora\]'"):
        check_quantize("nf4", CUDA, lora)
    sam = load_sam("tiny")
    inject(sam, METHODS["full"]())
    with pytest.raises(ConfigError, match="no frozen linears in the encoder"):
        quantize_frozen(sam, (), torch.float32)
