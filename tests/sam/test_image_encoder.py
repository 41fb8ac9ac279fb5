"""Windows, padding and the resampling of position tables."""

from __future__ import annotations

import pytest
import torch

from samadapt.sam.image_encoder import (
    resample_pos_embed,
    resample_rel_pos,
)
from samadapt.sam.model import Sam


def test_global_blocks_come_from_the_build(tiny_sam: Sam) -> None:
    kinds = [block.kind for block in tiny_sam.attention_blocks()]
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
