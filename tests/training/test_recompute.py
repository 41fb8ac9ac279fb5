"""Activations computed again in backward: same gradients, less kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from samadapt.adapters.injection import inject
from samadapt.adapters.store import trainable_state
from samadapt.methods import METHODS
from samadapt.training import loop
from samadapt.training.loop import LoopOptions
from samadapt.training.recompute import recomputed


def _gradients(sam, injection, features):
    """Gradients of the trained parameters, and the bytes that autograd kept for them."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)  # of dropout
    for parameter in injection.parameters.values():
        parameter.grad = None
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = sam.encode_suffix(features, injection.first_trainable_block)
    out.square().mean().backward()
    own = {parameter.untyped_storage().data_ptr() for parameter in sam.parameters()}
    size = sum(nbytes for address, nbytes in kept.items() if address not in own)
    return {name: p.grad for name, p in injection.parameters.items()}, size


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("blocks", ["all", "last:2"])
def test_gradients_are_bit_equal_and_less_is_kept(any_sam, blocks, half):
    method = METHODS["lora"](blocks=blocks, decoder="frozen", dropout=0.3)
    injection = inject(any_sam, method)
    injection.set_training(any_sam)
    with torch.no_grad():
        for parameter in injection.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        images = torch.randn(2, 3, any_sam.image_size, any_sam.image_size)
        features = any_sam.encode_prefix(images, injection.first_trainable_block)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        expected, everything = _gradients(any_sam, injection, features)
        with recomputed(any_sam, injection.first_trainable_block):
            found, inputs = _gradients(any_sam, injection, features)
        again, as_before = _gradients(any_sam, injection, features)
    assert all(bool((gradient != 0).any()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
        assert torch.equal(again[name], gradient), name
    # The neck of SAM 3, which is not repeated, is most of a tiny build.
    assert inputs < (0.9 if any_sam.build.encoder == "rope_vit" else 0.5) * everything
    assert as_before == everything


def test_the_blocks_come_back_after_an_error(tiny_sam):
    def fail():
        with recomputed(tiny_sam, -1):
            assert all("forward" in vars(block) for block in tiny_sam.image_encoder.blocks)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not any("forward" in vars(block) for block in tiny_sam.image_encoder.blocks)


def test_training_ends_bit_equal(tools, tmp_path, monkeypatch):
    seen = []
    original = loop.recomputed
    monkeypatch.setattr(loop, "recomputed", lambda *given: seen.append(given) or original(*given))
    options = LoopOptions(steps=2, warmup_steps=0, validate_every=0)
    ends = []
    for again in (False, True):
        training = tools.make_training(tmp_path / str(again), blocks="last:2")
        loop.train(training, replace(options, recompute=again), None)
        ends.append(trainable_state(training.sam, training.injection))
    assert [
        (sam is training.sam, first_trainable_block) for sam, first_trainable_block in seen
    ] == [(True, training.injection.first_trainable_block)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
