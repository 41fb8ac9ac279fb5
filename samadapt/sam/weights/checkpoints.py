"""Read any checkpoint of a Segment Anything model, with tensors named as in this package."""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from samadapt.errors import WeightsError
from samadapt.sam.weights.builds import Build
from samadapt.sam.weights.names import hugging_face_names, tiny_vit_key
from samadapt.sam.weights.sam2_names import from_hugging_face, sam2_key
from samadapt.sam.weights.sam3_names import from_sam3, is_sam3
from samadapt.sam.weights.tensor_guard import check_archive, check_dense, check_shard

logger = logging.getLogger(__name__)

# Entries of a file under which training programs keep the tensors of a model. timm and others also
# keep the moving average of the weights (EMA), beside them or alone.
_WRAPPERS = ("model", "model_state", "state_dict", "model_state_dict", "net", "network")
_EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")

# What training programs save beside the weights: arguments, paths and numpy numbers. These classes
# hold only plain values, so unpickling them runs no code from the file. torch's restricted
# unpickler (weights_only=True) refuses everything else.
_HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    pathlib.WindowsPath,
    pathlib.PureWindowsPath,
    np.dtype,
    np.float64(0).__reduce__()[0],  # the function that makes a numpy scalar
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")),
)

# The image encoder of SAM 2: Meta's name, then that of transformers.
_SAM2 = re.compile(r"(?:image_encoder\.trunk|vision_encoder\.backbone)\.")
_HF_KINDS = ("sam", "sam2", "sam2_video", "sam3_tracker", "sam3_tracker_video", "sam3_video")
_INDEX = "model.safetensors.index.json"
_ENCODERS = ("image_encoder.", "vision_encoder.")
_BLOCK = re.compile(
    r"(?:image|vision)_encoder\.(?:(?:trunk|backbone)\.)?(?:blocks|layers|stages)\.\d"
)

# Image encoders without the rest of SAM: timm's samvit and tiny_vit.
_ENCODER_ALONE = re.compile(r"blocks\.\d+\.attn\.rel_pos_h$|stages\.\d+\.blocks\.\d+\.local_conv\.")

