"""Translation between the state-dict names of SAM 2 and those of ``Sam.state_dict()``.

Meta's names are ours but for the prefix ``sam_`` of two parts, the MLPs, and ``no_mem_embed``.
transformers' ``Sam2Model`` and ``Sam2VideoModel`` use others, and join the point embeddings.

The memory, which conditions the frames of a video, keeps Meta's names; see ``Sam.memory``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import product
from typing import TYPE_CHECKING

from samadapt.sam.weights.names import hugging_face_names

if TYPE_CHECKING:
    from torch import Tensor

NEWER = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias")
"""Tensors of the memory that SAM 2.1 has and SAM 2.0 has not."""

_NO_MEMORY = "mask_decoder.no_mem_embed"
_POINTS = "prompt_encoder.point_embed.weight"
_POINT = re.compile(r"prompt_encoder\.point_embeddings\.(\d)\.weight$")
_MLP = re.compile(r"\.mlp\.layers\.([01])\.")
_OUR_MLP = re.compile(r"\.mlp\.lin([12])\.")

# transformers' names of the encoder and the neck, after ``hugging_face_names``.
_IMAGE_RENAMES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^image_encoder\.backbone\.", "image_encoder.trunk."),
        (r"^(image_encoder\.trunk\.patch_embed)\.projection\.", r"\1.proj."),
        (r"^(image_encoder\.neck\.convs\.\d)\.", r"\1.conv."),
        (r"\.mlp\.proj_in\.", ".mlp.lin1."),
        (r"\.mlp\.proj_out\.", ".mlp.lin2."),
        (r"^(mask_decoder\..+)\.o_proj\.", r"\1.out_proj."),
        (r"^no_memory_embedding$", _NO_MEMORY),
    )
)
_MEMORY_RENAMES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^(memory_attention\..+)\.o_proj\.", r"\1.out_proj."),
        (r"^memory_attention\.layer_norm\.", "memory_attention.norm."),
        (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
        (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
        (r"^memory_encoder\.memory_fuser\.", "memory_encoder.fuser."),
        (r"^(memory_encoder\.fuser\..+)\.depthwise_conv\.", r"\1.dwconv."),
        (r"^(memory_encoder\.fuser\..+)\.pointwise_conv(\d)\.", r"\1.pwconv\2."),
        (r"^(memory_encoder\.fuser\..+)\.layer_norm\.", r"\1.norm."),
        (r"^(memory_encoder\.fuser\..+)\.scale$", r"\1.gamma"),
        (
            r"^memory_encoder\.mask_downsampler\.final_conv\.",
            "memory_encoder.mask_downsampler.encoder.12.",
        ),
        (r"^object_pointer_proj\.proj_in\.", "obj_ptr_proj.layers.0."),
        (r"^object_pointer_proj\.layers\.0\.", "obj_ptr_proj.layers.1."),
        (r"^object_pointer_proj\.proj_out\.", "obj_ptr_proj.layers.2."),
        (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
        (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
        (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
        (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
        (r"^no_object_pointer$", "no_obj_ptr"),
    )
)
_DOWNSAMPLER = re.compile(r"^memory_encoder\.mask_downsampler\.layers\.(\d)\.(conv|layer_norm)\.")


def memory_names(version: str) -> frozenset[str]:
    """Return Meta's names of the tensors of the memory, without ``no_mem_embed``.

    Args:
        version: ``"2.0"`` or ``"2.1"``.
    """
    projections = product(("self_attn", "cross_attn_image"), ("q", "k", "v", "out"))
    attentions = [f"{attention}.{projection}_proj" for attention, projection in projections]
    inner = [*attentions, "linear1", "linear2", "norm1", "norm2", "norm3"]
    fused = ("dwconv", "norm", "pwconv1", "pwconv2")
    layers = [
        *(f"memory_attention.layers.{i}.{name}" for i, name in product(range(4), inner)),
        "memory_attention.norm",
        *(f"memory_encoder.mask_downsampler.encoder.{i}" for i in (0, 1, 3, 4, 6, 7, 9, 10, 12)),
        "memory_encoder.pix_feat_proj",
        *(f"memory_encoder.fuser.layers.{i}.{name}" for i, name in product(range(2), fused)),
        "memory_encoder.out_proj",
        "mask_downsample",
        *(f"obj_ptr_proj.layers.{i}" for i in range(3)),
    ]
    alone = ("maskmem_tpos_enc", "no_mem_pos_enc", "no_obj_ptr")
    gains = [f"memory_encoder.fuser.layers.{i}.gamma" for i in range(2)]
    newer = NEWER if version == "2.1" else ()
    return frozenset(
        [f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]
        + [*alone, *gains, *newer]
    )


def sam2_key(name: str) -> str:
    """Translate Meta's name of a tensor of SAM 2 into ours; ours stay as they are."""
    if name == "no_mem_embed":
        return _NO_MEMORY
    name = re.sub(r"^sam_(prompt_encoder|mask_decoder)\.", r"\1.", name)
    return _MLP.sub(lambda match: f".mlp.lin{int(match[1]) + 1}.", name)


def published_sam2_key(name: str) -> str:
    """Translate a name of ``Sam.state_dict()`` back into Meta's."""
    if name == _NO_MEMORY:
        return "no_mem_embed"
    name = re.sub(r"^(prompt_encoder|mask_decoder)\.", r"sam_\1.", name)
    return _OUR_MLP.sub(lambda match: f".mlp.layers.{int(match[1]) - 1}.", name)


def from_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of ``Sam2Model`` or ``Sam2VideoModel`` under our names and Meta's."""
    names = sam2_hugging_face_names(tensors)
    named = {names[key]: tensor for key, tensor in tensors.items() if key != _POINTS}
    if (points := tensors.get(_POINTS)) is not None and points.ndim == 2:
        for index, row in enumerate(points):
            named[f"prompt_encoder.point_embeddings.{index}.weight"] = row[None]
    return named


def to_hugging_face(state: Mapping[str, Tensor], keys: Iterable[str]) -> dict[str, Tensor]:
    """Return tensors under the names of ``Sam2Model``.

    Args:
        state: the state dict of a ``Sam`` that is a SAM 2.
        keys: the names of the state dict of a ``Sam2Model``; each gets a tensor.
    """
    import torch

    names = sam2_hugging_face_names(keys)
    found = {theirs: state[ours] for theirs, ours in names.items() if ours in state}
    points = sorted(name for name in state if _POINT.match(name))
    return found | {_POINTS: torch.cat([state[name] for name in points])}


def sam2_hugging_face_names(keys: Iterable[str]) -> dict[str, str]:
    """Map names of ``Sam2Model`` and ``Sam2VideoModel`` to ours, those of the memory to Meta's."""
    renamed = {}
    for key, name in hugging_face_names(keys).items():
        for pattern, new in (*_IMAGE_RENAMES, *_MEMORY_RENAMES):
            name = pattern.sub(new, name)
        renamed[key] = _DOWNSAMPLER.sub(_downsampler_name, name)
    return renamed


def _downsampler_name(match: re.Match[str]) -> str:
    """A convolution, a norm and a GELU follow one another in Meta's list."""
    place = 3 * int(match[1]) + (match[2] == "layer_norm")
    return f"memory_encoder.mask_downsampler.encoder.{place}."
