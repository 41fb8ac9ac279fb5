"""The fused LoRA layer: peft's arithmetic, with less kept for backward."""

from __future__ import annotations

import pytest
import torch
from peft.tuners import lora
from torch import nn

from samadapt.adapters.injection import inject
from samadapt.methods import METHODS
from samadapt.methods.lora_layer import FusedLoraLinear, _FusedUpdate
from samadapt.sam.layers_fast import FastMLPBlock

OPTIONS = {
    "sliced": {"decoder": "frozen", "rank": 2, "alpha": 3.0},
    "all slices": {"decoder": "frozen", "slices": ("v", "q", "k"), "rank": 1},
    "dropout": {"decoder": "frozen", "dropout": 0.5},
}


@pytest.fixture
def layer(fresh, perturb):
    """``layer(name)``: the last block's qkv with a LoRA that is away from its start."""

    def make(name):
        sam = fresh()
        injection = inject(sam, METHODS["lora"](**OPTIONS[name]))
        perturb(injection)
        injection.set_training(sam)
        return sam.get_submodule(sam.attention_blocks()[-1].qkv)

    return make


def _run(layer, forward, x):
    """Output and gradients of x, A and the blocks of B."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = forward(layer, x)
    out.square().sum().backward()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].blocks
    return out.detach(), x.grad, a.grad.clone(), b.grad.clone()


def _saved(function):
    """Every tensor that autograd keeps while ``function`` runs, by the address of its storage."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function()
    return kept, out


@pytest.mark.parametrize("name", ["sliced", "all slices"])
def test_equals_pefts_own_forward(layer, name):
    one = layer(name).double()
    assert type(one) is FusedLoraLinear
    x = torch.randn(2, 3, 5, one.in_features, dtype=torch.float64)
    found, expected = _run(one, FusedLoraLinear.forward, x), _run(one, lora.Linear.forward, x)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_gradients_against_finite_differences():
    torch.manual_seed(0)
    tensors = [torch.randn(*shape, dtype=torch.float64) for shape in ((5, 3), (4, 3), (4,))]
    trained = [torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3), (4, 2))]
    x, weight, bias = tensors
    for tensor in (x, *trained):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, a, b: _FusedUpdate.apply(x, weight, bias, a, b, 0.7), (x, *trained)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_its_input_once_and_nothing_else_of_its_size(layer, dtype):
    """Kept: x, A x and the weights themselves; no output, no scaled copy, no gradient of W."""
    one = layer("sliced")
    one.base_layer.to(dtype)
    x = torch.randn(64, one.in_features, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        kept, out = _saved(lambda: one(x))
    rank = one.lora_A["default"].weight.shape[0]
    size = torch.finfo(dtype).bits // 8
    assert one.base_layer.weight.untyped_storage().data_ptr() in kept
    kept.pop(one.base_layer.weight.untyped_storage().data_ptr())
    packed = rank * (one.in_features + one.out_features)  # A and the dense B
    trained = packed * 4 + (packed * size if dtype != torch.float32 else 0)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert total <= 64 * (one.in_features + rank) * size + trained
    out.float().sum().backward()
    assert all(parameter.grad is None for parameter in one.base_layer.parameters())


def test_a_frozen_linear_keeps_no_input():
    """What stands beside LoRA in a block: only the activation's own input is kept."""
    mlp = FastMLPBlock(8, 32).requires_grad_(False)
    x = torch.randn(16, 8, requires_grad=True)
    kept, out = _saved(lambda: mlp(x))
    own = {p.untyped_storage().data_ptr() for p in mlp.parameters()}
    (hidden,) = [tensor for address, tensor in kept.items() if address not in own]
    assert hidden.shape == (16, 32)
    out.sum().backward()
    assert all(parameter.grad is None for parameter in mlp.parameters())


def test_without_a_gradient_of_its_input(layer):
    """The first live block stands on features that need none."""
    one = layer("sliced")
    x = torch.randn(7, one.in_features)
    expected = _run(one, FusedLoraLinear.forward, x)
    one.zero_grad()
    one(x).square().sum().backward()
    torch.testing.assert_close(one.lora_A["default"].weight.grad, expected[2])
    torch.testing.assert_close(one.lora_B["default"].blocks.grad, expected[3])


def test_dropout_acts_in_training_only(layer):
    one = layer("dropout")
    x = torch.randn(7, one.in_features)
    assert not torch.equal(one(x), one(x))
    one.eval()
    assert torch.equal(one(x), one(x))
    torch.testing.assert_close(one(x), lora.Linear.forward(one, x))


def test_pefts_switches_still_work(layer):
    one = layer("sliced").eval()
    x = torch.randn(7, one.in_features)
    plain, adapted = one.base_layer(x), one(x)
    assert (adapted - plain).abs().max() > 1e-3
    one.enable_adapters(False)
    assert torch.equal(one(x), plain)
    one.enable_adapters(True)
    one.merge()
    torch.testing.assert_close(one(x), adapted)
    one.unmerge()
    torch.testing.assert_close(one(x), adapted)
    assert torch.equal(one(x[:0]), adapted[:0])


def test_autocast_computes_as_the_base_does(layer):
    one = layer("sliced")
    x = torch.randn(7, one.in_features)
    with torch.autocast("cpu", torch.bfloat16):
        assert one(x).dtype == one.base_layer(x).dtype == torch.bfloat16
    nn.init.zeros_(one.lora_B["default"].blocks)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(one(x), one.base_layer(x))
