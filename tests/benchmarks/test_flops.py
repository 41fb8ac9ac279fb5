"""The formulas against torch's own counter and the published figures."""

from __future__ import annotations

import pytest
import torch

from benchmarks import flops, peers, train_step
from samadapt.sam.weights.builds import BUILDS


@pytest.mark.parametrize(("name", "gflop"), [("vit_b", 972), ("vit_l", 2986), ("vit_h", 5961)])
def test_published_figures(name: str, gflop: int) -> None:
    found = flops.encoder_forward(BUILDS[name], 1024, padded=True) / 1e9
    assert found == pytest.approx(gflop, rel=1e-3)
    assert flops.encoder_forward(BUILDS[name], 1024) < 1e9 * found


@pytest.mark.parametrize("size", [64, 72, 96])
def test_padded_forward_is_what_torch_counts_in_segment_anything(size: int) -> None:
    sam = peers.random_sam("tiny", size)
    encoder = peers.segment_anything(sam).image_encoder
    counted = flops.counted(lambda: encoder(torch.zeros(1, 3, size, size)))
    assert flops.encoder_forward(BUILDS["tiny"], size, padded=True) == counted


def test_without_padding_both_counts_are_the_same() -> None:
    size = 72  # 9 x 9 tokens, windows of 3
    build = BUILDS["tiny"]
    assert flops.encoder_forward(build, size) == flops.encoder_forward(build, size, padded=True)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_lora_step_is_what_torch_counts_of_a_peers_step(blocks: int) -> None:
    """The peer also runs the frozen blocks and computes some gradients that nothing uses."""
    size = 72
    build = BUILDS["tiny"]
    step = train_step.samed("tiny", size, "fp32", "cpu", blocks=blocks)
    counted = flops.counted(step)
    whole = flops.encoder_forward(build, size)
    last = flops.lora_step(build, size, blocks=blocks)
    before = whole - _forward_of_last(build, size, blocks)
    assert last + before == pytest.approx(counted, rel=0.03)
    assert last + before <= counted


def _forward_of_last(build, size: int, blocks: int) -> float:
    side = size // build.patch_size
    neck = 2 * side**2 * (build.embed_dim * build.prompt_width + 9 * build.prompt_width**2)
    mlp = 4 * side**2 * build.embed_dim * int(build.embed_dim * build.mlp_ratio)
    parts = [
        sum(flops.attention(build, side, window).values()) + mlp
        for window in flops.windows_of(build)[-blocks:]
    ]
    stem = 2 * side**2 * 3 * build.patch_size**2 * build.embed_dim if blocks == build.depth else 0
    return neck + sum(parts) + stem