# Buffers that some files hold although they follow from the build, and the classifier with which
# MobileSAM's encoder was first trained.
_DERIVED = re.compile(
    r"pixel_mean$|pixel_std$|.*\.attention_bias_idxs$"
    r"|image_encoder\.(?:norm_head|head)\.(?:weight|bias)$"
)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint under the names of ``Sam.state_dict()``.

    The checkpoint may be a file of SAM, MedSAM, MobileSAM, LiteMedSAM, SAM 2, MedSAM2 or SAM 3, a
    Hugging Face ``SamModel``, ``Sam2Model``, ``Sam2VideoModel``, ``Sam3TrackerModel``,
    ``Sam3TrackerVideoModel`` or ``Sam3VideoModel`` (file or folder), or a safetensors file of
    samadapt. It may have a wrapper such as ``{"model": ...}`` and a prefix such as ``module.``.
    What a training program saved beside the weights (arguments, epoch, optimizer) is ignored.

    Of SAM 2, the tensors of the memory are returned too, under the names of ``Sam.memory``. Of
    SAM 3, only the tracker's weights for still pictures are: the log counts the others.

    Raises:
        WeightsError: the file is missing, empty or broken, holds something else than tensors, no
            SAM, only a part of SAM, or NaN or infinite values.
    """
    tensors, inside = _as_tensors(_read(path), path)
    if is_sam3(tensors):
        named, others = from_sam3(tensors)
        if others:
            logger.info(
                "%s: %d tensors of SAM 3's detector, text encoder and memory are not read, "
                "such as %s",
                path,
                len(others),
                others[0],
            )
        return _finite(named, path)
    prefix = _prefix(tensors)
    if prefix is None and (encoder := [key for key in tensors if _ENCODER_ALONE.search(key)]):
        raise WeightsError(
            f"{path}{inside} holds an image encoder alone, as timm's samvit checkpoints do (for "
            f"example {encoder[0]}): the prompt encoder and the mask decoder are missing; expected "
            "a whole Segment Anything model. Give the published checkpoint of that model instead, "
            "for example sam_vit_b_01ec64.pth, or leave the checkpoint out and give only the name "
            "of the model (vit_b, vit_l, vit_h or vit_t)"
        )
    if prefix is None:
        raise WeightsError(
            f"{path}{inside} holds no Segment Anything model: expected tensors named "
            f"image_encoder.… or vision_encoder.…; got {len(tensors)} others: {_some(tensors)}"
        )
    if not any(_BLOCK.search(key) for key in tensors):
        raise WeightsError(
            f"{path}{inside} holds a part of a Segment Anything model: expected the blocks of an "
            f"image encoder too; got {len(tensors)} tensors: {_some(tensors)}"
        )
    named = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    named = {key: tensor for key, tensor in _renamed(named).items() if not _DERIVED.match(key)}
    return _finite(named, path)


def _finite(named: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors; raise ``WeightsError`` if one holds NaN or infinite values."""
    bad = [k for k, t in named.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if bad:
        raise WeightsError(f"{path} holds NaN or infinite values in: {_some(bad)}")
    return named


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names of ``Sam.state_dict()``."""
    is_second = any(_SAM2.match(key) for key in tensors)
    if any(key.startswith("vision_encoder.") for key in tensors):
        if is_second:
            return from_hugging_face(tensors)
        names = hugging_face_names(tensors)
        tensors = {names[key]: tensor for key, tensor in tensors.items()}
    if is_second:
        return {sam2_key(key): tensor for key, tensor in tensors.items()}
    if not any(key.startswith("image_encoder.blocks.") for key in tensors):
        return {tiny_vit_key(key): tensor for key, tensor in tensors.items()}
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a torch or safetensors file under the names in the file.

    Raises:
        WeightsError: the file is missing, empty or broken, or holds something else than tensors.
    """
    return _as_tensors(_read(path), path)[0]


def check_tensors(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Check that a checkpoint has exactly the tensors of a model.

    Args:
        path: the file, for the message.
        found: the tensors of the checkpoint.
        wanted: the state dict of the model.

    Raises:
        WeightsError: tensors are missing, unexpected or have a wrong shape; the message counts
            them and names the first ones.
    """
    shapes = [
        f"{key} expected {tuple(wanted[key].shape)} got {tuple(found[key].shape)}"
        for key in wanted
        if key in found and wanted[key].shape != found[key].shape
    ]
    faults = (
        ("missing", [key for key in wanted if key not in found]),
        ("unexpected", [key for key in found if key not in wanted]),
        ("of a wrong shape", shapes),
    )
    told = [f"{len(keys)} {fault}: {_some(keys)}" for fault, keys in faults if keys]
    if told:
        raise WeightsError(f"{path} does not fill the model: " + "; ".join(told))


def image_size_of(tensors: Mapping[str, Tensor], build: Build) -> int:
    """Return the image size in pixels that the position tables of a checkpoint were made for."""
    table = tensors.get("image_encoder.pos_embed")
    if table is None or table.ndim != 4:
        return build.image_size
    return int(table.shape[1]) * build.patch_size


def _read(path: Path) -> Any:
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise WeightsError(f"no such checkpoint: {path}")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
    if size == 0:
        raise WeightsError(f"{path} is empty")
    safe = head[8:9] == b"{"
    if not safe and not head.startswith((b"PK", b"\x80")):
        raise WeightsError(
            f"{path} is no checkpoint: expected a torch or safetensors file; its {size} bytes are "
            "neither. Perhaps a web page or a Git LFS pointer was saved in its place"
        )
    try:
        if safe:
            return load_file(path)
        check_archive(path)
        with torch.serialization.safe_globals(list(_HARMLESS)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors and plain values, or is broken; expected the tensors "
            "of a model, because other objects can run code when they are loaded. Save only the "
            "model's state_dict() where the file was written, and give that file"
            f"{_unpickler_reason(error)}"
        ) from None
    except Exception as error:  # broken bytes make the readers raise nearly anything
        raise WeightsError(
            f"{path} cannot be read ({size} bytes; broken or truncated?): {type(error).__name__}"
        ) from None


def _unpickler_reason(error: Exception) -> str:
    """Return which class torch refuses, without torch's advice to allow it."""
    found = re.search(r"GLOBAL (\S+)|(?:class|function|type) '?([\w.]+\.[\w.]+)", str(error))
    return f"; found: {found[1] or found[2]}" if found else ""


def _read_folder(folder: Path) -> dict[str, Tensor]:
    if (folder / "adapter_config.json").exists():
        raise WeightsError(
            f"{folder} is an adapter, not a model; give the base weights here and the adapter "
            "as adapter=…"
        )
    config = folder / "config.json"
    content = _read_json(config) if config.exists() else {"model_type": "sam"}
    is_timm = str(content.get("architecture")).startswith("samvit")  # refused by its tensors
    if (kind := content.get("model_type")) == "sam3":
        raise WeightsError(
            f"{config}: this is SAM 3's detector with its text encoder, which samadapt does not "
            f"have; expected its tracker, with model_type {', '.join(_HF_KINDS[3:])}"
        )
    if kind not in _HF_KINDS and not is_timm:
        raise WeightsError(
            f"{config}: expected model_type {', '.join(_HF_KINDS)}; got {str(kind)[:40]!r}"
        )
    if (folder / _INDEX).exists():
        listed = _read_json(folder / _INDEX).get("weight_map")
        if not isinstance(listed, dict):
            raise WeightsError(f"{folder / _INDEX}: expected weight_map, a mapping of file names")
        shards = sorted({check_shard(folder / _INDEX, name) for name in listed.values()})
        merged: dict[str, Tensor] = {}
        for shard in shards:
            merged |= _as_tensors(_read(folder / shard), folder / shard)[0]
        return merged
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return _as_tensors(_read(folder / name), folder / name)[0]
    raise WeightsError(
        f"{folder} holds no model: expected model.safetensors, {_INDEX} or pytorch_model.bin"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not readable JSON ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _as_tensors(content: Any, path: Path, inside: str = "") -> tuple[dict[str, Tensor], str]:
    """Return the tensors, and the entries of the file that they were found in, for messages."""
    if isinstance(content, dict):
        entry = _wrapper_of(content, path)
        if entry is not None:
            return _as_tensors(content[entry], path, f"{inside} [{entry!r}]")
    if not isinstance(content, dict) or not content:
        raise WeightsError(
            f"{path}{inside}: expected a dictionary of named tensors, got {type(content).__name__}"
            f"{' without entries' if isinstance(content, dict) else ''}"
        )
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(
            f"{path}{inside}: expected tensors only, but these are not: {_some(others)}"
        )
    check_dense(path, content)
    return {str(key): value for key, value in content.items()}, inside


def _wrapper_of(content: Mapping[Any, Any], path: Path) -> str | None:
    """Return the entry under which a training program saved the model, or None.

    Raises:
        WeightsError: there are both the weights and their moving average, which differ.
    """
    plain, average = (
        [name for name in names if isinstance(content.get(name), dict) and content[name]]
        for names in (_WRAPPERS, _EMA_WRAPPERS)
    )
    if plain and average:
        raise WeightsError(
            f"{path} holds two models: {plain[0]!r}, and {average[0]!r}, the moving average of its "
            "weights. Save the one that you want in a file of its own and give that file"
        )
    return next(iter([*plain, *average]), None)


def _prefix(keys: Iterable[str]) -> str | None:
    """Return what comes before ``image_encoder.`` or ``vision_encoder.``; None if no key has it."""
    for key in keys:
        for encoder in _ENCODERS:
            before, found, _ = key.partition(encoder)
            if found and (not before or before.endswith(".")):
                return before
    return None


def _some(keys: Iterable[str], count: int = 4) -> str:
    listed = list(keys)
    return ", ".join(listed[:count]) + (f", … {len(listed) - count} more" if listed[count:] else "")
