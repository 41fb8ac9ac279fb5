"""One attention module of ViT-B, global or in windows, on a grid of normalised tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import flops, machine, peers
from benchmarks.harness import Build, Call, Comparison
from benchmarks.machine import Arithmetic
from samadapt.sam.model import Sam
from samadapt.sam.weights.builds import BUILDS

Kind = Literal["global", "window"]
Attend = Callable[[Tensor], Tensor]


def rows() -> Iterator[Comparison]:
    """Yield a grid of 64 x 64 tokens, whole and in windows of 14, forward and with backward."""
    kinds: tuple[Kind, ...] = ("global", "window")
    for kind in kinds:
        for backward in (False, True):
            yield row("vit_b", kind, backward)


def row(build: str, kind: Kind, backward: bool) -> Comparison:
    """Compare modules with the same frozen weights, including the cutting and joining of windows.

    The backward pass computes the gradient of the input, as LoRA needs it. The values that are
    compared are the output and, with backward, that gradient.
    """
    makers = {
        "samadapt": _ours,
        "segment-anything": _segment_anything,
        "timm": _timm,
        "transformers": _transformers,
    }

    def of(name: str) -> Build:
        way = (machine.ours if name == "samadapt" else machine.plain)("fp32", "cpu")
        return lambda: attending(makers[name](*_sam(build, kind)), tokens(build), backward, way)

    def work() -> float:
        numbers = BUILDS[build]
        side, window = numbers.image_size // numbers.patch_size, numbers.window
        part = flops.attention(numbers, side, window if kind == "window" else 0)
        return sum(part.values()) * (2 if backward else 1) + part["scores"] * backward

    return Comparison(
        name=f"{kind}, forward{' and backward' if backward else ''}",
        contenders={name: of(name) for name in makers},
        flop=work,
        reference=partial(exact, build, kind, backward),
    )


def tokens(build: str) -> Tensor:
    """Return a grid of tokens (1, g, g, width)."""
    numbers = BUILDS[build]
    side = numbers.image_size // numbers.patch_size
    generator = torch.Generator().manual_seed(9)
    return torch.randn(1, side, side, numbers.embed_dim, generator=generator)


def attending(attend: Attend, x: Tensor, backward: bool, way: Arithmetic) -> Call:
    """Return the call that attends and, with ``backward``, computes the gradient of the input."""
    if not backward:

        def forward() -> Tensor:
            with torch.no_grad(), way.forward():
                return attend(x)

        return forward
    x = x.requires_grad_(True)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x.dtype)

    def step() -> tuple[Tensor, ...]:
        with way.forward():
            out = attend(x)
        with way.backward():
            return out.detach(), *torch.autograd.grad(out, x, direction)

    return step


@cache
def exact(build: str, kind: Kind, backward: bool) -> Tensor | tuple[Tensor, ...]:
    """Return the values of segment-anything in float64."""
    sam, index = _sam(build, kind)
    attend = _segment_anything(sam.double(), index)
    values: Tensor | tuple[Tensor, ...] = attending(
        attend, tokens(build).double(), backward, machine.plain("fp32", "cpu")
    )()
    return values


def _sam(build: str, kind: Kind) -> tuple[Sam, int]:
    """Return a model and the first of its blocks of a kind."""
    sam = peers.random_sam(build)
    return sam, next(block.index for block in sam.attention_blocks() if block.kind == kind)


def _ours(sam: Sam, index: int) -> Attend:
    attend: Attend = sam.get_submodule(sam.attention_blocks()[index].attn)
    return attend


def _segment_anything(sam: Sam, index: int) -> Attend:
    from segment_anything.modeling import image_encoder as theirs

    return _in_windows(
        peers.segment_anything(sam).image_encoder.blocks[index],
        theirs.window_partition,
        theirs.window_unpartition,
    )


def _timm(sam: Sam, index: int) -> Attend:
    from timm.models import vision_transformer_sam as theirs

    def join(cells: Tensor, size: int, padded: Any, whole: Any) -> Tensor:
        return theirs.window_unpartition(cells, size, whole, padded)

    return _in_windows(peers.timm_encoder(sam).blocks[index], theirs.window_partition, join)


def _transformers(sam: Sam, index: int) -> Attend:
    layer = peers.transformers_encoder(sam).layers[index]
    return _in_windows(layer, layer.window_partition, layer.window_unpartition)


def _in_windows(block: Any, partition: Any, join: Any) -> Attend:
    """Return what the block of a peer does between its norm and its residual sum."""

    def attend(x: Tensor) -> Tensor:
        size = block.window_size
        cells, padded = partition(x, size) if size else (x, None)
        out = block.attn(cells)
        out = out[0] if isinstance(out, tuple) else out
        joined: Tensor = join(out, size, padded, x.shape[1:3]) if size else out
        return joined

    return attend
