"""A training step of LoRA on q and v for one image: forward, and backward to A and B.

The loss is a fixed random projection of the embedding, so the decoder is not part of it. All
contenders have the same A and B (B is not zero), and their gradients are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks import flops, machine, peers
from benchmarks.encoder import joined_maps, pixels, sam2_maps
from benchmarks.harness import Call, Comparison
from benchmarks.machine import Arithmetic, PrecisionName
from samadapt.adapters.injection import inject
from samadapt.methods import METHODS
from samadapt.sam.model import Sam
from samadapt.sam.weights.builds import BUILDS

RANK = 4
Pair = tuple[Tensor, Tensor]
Device = Literal["cpu", "cuda"]


def rows() -> Iterator[Comparison]:
    """Yield all blocks at three sizes, the last 3 with a stored prefix, SAM 2, and a GPU's rows."""
    for size in (1024, 512, 256):
        yield row("vit_b", size)
    yield cached_row("vit_b", 1024, blocks=3)
    for build in ("sam2_t", "sam2_b+"):
        yield sam2_row(build, 512)
    if torch.cuda.is_available():
        yield row("vit_b", 1024, "bf16", "cuda")
        yield cached_row("vit_b", 1024, blocks=3, precision="bf16", device="cuda")


def row(
    build: str, size: int, precision: PrecisionName = "fp32", device: Device = "cpu"
) -> Comparison:
    """Compare LoRA in all blocks with segment-anything (as SAMed) and transformers with peft."""
    depth = BUILDS[build].depth
    share = {"build": build, "size": size, "precision": precision, "device": device}
    return Comparison(
        name=f"{build} {size} {precision}, all blocks{_suffix(device)}",
        contenders={
            "samadapt": partial(ours, blocks=depth, **share),
            "segment-anything": partial(samed, blocks=depth, **share),
            "transformers with peft": partial(transformers_peft, blocks=depth, **share),
        },
        flop=lambda: flops.lora_step(BUILDS[build], size, blocks=depth, rank=2 * RANK),
        precision=precision,
        reference="segment-anything",
        device=device,
    )


def sam2_row(build: str, size: int, precision: PrecisionName = "fp32") -> Comparison:
    """Compare LoRA in all blocks of SAM 2 with transformers and peft."""
    share: dict[str, Any] = {"build": build, "size": size, "precision": precision, "device": "cpu"}
    every = partial(ours, blocks=BUILDS[build].blocks, **share)
    return Comparison(
        name=f"{build} {size} {precision}, all blocks",
        contenders={
            "samadapt": every,
            "transformers with peft": partial(
                transformers_peft, blocks=BUILDS[build].blocks, **share
            ),
        },
        flop=lambda: flops.counted(every()),
        precision=precision,
        reference="transformers with peft",
    )


def cached_row(
    build: str,
    size: int,
    blocks: int,
    precision: PrecisionName = "fp32",
    device: Device = "cpu",
) -> Comparison:
    """Compare the last blocks on stored features with peers, which run the whole encoder.

    The gradients are those of the last blocks. Where a peer adapts all blocks, B is zero in the
    others.
    """
    depth = BUILDS[build].depth
    share = {"build": build, "size": size, "precision": precision, "device": device}
    everywhere = partial(transformers_peft, blocks=blocks, adapted=depth, **share)
    return Comparison(
        name=f"{build} {size} {precision}, last {blocks} blocks, prefix stored{_suffix(device)}",
        contenders={
            "samadapt": partial(ours, blocks=blocks, cached=True, **share),
            f"transformers with peft, {blocks} blocks": partial(
                transformers_peft, blocks=blocks, **share
            ),
            "transformers with peft, all blocks": everywhere,
        },
        flop=lambda: flops.lora_step(BUILDS[build], size, blocks=blocks, rank=2 * RANK),
        precision=precision,
        reference=lambda: samed(blocks=blocks, **share | {"precision": "fp32"})(),
        device=device,
    )


