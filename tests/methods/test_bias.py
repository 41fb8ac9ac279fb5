"""The bias method trains every bias of its blocks and nothing else."""

from __future__ import annotations

from samadapt.adapters.injection import inject
from samadapt.methods.bias import Bias


def test_it_trains_every_bias_of_a_block_and_nothing_else(tiny_sam):
    injection = inject(tiny_sam, Bias(blocks=[2], decoder="frozen"))
    block = "image_encoder.blocks.2"
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.lin1", "mlp.lin2")
    assert set(injection.parameters) == {f"{block}.{layer}.bias" for layer in layers}
    width = tiny_sam.build.embed_dim
    assert injection.trainable == 11 * width  # 1 + 3 + 1 + 1 + 4 + 1
    assert injection.first_trainable_block == 2
