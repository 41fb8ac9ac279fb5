"""The encoder of SAM 3, compared with complex rotations and with transformers' ``Sam3ViTModel``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from samadapt.errors import ConfigError
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.rope_vit import RotaryGridAttention, rotate


def turned(x: Tensor, unit: float) -> Tensor:
    """Rotate by complex numbers: x (n, h, w, heads, d) by column, then by row."""
    _, h, w, _, d = x.shape
    speed = 10000.0 ** (-torch.arange(0, d // 2, 2, dtype=torch.float64) / (d // 2))
    places = [
        unit * torch.arange(w).double().expand(h, w),
        unit * torch.arange(h).double()[:, None].expand(h, w),
    ]
    angles = torch.cat([place[..., None] * speed for place in places], dim=-1)  # (h, w, d / 2)
    factors = torch.polar(torch.ones_like(angles), angles)[:, :, None]
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * factors).flatten(-2)


@pytest.mark.parametrize(("size", "unit"), [((3, 3), 1.0), ((2, 5), 0.375)])
def test_rotation(size: tuple[int, int], unit: float) -> None:
    x = torch.randn(2, *size, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(rotate(x, unit), turned(x, unit), atol=1e-12, rtol=0)
    assert rotate(x.bfloat16(), unit).dtype == torch.bfloat16


@pytest.mark.parametrize(("side", "window"), [(7, 3), (5, 8), (8, 0), (6, 3)])
def test_attention_equals_the_textbook_form(side: int, window: int) -> None:
    """Padded tokens take part: they are the bias of qkv, rotated by their own places."""
    span = window or 4
    attention = RotaryGridAttention(16, 2, window, span).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, 0.0, 0.5)
    x = torch.randn(2, side, side, 16, dtype=torch.float64)
    length = window or side
    pad = -side % length
    padded = nn.functional.pad(x, (0, 0, 0, pad, 0, pad))
    count = padded.shape[1] // length
    cut = padded.view(2, count, length, count, length, 16).transpose(2, 3)
    q, k, v = attention.qkv(cut.reshape(-1, length, length, 16)).unflatten(-1, (3, 2, 8)).unbind(3)
    q, k = (turned(part, span / length) for part in (q, k))
    q, k, v = (part.flatten(1, 2).transpose(1, 2) for part in (q, k, v))
    out = ((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    out = out.view(2, count, count, length, length, 16).transpose(2, 3)
    out = out.reshape(2, side + pad, side + pad, 16)[:, :side, :side]
    torch.testing.assert_close(attention(x), attention.proj(out), atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_prefix_and_suffix_at_every_block(tiny_r_sam: Sam) -> None:
    images = torch.randn(2, 3, 64, 64)
    seen: list[Tensor] = []
    whole = tiny_r_sam.encode(images, seen)
    assert whole.shape == (2, 4 * 64, 8, 8)
    torch.testing.assert_close(tiny_r_sam.encode(images), whole)
    *stages, last = tiny_r_sam.levels()
    for level, features in zip(stages, seen, strict=True):
        assert features.shape == (2, level.channels, level.grid, level.grid)
    assert (last.channels, last.grid) == (256, 8)
    for first in range(6):
        before: list[Tensor] = []
        after: list[Tensor] = []
        features = tiny_r_sam.encode_prefix(images, first, before)
        assert features.shape[1:] == tiny_r_sam.prefix_shape(first)
        again = tiny_r_sam.encode_suffix(features, first, after)
        torch.testing.assert_close(again, whole, msg=f"block {first}")
        assert len(before) == sum(level.after <= first for level in stages)
        for kept, expected in zip(before + after, seen, strict=True):
            torch.testing.assert_close(kept, expected)


def test_blocks_know_their_kind(tiny_r_sam: Sam) -> None:
    blocks = tiny_r_sam.attention_blocks()
    assert [b.index for b in blocks if b.kind == "global"] == [1, 2]
    for block in blocks:
        qkv = tiny_r_sam.get_submodule(block.qkv)
        assert (qkv.in_features, qkv.out_features) == (block.inputs, 3 * block.width) == (32, 96)


@pytest.mark.parametrize("side", [0, 512, 1024])
def test_sides_that_are_no_multiples_of_14_are_refused(side: int) -> None:
    with pytest.raises(ConfigError, match=rf"multiple of 14 for sam3_tracker; got {side}"):
        build_sam("sam3_tracker", image_size=side)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"4 \* heads must divide the width 12; got 2 heads"):
        RotaryGridAttention(12, 2, 0, 4)