def updates(sam: Sam, blocks: int) -> dict[int, Pair]:
    """Return A (2 rank, inputs) and B (2, width, rank) of q and v for each of the last blocks."""
    found = {}
    for block in sam.attention_blocks()[-blocks:]:
        generator = torch.Generator().manual_seed(100 + block.index)
        a = torch.randn(2 * RANK, block.inputs, generator=generator) * block.inputs**-0.5
        b = torch.randn(2, block.width, RANK, generator=generator) * 0.1
        found[block.index] = (a.to(sam.device), b.to(sam.device))
    return found


def ours(
    build: str,
    size: int,
    precision: PrecisionName,
    device: Device,
    *,
    blocks: int,
    cached: bool = False,
    images: int = 1,
    prepare: Callable[[Sam], Any] = lambda sam: sam,
) -> Call:
    """Build samadapt's step.

    With ``cached`` the frozen prefix runs once, in this function. ``prepare`` gets the model when
    LoRA is in it.
    """
    sam = peers.random_sam(build, size, device=device)
    lora = replace(METHODS["lora"](), rank=RANK, blocks=f"last:{blocks}", decoder="frozen")
    injection = inject(sam, lora)
    sam.to(device)
    pairs = []
    for block in injection.attention_blocks:
        a = sam.get_parameter(f"{block.qkv}.lora_A.default.weight")
        b = sam.get_parameter(f"{block.qkv}.lora_B.default.blocks")
        _fill((a, b), updates(sam, blocks)[block.index])
        pairs.append((a, b))
    injection.set_training(sam)
    prepare(sam)
    way = machine.ours(precision, device)
    way.prepare(sam)
    given, first_trainable_block = batch(size, images, device), injection.first_trainable_block
    encode: Callable[[Tensor], Tensor] = sam.encode
    if sam.build.encoder == "hiera":
        encode = sam2_maps(sam)
    if cached:
        with torch.no_grad(), way.forward():
            given = sam.encode_prefix(given, first_trainable_block)
        encode = partial(sam.encode_suffix, first_trainable_block=first_trainable_block)
    return _step(encode, given, way, pairs, lambda: [(a.grad, b.grad) for a, b in pairs])


class SamedQKV(nn.Module):
    """LoRA on q and v of segment-anything's fused projection, written as in SAMed."""

    def __init__(self, qkv: nn.Linear, pair: Pair) -> None:
        super().__init__()
        self.qkv = qkv
        (a_q, a_v), (b_q, b_v) = pair[0].split(RANK), pair[1]
        self.linear_a_q, self.linear_b_q = _linear(a_q), _linear(b_q)
        self.linear_a_v, self.linear_b_v = _linear(a_v), _linear(b_v)
        self.dim = qkv.in_features

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, h, w, width) to (b, h, w, 3 width)."""
        qkv: Tensor = self.qkv(x)
        qkv[:, :, :, : self.dim] += self.linear_b_q(self.linear_a_q(x))
        qkv[:, :, :, -self.dim :] += self.linear_b_v(self.linear_a_v(x))
        return qkv

    def gradients(self) -> Pair:
        """Return the gradients of A and B in the shapes of ``updates``."""
        a = [_grad(part.weight) for part in (self.linear_a_q, self.linear_a_v)]
        b = [_grad(part.weight) for part in (self.linear_b_q, self.linear_b_v)]
        return torch.cat(a), torch.stack(b)


def samed(
    build: str,
    size: int,
    precision: PrecisionName,
    device: Device,
    *,
    blocks: int,
    images: int = 1,
) -> Call:
    """Build segment-anything's step."""
    sam = peers.random_sam(build, size, device=device)
    encoder = peers.segment_anything(sam).image_encoder
    layers = []
    for index, pair in updates(sam, blocks).items():
        attn = encoder.blocks[index].attn
        attn.qkv = SamedQKV(attn.qkv, pair)
        layers.append(attn.qkv)
    return _step(
        encoder,
        batch(size, images, device),
        machine.plain(precision, device),
        [tuple(p for p in layer.parameters() if p.requires_grad) for layer in layers],
        lambda: [layer.gradients() for layer in layers],
    )


