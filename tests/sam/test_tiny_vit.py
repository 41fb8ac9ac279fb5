"""TinyViT against timm's own model, and the traps of its caches and statistics."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from samadapt.sam.builds import BUILDS
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.tiny_vit import TinyViTEncoder, tiny_vit_key


@pytest.mark.parametrize("image_size", [64, 96])
def test_equals_timm(randomise: Any, image_size: int) -> None:
    """The stem of stride 4 and everything up to the neck, but for the last merge's stride."""
    from timm.models.tiny_vit import TinyVit

    build = replace(BUILDS["tiny_t"], stem_stride=4)
    ours = TinyViTEncoder(build, image_size).double().eval()
    randomise(ours, 1)
    theirs = TinyVit(
        num_classes=0,
        embed_dims=build.stage_dims,
        depths=build.stage_depths,
        num_heads=build.stage_heads,
        window_sizes=build.stage_windows,
    )
    theirs.double().eval()
    theirs.stages[3].downsample.conv2.conv.stride = (1, 1)
    state = {k: v for k, v in ours.state_dict().items() if not k.startswith("neck")}
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("head") for key in missing.missing_keys)
    images = torch.randn(2, 3, image_size, image_size, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.stages(theirs.patch_embed(images))
        features = ours.prefix(images, sum(build.stage_depths[1:])).permute(0, 3, 1, 2)
    torch.testing.assert_close(features, expected, atol=1e-9, rtol=1e-9)


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


def test_names_of_the_decoder_are_left_alone() -> None:
    for name in build_sam("tiny").state_dict():
        if not name.startswith("image_encoder."):
            assert tiny_vit_key(name) == name


def test_every_size_that_the_stride_divides(tiny_t_sam: Sam) -> None:
    for size in (32, 60, 96):
        other = build_sam("tiny_t", image_size=size)
        other.load_state_dict(tiny_t_sam.state_dict())
        assert other.encode(torch.zeros(1, 3, size, size)).shape == (1, 64, size // 4, size // 4)


def test_biases_are_read_anew_each_time(tiny_t_sam: Sam) -> None:
    """timm caches them in evaluation: stale after loading, and a second backward fails."""
    images = torch.randn(1, 3, 64, 64)
    for _ in range(2):
        tiny_t_sam.encode(images).sum().backward()
    before = tiny_t_sam.encode(images)
    with torch.no_grad():
        tiny_t_sam.get_submodule(tiny_t_sam.sites()[0].attn).attention_biases.add_(
            torch.linspace(0, 3, 9)
        )
    assert not torch.equal(tiny_t_sam.encode(images), before)
    copy.deepcopy(tiny_t_sam)


def test_lite_medsam_has_ten_sites_and_64_cells() -> None:
    with torch.device("meta"):
        for name, size in (("vit_t", 1024), ("lite_medsam", 256)):
            sam = build_sam(name)
            assert (sam.image_size, sam.embedding_size) == (size, 64)
            assert [site.width for site in sam.sites()] == [128] * 2 + [160] * 6 + [320] * 2
            assert [site.heads for site in sam.sites()] == [4] * 2 + [5] * 6 + [10] * 2
            assert {site.qkv_order for site in sam.sites()} == {"head_qkv"}
