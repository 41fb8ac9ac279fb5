"""Names of other publishers' tensors in ours."""

from __future__ import annotations

import pytest

from samadapt.sam.model import build_sam
from samadapt.sam.weights.names import published_key, tiny_vit_key


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("patch_embed.seq.0.c.weight", "patch_embed.conv1.conv.weight"),
        ("patch_embed.seq.2.bn.running_var", "patch_embed.conv2.bn.running_var"),
        ("layers.0.blocks.1.conv3.c.weight", "stages.0.blocks.1.conv3.conv.weight"),
        ("layers.0.downsample.conv2.bn.bias", "stages.1.downsample.conv2.bn.bias"),
        ("layers.2.blocks.5.attn.qkv.weight", "stages.2.blocks.5.attn.qkv.weight"),
        ("layers.3.blocks.0.local_conv.c.weight", "stages.3.blocks.0.local_conv.conv.weight"),
        ("neck.0.weight", "neck.0.weight"),
    ],
)
def test_names_are_translated(name: str, ours: str) -> None:
    assert tiny_vit_key("image_encoder." + name) == "image_encoder." + ours
    assert tiny_vit_key(name) == ours
    assert published_key("image_encoder." + ours) == "image_encoder." + name


def test_names_of_the_decoder_are_left_alone() -> None:
    for name in build_sam("tiny").state_dict():
        if not name.startswith("image_encoder."):
            assert tiny_vit_key(name) == name
