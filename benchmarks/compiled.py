"""``compile=true`` beside the same model without it: encoders, the mask decoder, and LoRA steps.

Both contenders are samadapt; the first one is not compiled, so a ratio above 1 says that compiled
code is slower. The seconds that the first call took, in which torch compiles, are among the facts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.decoder import inputs, projection
from benchmarks.encoder import pixels, sam2_maps
from benchmarks.harness import Call, Comparison
from benchmarks.train_step import ours as lora_step
from samadapt.sam.model import Sam
from samadapt.sam.types import Prompts
from samadapt.training.compilation import compile_parts

WITHOUT, WITH = "samadapt", "compile=true"
BUILDS = {"vit_b": 512, "lite_medsam": 256, "sam2_t": 512}
"""The side in pixels for each build."""

Build = Callable[[bool], Call]


def rows() -> Iterator[Comparison]:
    """Yield forward and LoRA step of three encoders, and the decoder with and without backward."""
    for build, side in BUILDS.items():
        yield row(f"{build} {side} fp32, encoder", partial(encode, build, side))
    for build, side in BUILDS.items():
        yield row(f"{build} {side} fp32, LoRA step, all blocks", partial(step, build, side))
    yield row("vit_b decoder, 8 boxes", partial(decode, False))
    yield row("vit_b decoder, 8 boxes, forward and backward", partial(decode, True))


def row(name: str, build: Build) -> Comparison:
    """Compare a call with its compiled form."""
    first: dict[str, float] = {}

    def compiled() -> Call:
        call = build(True)

        def timed() -> Any:
            started = time.perf_counter()
            values = call()
            first.setdefault("seconds", time.perf_counter() - started)
            return values

        return timed

    def facts(values: Mapping[str, Any]) -> dict[str, Any]:
        del values
        return {"first call with compile=true": f"{first['seconds']:.1f} s"}

    return Comparison(
        name=name,
        contenders={WITHOUT: partial(build, False), WITH: compiled},
        reference=WITHOUT,
        memory=False,
        compare=facts,
    )


def encode(build: str, side: int, compiled: bool) -> Call:
    """Build the call that embeds an image."""
    sam = prepared(peers.random_sam(build, side), compiled)
    images = pixels(side, low=0.0 if build == "lite_medsam" else None)
    run: Callable[[Tensor], Tensor] = sam.encode
    if sam.build.encoder == "hiera":
        run = sam2_maps(sam)
    return torch.no_grad()(partial(run, images))


def step(build: str, side: int, compiled: bool) -> Call:
    """Build the call that trains LoRA in all blocks for one image."""
    blocks = len(peers.random_sam(build, side).attention_blocks())
    prepare = partial(prepared, compiled=compiled)
    return lora_step(build, side, "fp32", "cpu", blocks=blocks, prepare=prepare)


def decode(backward: bool, compiled: bool) -> Call:
    """Build the call that decodes 8 boxes of an image of ViT-B at 1024 pixels."""
    sam = prepared(peers.random_sam("vit_b"), compiled)
    embeddings, boxes = inputs(sam, images=1, prompts=8)
    embeddings.requires_grad_(backward)
    sam.mask_decoder.requires_grad_(backward)
    trained = [embeddings, *sam.mask_decoder.parameters()]

    def call() -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(backward):
            output = sam.decode(embeddings, Prompts(boxes=boxes), multimask=False)
        if not backward:
            return output.logits, output.iou
        loss = projection(output.logits, output.iou)
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        return tuple(gradient for gradient in gradients if gradient is not None)

    return call


def prepared(sam: Sam, compiled: bool) -> Sam:
    """Return the model, whose parts compile when they first run if it is asked for.

    What torch's cache on disk holds of earlier runs is not used.
    """
    if compiled:
        from torch._inductor import config

        config.force_disable_caches = True
        compile_parts(sam)
    return sam
