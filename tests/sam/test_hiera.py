"""Hiera, compared with timm's, and its division into a frozen and a trained part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samadapt.errors import ConfigError
from samadapt.sam.hiera import HieraEncoder, HieraTrunk
from samadapt.sam.hiera_blocks import PoolingAttention
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.weights.builds import BUILDS, Build
from samadapt.sam.weights.sam2_names import published_sam2_key

Randomise = Callable[[nn.Module, int], nn.Module]
SIZES = ("sam2_t", "sam2_s", "sam2_b+", "sam2_l")


def timms(build: Build, trunk: HieraTrunk) -> Any:
    """timm's trunk with the same weights, double precision where ours is."""
    from timm.models.hieradet_sam2 import HieraDet

    theirs = HieraDet(
        embed_dim=build.stage_dims[0],
        num_heads=build.stage_heads[0],
        stages=build.stage_depths,
        global_pos_size=(build.position_side,) * 2,
        window_spec=build.stage_windows,
        global_att_blocks=build.global_blocks,
        norm_layer=lambda dim, **more: nn.LayerNorm(dim, eps=1e-6, **more),
    ).to(trunk.pos_embed.dtype)
    state = {
        k.replace(".mlp.lin1.", ".mlp.fc1.").replace(".mlp.lin2.", ".mlp.fc2."): v
        for k, v in trunk.state_dict().items()
    }
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("head.") for key in missing.missing_keys)
    return theirs.eval()


def stages_of(theirs: Any, images: Tensor) -> list[Tensor]:
    """The map (b, h, w, c) of each stage."""
    x, maps = theirs._pos_embed(theirs.patch_embed(images)), []
    for index, block in enumerate(theirs.blocks):
        x = block(x)
        if index in theirs.stage_ends:
            maps.append(x)
    return maps


