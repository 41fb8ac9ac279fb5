"""Count the floating-point operations of a task; a multiply-add counts as two.

Only the products that the task needs are counted, whoever computes it: padding that can be skipped
is left out, and so is what is computed twice. A rate in GFLOP/s is this number divided by the time,
so all contenders are compared at the same number of operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from samadapt.sam.weights.builds import Build


def attention(build: Build, side: int, window: int, *, padded: bool = False) -> dict[str, float]:
    """Return the products of one block's attention on a grid of ``side`` x ``side`` tokens.

    Args:
        build: a build whose encoder is a ViT.
        side: tokens along a side.
        window: side of a window in tokens; 0 attends over the whole grid.
        padded: also count the projections of the padding, which segment-anything computes.

    Returns:
        ``qkv`` and ``proj`` (the projections), ``scores`` (q.k and weights.v) and ``position``.
    """
    width, reach = build.embed_dim, window or side
    tokens = (-(-side // reach) * reach) ** 2
    projected = tokens if padded else side**2
    return {
        "qkv": 2.0 * projected * 3 * width**2,
        "proj": 2.0 * projected * width**2,
        "scores": 4.0 * tokens * reach**2 * width,
        "position": 4.0 * tokens * reach * width,
    }


def encoder_forward(build: Build, image_size: int, *, padded: bool = False) -> float:
    """Return the operations of embedding one image; see ``attention`` for ``padded``."""
    side = image_size // build.patch_size
    stem = 2.0 * side**2 * 3 * build.patch_size**2 * build.embed_dim
    blocks = sum(
        sum(attention(build, side, window, padded=padded).values()) + _mlp(build, side)
        for window in windows_of(build)
    )
    return stem + blocks + _neck(build, side)


def lora_step(build: Build, image_size: int, *, blocks: int, rank: int = 8) -> float:
    """Return the operations of a step of LoRA on ``qkv`` in the last blocks, with a stored prefix.

    They are a forward pass, and a backward pass to the first adapted block. It computes the
    gradients of inputs, but not those of frozen weights. The input of the first block needs none.

    Args:
        build: a build whose encoder is a ViT.
        image_size: side of the square in pixels.
        blocks: how many of the last blocks are adapted. If that is all of them, the patch
            embedding is counted as well.
        rank: rows of all A of a block together.
    """
    side, width = image_size // build.patch_size, build.embed_dim
    tokens = side**2
    total = 2 * _neck(build, side)
    if blocks == build.depth:
        total += 2.0 * tokens * 3 * build.patch_size**2 * width
    for place, window in enumerate(windows_of(build)[-blocks:]):
        part = attention(build, side, window)
        total += 2 * (_mlp(build, side) + part["proj"]) + part["qkv"]
        total += 3 * part["scores"] + 2 * part["position"]
        down, up = 2.0 * tokens * width * rank, 2.0 * tokens * width * rank
        total += (
            2 * (down + up) + up
        )  # forward, the gradients of both weights, and the gradient between them
        if place:
            total += part["qkv"] + down
    return total


def windows_of(build: Build) -> list[int]:
    """Return the side of the window of each block, in tokens; 0 for the whole grid."""
    return [0 if i in build.global_blocks else build.window for i in range(build.depth)]


def counted(call: Callable[[], Any]) -> float:
    """Return the operations that torch counts in a call, for models that have no formula here."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def _mlp(build: Build, side: int) -> float:
    return 4.0 * side**2 * build.embed_dim * int(build.embed_dim * build.mlp_ratio)


def _neck(build: Build, side: int) -> float:
    channels = build.prompt_width
    return 2.0 * side**2 * (build.embed_dim * channels + 9 * channels**2)
