"""Load a pretrained model: find or fetch its file, detect the build, check it, build the model.

The tensors tell which build it is (encoder, width, depth, stem). They cannot tell MedSAM from SAM's
ViT-B, which differ only in preprocessing, nor SAM 2.0 from SAM 2.1 in a file without their memory:
there the name of the model decides, and without one the name of the file (whether it contains
``medsam``, or ``sam2`` without ``2.1``).
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
from samadapt.sam.segmentation_model import SegmentationModel
from samadapt.sam.video_memory import VideoMemory, memory_tensors
from samadapt.sam.weights.builds import BUILDS, TEST_BUILDS, Build
from samadapt.sam.weights.checkpoints import check_tensors, image_size_of, read_checkpoint
from samadapt.sam.weights.sam2_names import NEWER, memory_names
from samadapt.sam.weights.sources import (
    WeightsSource,
    fetch_weights,
    find_weights,
    known_weights,
    verify_official,
)
from samadapt.system.download import Progress

__all__ = [
    "WeightsSource",
    "base_hash",
    "detect_build",
    "find_weights",
    "known_weights",
    "load_sam",
]

logger = logging.getLogger(__name__)

_QKV = re.compile(r"image_encoder\.stages\.(\d+)\.blocks\.0\.attn\.qkv\.weight$")


def load_sam(
    name: str | None = None,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    *,
    progress: Progress | None = None,
) -> Sam:
    """Load a pretrained model, frozen and in evaluation mode.

    Without a checkpoint, the weights come from the cache folder (see ``samadapt.system.cache``),
    from an installed package (``lite_medsam``), or from a download into the cache folder. A file
    with the name of published weights is checked against their checksum.

    Args:
        name: ``vit_b``, ``vit_l``, ``vit_h``, ``medsam``, ``vit_t``, ``lite_medsam``, ``sam2_t``,
            ``sam2_s``, ``sam2_b+``, ``sam2_l`` (SAM 2.1), one of these with ``sam2.0``, or
            ``sam3_tracker``; optional with a checkpoint. Without a checkpoint, ``tiny``,
            ``tiny_t``, ``tiny_h`` and ``tiny_r`` are random models for tests, the same each time.
        checkpoint: a file of SAM, MedSAM, MobileSAM, LiteMedSAM, SAM 2, MedSAM2 or SAM 3, a Hugging
            Face ``SamModel``, ``Sam2Model``, ``Sam2VideoModel``, ``Sam3TrackerModel``,
            ``Sam3TrackerVideoModel`` or ``Sam3VideoModel`` (safetensors file or folder), or a
            safetensors file of samadapt.
        image_size: side of the model's square in pixels, if it differs from the file's. The
            position tables of a ViT are resampled to it. SAM 2 takes 512 if none is given; its
            weights were trained on 1024.
        progress: called while a download arrives; the default logs every tenth.

    Raises:
        WeightsError: there is nothing to load, the name is unknown, or the file is broken,
            incomplete, altered or of another model than ``name``; the message says which.
        DownloadError: the weights could not be fetched.
        ConfigError: the model cannot take the image size.
    """
    if name is not None and name not in BUILDS:
        raise WeightsError(
            f"unknown model {name!r}; known: {', '.join(BUILDS)}{nearest(name, BUILDS)}"
        )
    path = weights_file(name, checkpoint, progress)
    if path is None:
        return _freeze(_random_sam(BUILDS[str(name)], image_size))
    verify_official(path)
    tensors = read_checkpoint(path)
    build = _with_mask_tokens(_choose(detect_build(tensors, path), name, path), tensors)
    sam = build_sam(build, image_size=image_size or image_size_of(tensors, build))
    wanted = sam.state_dict()
    tensors, sam.memory = _without_memory(tensors, build, path)
    tensors = _resampled(tensors, wanted, build)
    check_tensors(path, tensors, wanted)
    sam.load_state_dict(tensors)
    return _freeze(sam)


def _without_memory(
    tensors: Mapping[str, Tensor], build: Build, path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Divide tensors into those of still images and those of SAM 2's memory of a video.

    Raises:
        WeightsError: there is a part of the memory and not all of it, or of another shape.
    """
    names = memory_names(build.version) if build.encoder == "hiera" else frozenset()
    memory = {key: tensor for key, tensor in tensors.items() if key in names}
    if memory and (missing := sorted(names - memory.keys())):
        raise WeightsError(
            f"{path}: {len(missing)} of the {len(names)} tensors of the memory of {build.name} are "
            f"missing, such as {missing[0]}; expected all of them, or none"
        )
    if memory:
        check_tensors(path, memory, memory_tensors(build))
    return {key: tensor for key, tensor in tensors.items() if key not in memory}, memory


def weights_file(
    name: str | None, checkpoint: str | Path | None = None, progress: Progress | None = None
) -> Path | None:
    """Return the file of a model's weights, downloaded if it is not here; None: random weights.

    Args:
        name: name of the model.
        checkpoint: a file that is taken instead; whether it exists is found when it is read.
        progress: hears about a download.

    Raises:
        WeightsError: neither is given, or the weights are not here and have no address.
        DownloadError: they could not be fetched.
    """
    if checkpoint:
        return Path(checkpoint).expanduser()
    if name is None:
        raise WeightsError(f"give the name of a model ({', '.join(known_weights)}) or a checkpoint")
    return None if name in TEST_BUILDS else fetch_weights(name, progress)