@pytest.mark.parametrize("side", [64, 96])
def test_equals_timm(randomise: Randomise, side: int) -> None:
    """Values and all gradients, with windows that reach over the edge and without."""
    build = BUILDS["tiny_h"]
    ours = HieraEncoder(build, side).double()
    randomise(ours, 3)
    theirs = timms(build, ours.trunk)
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    got = ours._run([ours.trunk.embed(images)], 0, 6, None)
    want = stages_of(theirs, images)
    weights = [torch.randn_like(x) for x in want]
    for mine, other in zip(got, want, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10)
    pairs = dict(theirs.named_parameters())
    names = [name for name, _ in ours.trunk.named_parameters()]
    other_names = [n.replace(".lin1.", ".fc1.").replace(".lin2.", ".fc2.") for n in names]
    grads = torch.autograd.grad(
        sum((x * w).sum() for x, w in zip(got, weights, strict=True)),
        [ours.trunk.get_parameter(name) for name in names],
    )
    expected = torch.autograd.grad(
        sum((x * w).sum() for x, w in zip(want, weights, strict=True)),
        [pairs[name] for name in other_names],
    )
    for name, mine, other in zip(names, grads, expected, strict=True):
        scale = float(other.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(mine, other, atol=1e-9 * scale, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("side", [256, 512])
@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_every_size_equals_timm(randomise: Randomise, name: str, side: int) -> None:
    ours = HieraEncoder(BUILDS[name], side)
    randomise(ours, 5)
    theirs = timms(BUILDS[name], ours.trunk)
    images = torch.randn(1, 3, side, side)
    got = ours._run([ours.trunk.embed(images)], 0, ours.ends[-1], None)
    for mine, other in zip(got, stages_of(theirs, images), strict=True):
        assert float((mine - other).abs().max()) < 1e-5 * max(1, float(other.abs().max()))


@pytest.mark.parametrize(("side", "window"), [(7, 3), (5, 8), (8, 0), (6, 3)])
def test_a_window_without_its_padding_equals_one_with_it(
    randomise: Randomise, side: int, window: int
) -> None:
    """The further key for the padded tokens, against padding the textbook way."""
    attention = PoolingAttention(12, 8, 2, window, is_pooling=False).double()
    randomise(attention, 1)
    x = torch.randn(2, side, side, 12, dtype=torch.float64)
    if window:
        pad = -side % window
        padded = nn.functional.pad(x, (0, 0, 0, pad, 0, pad))
        count = padded.shape[1] // window
        cut = padded.view(2, count, window, count, window, 12).transpose(2, 3)
        tokens = cut.reshape(-1, window**2, 12)
    else:
        tokens = x.reshape(2, -1, 12)
    q, k, v = attention.qkv(tokens).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    out = ((q @ k.transpose(-1, -2) / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)
    if window:
        out = out.view(2, count, count, window, window, 8).transpose(2, 3)
        out = out.reshape(2, side + pad, side + pad, 8)[:, :side, :side]
    expected = attention.proj(out.reshape(2, side, side, 8))
    torch.testing.assert_close(attention(x), expected, atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_prefix_and_suffix_at_every_block(tiny_h_sam: Sam) -> None:
    images = torch.randn(2, 3, 64, 64)
    seen: list[Tensor] = []
    whole = tiny_h_sam.encode(images, seen)
    assert whole.shape == (2, 4 * 64, 4, 4)
    torch.testing.assert_close(tiny_h_sam.encode(images), whole)
    *stages, last = tiny_h_sam.levels()
    for level, features in zip(stages, seen, strict=True):
        assert features.shape == (2, level.channels, level.grid, level.grid)
    assert (last.channels, last.grid) == (256, 4)
    for first in range(8):
        before: list[Tensor] = []
        after: list[Tensor] = []
        features = tiny_h_sam.encode_prefix(images, first, before)
        assert features.shape[1:] == tiny_h_sam.prefix_shape(first)
        again = tiny_h_sam.encode_suffix(features, first, after)
        torch.testing.assert_close(again, whole, msg=f"block {first}")
        assert len(before) == sum(level.after <= first for level in stages)
        for kept, expected in zip(before + after, seen, strict=True):
            torch.testing.assert_close(kept, expected)


def test_blocks_know_their_widths(tiny_h_sam: Sam) -> None:
    blocks = tiny_h_sam.attention_blocks()
    assert [(b.inputs, b.width, b.heads) for b in blocks] == [
        (8, 8, 1),
        (8, 16, 2),
        (16, 16, 2),
        (16, 32, 4),
        (32, 32, 4),
        (32, 64, 8),
    ]
    assert [b.index for b in blocks if b.kind == "global"] == [4]
    for block in blocks:
        qkv = tiny_h_sam.get_submodule(block.qkv)
        assert (qkv.in_features, qkv.out_features) == (block.inputs, 3 * block.width)


@pytest.mark.parametrize("side", [0, 84, 168, 336, 500])
def test_sides_that_are_no_multiples_of_32_are_refused(side: int) -> None:
    with pytest.raises(ConfigError, match=rf"multiple of 32 for sam2_t; got {side}"):
        build_sam("sam2_t", image_size=side)


@pytest.mark.parametrize(
    ("name", "trunk", "whole"),
    [
        ("sam2_t", 26.85, 38.96),
        ("sam2_s", 33.95, 46.06),
        ("sam2_b+", 68.68, 80.85),
        ("sam2_l", 212.15, 224.45),
    ],
)
def test_sizes_are_the_published_ones(name: str, trunk: float, whole: float) -> None:
    """Millions of parameters. The memory of a video, which is no part of ours, has 7.52."""
    with torch.device("meta"):
        sam = build_sam(name)
    count = sum(p.numel() for p in sam.image_encoder.trunk.parameters())
    assert count / 1e6 == pytest.approx(trunk, abs=0.005)
    total = sum(p.numel() for p in sam.state_dict().values())
    assert total / 1e6 == pytest.approx(whole - 7.52, abs=0.01)
    names = {published_sam2_key(key) for key in sam.state_dict()}
    assert "image_encoder.trunk.blocks.0.mlp.layers.1.weight" in names
    assert "sam_mask_decoder.transformer.layers.1.mlp.layers.0.bias" in names
