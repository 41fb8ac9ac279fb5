"""Pretrained models: find or fetch a file, detect what it is, check it, and build the model.

The kind of model is read from the tensors (encoder, width, depth, stem). What the tensors cannot
tell is MedSAM from SAM's ViT-B, which differ in preprocessing only: the name decides, and without
one the file's own name (``medsam`` in it).
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from samadapt.errors import WeightsError, nearest
from samadapt.sam.image_encoder import resample_pos_embed, resample_rel_pos
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.weights.builds import BUILDS, Build
from samadapt.sam.weights.checkpoints import check_tensors, image_size_of, read_checkpoint
from samadapt.sam.weights.sources import (
    WeightsSource,
    cache_dir,
    fetch_weights,
    find_weights,
    known_weights,
    verify_official,
)
from samadapt.system.download import Progress

__all__ = [
    "WeightsSource",
    "base_hash",
    "cache_dir",
    "detect_build",
    "find_weights",
    "known_weights",
    "load_sam",
]

logger = logging.getLogger(__name__)

_RANDOM_BUILDS = ("tiny", "tiny_t")
_QKV = re.compile(r"image_encoder\.stages\.(\d+)\.blocks\.0\.attn\.qkv\.weight$")


def load_sam(
    name: str | None = None,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    *,
    progress: Progress | None = None,
) -> Sam:
    """Load a pretrained model, frozen and in evaluation mode.

    Without a checkpoint the weights come from the cache folder (``$SAMADAPT_CACHE``, else
    torch.hub's), an installed package (``lite_medsam``), or a download into the cache folder. A
    file with the name of published weights is checked against their checksum.

    Args:
        name: ``vit_b``, ``vit_l``, ``vit_h``, ``medsam``, ``vit_t`` or ``lite_medsam``; optional
            with a checkpoint. ``tiny`` and ``tiny_t`` without a checkpoint are random models for
            tests, the same each time.
        checkpoint: an official, MedSAM, MobileSAM or LiteMedSAM file, a Hugging Face ``SamModel``
            (safetensors file or folder), or a safetensors file of ours.
        image_size: side of the model's square in pixels, if another than the file's; a ViT's
            position tables are resampled to it.
        progress: told how far a download is; the default logs every tenth.

    Raises:
        WeightsError: nothing to load, an unknown name, or a file that is broken, incomplete,
            altered or of another kind than ``name``; says which.
        DownloadError: the weights could not be fetched.
        ConfigError: an image size that the model cannot take.
    """
    if name is not None and name not in BUILDS:
        raise WeightsError(
            f"unknown model {name!r}; known: {', '.join(BUILDS)}{nearest(name, BUILDS)}"
        )
    if checkpoint is None:
        if name is None:
            raise WeightsError(
                f"give the name of a model ({', '.join(known_weights)}) or a checkpoint"
            )
        if name in _RANDOM_BUILDS:
            return _freeze(_random_sam(BUILDS[name], image_size))
    path = Path(checkpoint).expanduser() if checkpoint else fetch_weights(str(name), progress)
    verify_official(path)
    tensors = read_checkpoint(path)
    build = _with_mask_tokens(_choose(detect_build(tensors, path), name, path), tensors)
    sam = build_sam(build, image_size=image_size or image_size_of(tensors, build))
    wanted = sam.state_dict()
    tensors = _resampled(tensors, wanted, build)
    check_tensors(path, tensors, wanted)
    sam.load_state_dict(tensors)
    return _freeze(sam)


def base_hash(sam: Sam) -> str:
    """Return the SHA-256 (hex) of a model's tensors: sorted names, types, shapes and bytes.

    Called on a freshly loaded model it identifies the base that an adapter was trained on. It
    depends on the image size, to which position tables are resampled.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(sam.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def detect_build(tensors: Mapping[str, Tensor], path: Path) -> tuple[str, ...]:
    """Tell which builds a checkpoint's tensors belong to, by encoder, width, depth and stem.

    Args:
        tensors: from ``read_checkpoint``.
        path: the file, for messages and to tell MedSAM by its name.

    Returns:
        Names of the builds, the likeliest first; several only where tensors cannot tell.

    Raises:
        WeightsError: none of the builds.
    """
    found = _signature(tensors)
    names = [name for name, build in BUILDS.items() if _build_signature(build) == found]
    if not names:
        told = ", ".join(f"{key} {value}" for key, value in found.items())
        raise WeightsError(
            f"{path} is of no known model: found {told}; known: {', '.join(known_weights)}"
        )
    if "medsam" in path.resolve().name.lower():
        names.sort(key=lambda name: "medsam" not in name)
    return tuple(names)


def _signature(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    def shape(key: str, axes: int) -> tuple[int, ...]:
        tensor = tensors.get(f"image_encoder.{key}")
        return tuple(tensor.shape) if tensor is not None and tensor.ndim == axes else (0,) * axes

    if "image_encoder.patch_embed.proj.weight" in tensors:
        patch = shape("patch_embed.proj.weight", 4)
        blocks = {key.split(".")[2] for key in tensors if key.startswith("image_encoder.blocks.")}
        return {"encoder": "vit", "width": patch[0], "depth": len(blocks), "patch": patch[2]}
    stages = sorted(match[1] for key in tensors if (match := _QKV.match(key)))
    widths = [shape(f"stages.{i}.blocks.0.attn.qkv.weight", 2)[1] for i in stages]
    return {
        "encoder": "tiny_vit",
        "widths": (shape("patch_embed.conv2.conv.weight", 4)[0], *widths),
        "stem kernel": shape("patch_embed.conv1.conv.weight", 4)[2],
    }


def _build_signature(build: Build) -> dict[str, object]:
    if build.encoder == "vit":
        return {
            "encoder": "vit",
            "width": build.embed_dim,
            "depth": build.depth,
            "patch": build.patch_size,
        }
    return {
        "encoder": "tiny_vit",
        "widths": build.stage_dims,
        "stem kernel": 1 if build.stem_stride == 1 else 3,
    }


def _choose(detected: tuple[str, ...], name: str | None, path: Path) -> Build:
    if name is not None:
        if name not in detected:
            raise WeightsError(
                f"{path} holds {' or '.join(detected)}, by its tensors, and not {name!r}; "
                "leave the name out or give the other file"
            )
        return BUILDS[name]
    if len(detected) > 1:
        logger.info(
            "%s can be %s; taken as %s by its file name (the name of the model overrides this)",
            path,
            " or ".join(detected),
            detected[0],
        )
    return BUILDS[detected[0]]


def _with_mask_tokens(build: Build, tensors: Mapping[str, Tensor]) -> Build:
    """Take the number of multimask outputs from the file: a merged model may have one a class."""
    tokens = tensors.get("mask_decoder.mask_tokens.weight")
    if tokens is None or tokens.ndim != 2 or tokens.shape[0] < 2:
        return build
    return replace(build, num_multimask=int(tokens.shape[0]) - 1)


def _resampled(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], build: Build
) -> dict[str, Tensor]:
    """Bring a ViT's position tables to the model's size; other tensors stay as they are."""
    out = dict(tensors)
    side = image_size_of(tensors, build) // build.patch_size
    key = "image_encoder.pos_embed"
    if key not in wanted or key not in out or out[key].shape[1:3] != (side, side):
        return out
    new = wanted[key].shape
    out[key] = resample_pos_embed(out[key], (new[1], new[2]))
    for index in build.global_blocks:
        for axis in "hw":
            key = f"image_encoder.blocks.{index}.attn.rel_pos_{axis}"
            if key in out and key in wanted and out[key].shape[0] == 2 * side - 1:
                out[key] = resample_rel_pos(out[key], wanted[key].shape[0])
    return out


def _random_sam(build: Build, image_size: int | None) -> Sam:
    """Build a random model whose output depends on the image and on every prompt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sam = build_sam(build, image_size=image_size)
        for module in sam.modules():
            norm = "Norm" in type(module).__name__
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim < 2:
                    centre = 1.0 if norm and name == "weight" else 0.0
                    nn.init.normal_(parameter, centre, 0.2)
                elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                    nn.init.normal_(parameter, 0.0, 1.5 / math.sqrt(parameter[0].numel()))
                else:
                    nn.init.normal_(parameter, 0.0, 0.5)
    return sam


def _freeze(sam: Sam) -> Sam:
    return sam.requires_grad_(False).eval()