def base_hash(sam: SegmentationModel) -> str:
    """Return the SHA-256 (hex) of the tensors of a model: sorted names, types, shapes and bytes.

    The hash of a freshly loaded model identifies the base that an adapter was trained on. That of
    a ViT depends on the image size, because position tables are resampled to it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(sam.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def detect_build(tensors: Mapping[str, Tensor], path: Path) -> tuple[str, ...]:
    """Return the builds that the tensors of a checkpoint fit, by encoder, width, depth and stem.

    Args:
        tensors: what ``read_checkpoint`` returned.
        path: the file, for messages; its name tells MedSAM from ViT-B.

    Returns:
        Names of the builds, the most likely first. There are several only where the tensors cannot
        tell them apart.

    Raises:
        WeightsError: no build fits.
    """
    found = _signature(tensors)
    names = [
        name for name, build in BUILDS.items() if found.items() <= _build_signature(build).items()
    ]
    if not names:
        told = ", ".join(f"{key} {value}" for key, value in found.items())
        raise WeightsError(
            f"{path} holds no known model: expected one of {', '.join(known_weights)}; found {told}"
        )
    file = path.resolve().name.lower()
    if "medsam" in file:
        names.sort(key=lambda name: "medsam" not in name)
    if re.search(r"(?<!med)sam2(?!\.1)", file):  # MedSAM2 started from SAM 2.1
        names.sort(key=lambda name: "2.0" not in name)
    return tuple(names)


def _signature(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    def shape(key: str, axes: int) -> tuple[int, ...]:
        tensor = tensors.get(f"image_encoder.{key}")
        return tuple(tensor.shape) if tensor is not None and tensor.ndim == axes else (0,) * axes

    if "image_encoder.patch_embed.proj.weight" in tensors:
        patch = shape("patch_embed.proj.weight", 4)
        blocks = {key.split(".")[2] for key in tensors if key.startswith("image_encoder.blocks.")}
        return {"encoder": "vit", "width": patch[0], "depth": len(blocks), "patch": patch[2]}
    if "image_encoder.trunk.ln_pre.weight" in tensors:
        patch = shape("trunk.patch_embed.proj.weight", 4)
        blocks = {key.split(".")[3] for key in tensors if key.startswith("image_encoder.trunk.b")}
        return {"encoder": "rope_vit", "width": patch[0], "depth": len(blocks), "patch": patch[2]}
    if "image_encoder.trunk.patch_embed.proj.weight" in tensors:
        blocks = {key.split(".")[3] for key in tensors if key.startswith("image_encoder.trunk.b")}
        width = shape("trunk.patch_embed.proj.weight", 4)[0]
        signature: dict[str, object] = {"encoder": "hiera", "width": width, "depth": len(blocks)}
        if "no_mem_pos_enc" not in tensors:  # without the memory, the versions do not differ
            return signature
        return signature | {"version": "2.1" if NEWER[0] in tensors else "2.0"}
    stages = sorted(match[1] for key in tensors if (match := _QKV.match(key)))
    widths = [shape(f"stages.{i}.blocks.0.attn.qkv.weight", 2)[1] for i in stages]
    return {
        "encoder": "tiny_vit",
        "widths": (shape("patch_embed.conv2.conv.weight", 4)[0], *widths),
        "stem kernel": shape("patch_embed.conv1.conv.weight", 4)[2],
    }


def _build_signature(build: Build) -> dict[str, object]:
    if build.encoder in ("vit", "rope_vit"):
        return {
            "encoder": build.encoder,
            "width": build.embed_dim,
            "depth": build.depth,
            "patch": build.patch_size,
        }
    if build.encoder == "hiera":
        return {
            "encoder": "hiera",
            "width": build.stage_dims[0],
            "depth": sum(build.stage_depths),
            "version": build.version,
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
                f"{path}: expected the weights of {name!r}; its tensors are those of "
                f"{' or '.join(detected)}; leave the name out or give the other file"
            )
        return BUILDS[name]
    if len(detected) > 1:
        logger.info(
            "%s fits %s; taken as %s because of its file name (the name of the model overrides it)",
            path,
            " or ".join(detected),
            detected[0],
        )
    return BUILDS[detected[0]]


def _with_mask_tokens(build: Build, tensors: Mapping[str, Tensor]) -> Build:
    """Take the number of multimask outputs from the file: a merged model may have one per class."""
    tokens = tensors.get("mask_decoder.mask_tokens.weight")
    if tokens is None or tokens.ndim != 2 or tokens.shape[0] < 2:
        return build
    return replace(build, num_multimask=int(tokens.shape[0]) - 1)


def _resampled(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], build: Build
) -> dict[str, Tensor]:
    """Resample the position tables of a ViT to the model's image size; keep all other tensors."""
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
    """Build a random model for tests, whose output depends on the image and on every prompt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sam = build_sam(build, image_size=image_size)
        _fill_at_random(sam)
        if build.encoder == "hiera":
            memory = VideoMemory(build)
            _fill_at_random(memory)
            shapes = {name: tensor.shape for name, tensor in memory_tensors(build).items()}
            empty = {name: torch.zeros(shape) for name, shape in shapes.items()}
            sam.memory = empty | memory.state_dict()
    return sam


def _fill_at_random(model: nn.Module) -> None:
    for module in model.modules():
        norm = "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2:
                centre = 1.0 if norm and name == "weight" else 0.0
                nn.init.normal_(parameter, centre, 0.2)
            elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(parameter, 0.0, 1.5 / math.sqrt(parameter[0].numel()))
            else:
                nn.init.normal_(parameter, 0.0, 0.5)


def _freeze(sam: Sam) -> Sam:
    return sam.requires_grad_(False).eval()
