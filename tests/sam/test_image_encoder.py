"""Windows, padding and the resampling of position tables."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.sam.image_encoder import (
    join_windows,
    partition_windows,
    resample_pos_embed,
    resample_rel_pos,
)
from samadapt.sam.model import Sam


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(1, 3))
def test_joining_undoes_the_partition(h: int, w: int, window: int, batch: int) -> None:
    x = torch.arange(batch * h * w * 2.0).view(batch, h, w, 2)
    windows = partition_windows(x, window)
    assert windows.shape == (batch * -(-h // window) * -(-w // window), window, window, 2)
    assert torch.equal(join_windows(windows, window, (h, w)), x)


def test_partition_equals_segment_anything() -> None:
    from segment_anything.modeling.image_encoder import window_partition

    x = torch.randn(2, 8, 7, 3)
    expected, _ = window_partition(x, 3)
    assert torch.equal(partition_windows(x, 3), expected)


def test_padded_tokens_are_the_bias_of_qkv(tiny_sam: Sam) -> None:
    block = tiny_sam.image_encoder.blocks[0]
    assert block.window == 3  # 8 tokens a side need padding
    seen = []
    handle = block.attn.qkv.register_forward_hook(lambda *a: seen.append(a[2]))
    tiny_sam.encode(torch.randn(1, 3, 64, 64))
    handle.remove()
    corner = seen[0].view(3, 3, 3, 3, -1)[2, 2, 2, 2]
    assert torch.equal(corner, block.attn.qkv.bias)


def test_global_blocks_come_from_the_build(tiny_sam: Sam) -> None:
    kinds = [site.kind for site in tiny_sam.sites()]
    assert kinds == ["window", "global", "global", "window"]


def test_resampling_to_the_same_size_changes_nothing() -> None:
    pos, table = torch.randn(1, 4, 4, 3), torch.randn(7, 3)
    assert resample_pos_embed(pos, (4, 4)) is pos
    assert resample_rel_pos(table, 7) is table


@pytest.mark.parametrize("size", [(8, 8), (2, 6), (5, 3)])
def test_pos_embed_is_resampled_as_timm_does(size: tuple[int, int]) -> None:
    from timm.layers import resample_abs_pos_embed_nhwc

    pos = torch.randn(1, 4, 4, 3)
    expected = resample_abs_pos_embed_nhwc(pos, list(size))
    torch.testing.assert_close(resample_pos_embed(pos, size), expected)


@pytest.mark.parametrize("side", [2, 6, 9])
def test_rel_pos_is_resampled_as_segment_anything_does(side: int) -> None:
    from segment_anything.modeling.image_encoder import get_rel_pos

    table = torch.randn(7, 3)
    expected = get_rel_pos(side, side, table)
    resampled = resample_rel_pos(table, 2 * side - 1)
    place = torch.arange(side)
    spread = resampled[place[:, None] - place[None, :] + side - 1]
    torch.testing.assert_close(spread, expected)
