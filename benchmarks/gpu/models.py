"""SAM and its peers on one device: embedding images, a LoRA step, and decoding prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import flops, machine
from benchmarks.gpu.contest import Contest, Device
from benchmarks.harness import Build, Call
from benchmarks.machine import HALVES, PrecisionName

LIMITS = {"fp32": 1e-5, "tf32": 1e-2}
"""Highest relative error of an embedding. In bf16 and fp16 it is that of the best peer, times
``HALF_LIMIT``."""

HALF_LIMIT = 1.5


def encoder_row(
    build: str, size: int, precision: PrecisionName, images: int, device: Device
) -> Contest:
    """Compare embedding with segment-anything and transformers, at the same weights.

    The peers run under autocast. transformers has a second entry with its weights in half
    precision, as ``from_pretrained(..., dtype=...)`` loads them.
    """
    of = partial(_encoding, build, size, precision, images, device)
    contenders: dict[str, Build] = {
        "samadapt": partial(of, _ours),
        "segment-anything": partial(of, _segment_anything),
        "transformers": partial(of, _transformers),
    }
    if precision in HALVES:
        contenders[f"transformers, weights in {precision}"] = partial(of, _transformers, half=True)
    return Contest(
        name=f"{build} {size} {precision}, {images} at once",
        contenders=contenders,
        device=device,
        precision=precision,
        images=images,
        flop=partial(_flop, flops.encoder_forward, build, size),
        exact=partial(_exact_embedding, build, size, device),
        limit=partial(_limit, precision),
    )


def _limit(precision: PrecisionName, errors: Mapping[str, float]) -> float:
    if precision in LIMITS:
        return LIMITS[precision]
    others = [error for name, error in errors.items() if name != "samadapt"]
    return HALF_LIMIT * min(others, default=float("inf"))


def _encoding(
    build: str,
    size: int,
    precision: PrecisionName,
    images: int,
    device: Device,
    make: Callable[[Any], tuple[Any, nn.Module]],
    *,
    half: bool = False,
) -> Call:
    from benchmarks import peers
    from benchmarks.encoder import inference
    from benchmarks.train_step import batch

    sam = peers.random_sam(build, size, device=device)
    way = (machine.ours if make is _ours else machine.plain)(precision, device)
    encode, model = make(sam)
    way.prepare(model)
    if half:
        model.to(HALVES[precision])
    return inference(encode, batch(size, images, device), way)


def _ours(sam: Any) -> tuple[Any, nn.Module]:
    return sam.encode, sam


def _segment_anything(sam: Any) -> tuple[Any, nn.Module]:
    from benchmarks import peers

    encoder = peers.segment_anything(sam).image_encoder
    return encoder, encoder


def _transformers(sam: Any) -> tuple[Any, nn.Module]:
    from benchmarks import peers

    encoder = peers.transformers_encoder(sam)
    return lambda images: encoder(images).last_hidden_state, encoder


def _exact_embedding(build: str, size: int, device: Device) -> Tensor:
    """Return the embedding of segment-anything in float64, or of samadapt's model without it."""
    from benchmarks import peers
    from benchmarks.train_step import batch

    sam = peers.random_sam(build, size, device=device)
    try:
        encode = peers.segment_anything(sam).image_encoder.double()
    except ModuleNotFoundError:
        encode = sam.double().encode
    with torch.no_grad():
        embedding: Tensor = encode(batch(size, 1, device).double())
    return embedding


def _flop(count: Callable[..., float], build: str, size: int, **more: Any) -> float:
    from samadapt.sam.weights.builds import BUILDS

    return count(BUILDS[build], size, **more)


def step_row(
    build: str,
    size: int,
    precision: PrecisionName,
    images: int,
    device: Device,
    last: int | None = None,
) -> Contest:
    """Compare a LoRA step with SAMed's form of segment-anything and with transformers and peft.

    Args:
        build: name of the model's build.
        size: side of the square in pixels.
        precision: of the products.
        images: how many images a step takes.
        device: ``"cpu"`` or ``"cuda"``.
        last: adapt this many of the last blocks, samadapt with the stored features of the frozen
            prefix; None: adapt all blocks.
    """

    def of(name: str, **more: Any) -> Build:
        def make() -> Call:
            from benchmarks import train_step

            call: Call = getattr(train_step, name)(
                build, size, precision, device, blocks=blocks(), images=images, **more
            )
            return call

        return make

    def blocks() -> int:
        from samadapt.sam.weights.builds import BUILDS

        return BUILDS[build].depth if last is None else last

    def exact() -> Any:
        from benchmarks import train_step

        return train_step.samed(build, size, "fp32", device, blocks=blocks(), images=images)()

    def count() -> float:
        from benchmarks.train_step import RANK

        return _flop(flops.lora_step, build, size, blocks=blocks(), rank=2 * RANK)

    where = "all blocks" if last is None else f"last {last} blocks, prefix stored"
    return Contest(
        name=f"LoRA step, {build} {size} {precision}, {where}, {images} at once",
        contenders={
            "samadapt": of("ours", cached=last is not None),
            "transformers with peft": of("transformers_peft"),
            "segment-anything": of("samed"),
        },
        device=device,
        precision=precision,
        images=images,
        flop=count,
        exact=exact,
    )


def decoder_row(
    build: str,
    images: int,
    prompts: int,
    precision: PrecisionName,
    device: Device,
    *,
    backward: bool,
) -> Contest:
    """Compare decoding boxes with segment-anything, which takes one image after the other."""

    def of(name: str) -> Build:
        def make() -> Call:
            from benchmarks import decoder

            call: Call = getattr(decoder, name)(build, images, prompts, backward, precision, device)
            return call

        return make

    def exact() -> Any:
        from benchmarks import decoder

        return decoder.exact(build, images, prompts, backward, device)

    what = f"forward{' and backward' if backward else ''}"
    return Contest(
        name=f"decoder of {build} {precision}, {images} x {prompts} boxes, {what}",
        contenders={"samadapt": of("ours"), "segment-anything": of("segment_anything")},
        device=device,
        precision=precision,
        images=images,
        exact=exact,
        limit=None if precision != "fp32" else lambda errors: 1e-4,
    )