def transformers_peft(
    build: str,
    size: int,
    precision: PrecisionName,
    device: Device,
    *,
    blocks: int,
    adapted: int | None = None,
    images: int = 1,
) -> Call:
    """Build the step of transformers with peft: one dense LoRA of twice the rank on ``qkv``.

    Args:
        build: name of the model's build.
        size: side of the square in pixels.
        precision: of torch's autocast.
        device: ``"cpu"`` or ``"cuda"``.
        blocks: of how many of the last blocks A and B are filled and gradients returned.
        adapted: how many of the last blocks have LoRA; None is as many.
        images: how many images a step takes.
    """
    from peft import LoraConfig, get_peft_model

    sam = peers.random_sam(build, size, device=device)
    is_sam2 = sam.build.encoder == "hiera"
    encoder = peers.transformers_sam2(sam) if is_sam2 else peers.transformers_encoder(sam)
    root = "backbone.blocks" if is_sam2 else "layers"
    every = list(encoder.get_submodule(root))
    depth = len(every)
    names = [f"{root}.{i}.attn.qkv" for i in range(depth - (adapted or blocks), depth)]
    config = LoraConfig(r=2 * RANK, lora_alpha=2 * RANK, target_modules=names)
    model: Any = get_peft_model(encoder, config).to(device).train()
    layers = [every[index].attn.qkv for index in updates(sam, blocks)]
    pairs = [(one.lora_A.default.weight, one.lora_B.default.weight) for one in layers]
    for pair, (a, b) in zip(pairs, updates(sam, blocks).values(), strict=True):
        dense = b.new_zeros(3 * b.shape[1], 2 * RANK)
        for slice_, part in zip(_slices(dense), b, strict=True):
            slice_.copy_(part)
        _fill(pair, (a, dense))

    def gradients() -> list[Pair]:
        return [(_grad(a), torch.stack(_slices(_grad(b)))) for a, b in pairs]

    def encode(images: Tensor) -> Tensor:
        embedding: Tensor = model(images).last_hidden_state
        return embedding

    if is_sam2:
        encode = joined_maps(model)
    trained = [tuple(p for p in model.parameters() if p.requires_grad)]
    way = machine.plain(precision, device)
    return _step(encode, batch(size, images, device), way, trained, gradients)


def batch(size: int, images: int, device: Device) -> Tensor:
    """Return the same preprocessed image several times: (images, 3, s, s)."""
    return pixels(size).to(device).repeat(images, 1, 1, 1)


def _step(
    encode: Callable[[Tensor], Tensor],
    images: Tensor,
    way: Arithmetic,
    trained: Sequence[Sequence[nn.Parameter]],
    gradients: Callable[[], Sequence[tuple[Tensor | None, ...]]],
) -> Call:
    """Return the call: clear gradients, run forward, loss and backward, return the gradients."""
    parameters = [parameter for group in trained for parameter in group]

    def call() -> tuple[Tensor, ...]:
        for parameter in parameters:
            parameter.grad = None
        with way.forward():
            embedding = encode(images)
        generator = torch.Generator().manual_seed(6)
        weight = torch.randn(embedding.shape[1:], generator=generator).to(embedding.device)
        with way.backward():
            (embedding.float() * weight).sum().backward()
        return tuple(one for pair in gradients() for one in pair if one is not None)

    return call


def _fill(parameters: Sequence[nn.Parameter], values: Pair) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
    layer.weight = nn.Parameter(weight.clone())
    return layer


def _slices(dense: Tensor) -> list[Tensor]:
    """Return the parts of a dense B (3 width, 2 rank) that belong to q and v."""
    width = len(dense) // 3
    return [dense[:width, :RANK], dense[2 * width :, RANK:]]


def _grad(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("a trained parameter got no gradient")
    return parameter.grad


def _suffix(device: Device) -> str:
    return ", cuda" if device == "cuda" else ""
