"""Decoding 64 boxes with the decoder of ViT-B at 1024 pixels: in one image, and in eight."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import flops, machine, peers
from benchmarks.harness import Call, Comparison
from benchmarks.machine import PrecisionName
from samadapt.sam.model import Sam
from samadapt.sam.types import Prompts

Decoded = tuple[Tensor, Tensor]
Device = Literal["cpu", "cuda"]


def rows() -> Iterator[Comparison]:
    """Yield 64 prompts on one image and 8 on each of 8 images, forward and with backward."""
    for images, prompts in ((1, 64), (8, 8)):
        for backward in (False, True):
            yield row("vit_b", images, prompts, backward)


def row(build: str, images: int, prompts: int, backward: bool) -> Comparison:
    """Compare ``Sam.decode`` with segment-anything's prompt encoder and decoder, image by image.

    The loss of the backward pass is a fixed random projection of logits and predicted IoU. It
    reaches the weights of the decoder and the embeddings, as when the decoder and LoRA in the
    encoder are trained.
    """
    name = f"{build} {images} x {prompts} boxes, forward{' and backward' if backward else ''}"
    return Comparison(
        name=name,
        contenders={
            "samadapt": partial(ours, build, images, prompts, backward),
            "segment-anything": partial(segment_anything, build, images, prompts, backward),
        },
        flop=lambda: images * prompts * flop_of_one(build, backward),
        reference=lambda: exact(build, images, prompts, backward),
    )


def ours(
    build: str,
    images: int,
    prompts: int,
    backward: bool,
    precision: PrecisionName = "fp32",
    device: Device = "cpu",
) -> Call:
    """Build samadapt's call: all images at once."""
    sam = peers.random_sam(build, device=device)
    embeddings, boxes = inputs(sam, images, prompts)
    way = machine.ours(precision, device)

    def decode() -> Decoded:
        with way.forward():
            output = sam.decode(embeddings, Prompts(boxes=boxes), multimask=False)
        return output.logits, output.iou

    if not backward:
        return torch.no_grad()(decode)

    def step() -> tuple[Tensor, ...]:
        _clear(sam.mask_decoder, embeddings)
        loss = projection(*decode())
        with way.backward():
            loss.backward()
        return _gradients(sam.mask_decoder, embeddings)

    return step


def segment_anything(
    build: str,
    images: int,
    prompts: int,
    backward: bool,
    precision: PrecisionName = "fp32",
    device: Device = "cpu",
) -> Call:
    """Build segment-anything's call: one image after the other."""
    sam = peers.random_sam(build, device=device)
    model = peers.segment_anything(sam)
    embeddings, boxes = inputs(sam, images, prompts)
    way = machine.plain(precision, device)

    def decode() -> Decoded:
        with way.forward():
            return reference_decode(model, embeddings, boxes)

    if not backward:
        return torch.no_grad()(decode)

    def step() -> tuple[Tensor, ...]:
        _clear(model.mask_decoder, embeddings)
        projection(*decode()).backward()
        return _gradients(model.mask_decoder, embeddings)

    return step


def reference_decode(model: Any, embeddings: Tensor, boxes: Tensor) -> Decoded:
    """Decode one image after the other, because segment-anything's decoder takes one image."""
    outputs = []
    for embedding, own in zip(embeddings, boxes, strict=True):
        sparse, dense = model.prompt_encoder(points=None, boxes=own, masks=None)
        outputs.append(
            model.mask_decoder(
                image_embeddings=embedding[None],
                image_pe=model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
        )
    return torch.stack([o[0] for o in outputs]), torch.stack([o[1] for o in outputs])


def inputs(sam: Sam, images: int, prompts: int) -> tuple[Tensor, Tensor]:
    """Return random embeddings (b, c, g, g) and boxes (b, p, 4) XYXY on the model's device."""
    generator = torch.Generator().manual_seed(3)
    side, width = sam.embedding_size, sam.build.prompt_width
    embeddings = torch.randn(images, width, side, side, generator=generator)
    corners = torch.rand(images, prompts, 2, 2, generator=generator) * sam.image_size
    return embeddings.to(sam.device), corners.sort(dim=2).values.flatten(2).to(sam.device)


def projection(logits: Tensor, iou: Tensor) -> Tensor:
    """Return a fixed random projection of logits (b, p, 1, h, w) and predicted IoU (b, p, 1)."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(logits.shape[-2:], generator=generator).to(logits)
    return (logits * weight).sum() + iou.sum()


@cache
def exact(
    build: str, images: int, prompts: int, backward: bool, device: Device = "cpu"
) -> tuple[Tensor, ...]:
    """Return the values of segment-anything in float64; backward takes a few prompts at a time."""
    sam = peers.random_sam(build, device=device)
    model = peers.in_float64(peers.segment_anything(sam))
    embeddings, boxes = (one.double() for one in inputs(sam, images, prompts))
    if not backward:
        with torch.no_grad():
            return reference_decode(model, embeddings, boxes)
    _clear(model.mask_decoder, embeddings)
    for image in range(images):
        for some in boxes[image].split(8):
            part = reference_decode(model, embeddings[image, None], some[None])
            projection(*part).backward()
    return _gradients(model.mask_decoder, embeddings)


@cache
def flop_of_one(build: str, backward: bool) -> float:
    """Return the operations that torch counts for one prompt in segment-anything."""
    return flops.counted(segment_anything(build, 1, 1, backward))


def _clear(decoder: torch.nn.Module, embeddings: Tensor) -> None:
    for one in (embeddings, *decoder.parameters()):
        one.requires_grad_(True)
        one.grad = None


def _gradients(decoder: torch.nn.Module, embeddings: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients in the order of names; zeros for tokens that the loss does not use."""
    named = sorted(decoder.named_parameters())
    wanted = (embeddings, *(parameter for _, parameter in named))
    return tuple(torch.zeros_like(p) if p.grad is None else p.grad for p in wanted)
