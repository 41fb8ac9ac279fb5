"""Translation of other publishers' state-dict names into those of ``Sam.state_dict()``.

Meta's names are ours. Hugging Face's ``SamModel``, MobileSAM and LiteMedSAM use others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Hugging Face's SamModel to Meta's names (transformers, models/sam/modeling_sam.py).
_HF_RENAMES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (
            r"^(?:shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
        (r"^vision_encoder\.", "image_encoder."),
        (r"^image_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
        (r"^image_encoder\.layers\.", "image_encoder.blocks."),
        (r"^image_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
        (r"^image_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
        (r"^image_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
        (r"^image_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
        (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
        (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
        (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
        (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
        (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
        (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
        (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
        (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
        (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
        (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
        (r"\.layer_norm(\d)\.", r".norm\1."),
    )
)
_HF_HEAD = re.compile(
    r"^(mask_decoder\.(?:iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps\.\d+))"
    r"\.(?:proj_(in|out)|layers\.(\d+))\."
)


def hugging_face_names(keys: Iterable[str]) -> dict[str, str]:
    """Map the state-dict names of transformers' ``SamModel`` to those of ``Sam.state_dict()``."""
    keys = list(keys)
    inner: dict[str, int] = {}
    for key in keys:
        head = _HF_HEAD.match(key)
        if head and head[3]:
            inner[head[1]] = max(inner.get(head[1], 0), int(head[3]) + 1)

    def head_name(match: re.Match[str]) -> str:
        if match[3]:
            return f"{match[1]}.layers.{int(match[3]) + 1}."
        return f"{match[1]}.layers.{0 if match[2] == 'in' else inner.get(match[1], 0) + 1}."

    renamed = {}
    for key in keys:
        name = _HF_HEAD.sub(head_name, key)
        for pattern, new in _HF_RENAMES:
            name = pattern.sub(new, name)
        renamed[key] = name
    return renamed


def tiny_vit_key(name: str) -> str:
    """Translate a state-dict name of MobileSAM or LiteMedSAM into ours.

    The prefix ``image_encoder.`` may be missing. Names outside the encoder are returned unchanged,
    and so are MobileSAM's ``norm_head`` and ``head``, which our encoder does not have.
    """
    prefix, encoder, rest = name.rpartition("image_encoder.")
    if not encoder and not rest.startswith(("patch_embed.seq.", "layers.")):
        return name
    rest = re.sub(r"^patch_embed\.seq\.(0|2)\.", _stem_name, rest)
    rest = re.sub(r"^layers\.(\d+)\.downsample\.", _merge_name, rest)
    rest = re.sub(r"^layers\.", "stages.", rest)
    rest = re.sub(r"\.c\.(?=weight$)", ".conv.", rest)
    return prefix + encoder + rest


def published_key(name: str) -> str:
    """Translate a name of ``Sam.state_dict()`` back into that of MobileSAM and LiteMedSAM."""
    if not name.startswith("image_encoder."):
        return name
    name = re.sub(
        r"\.patch_embed\.conv(1|2)\.", lambda m: f".patch_embed.seq.{2 * int(m[1]) - 2}.", name
    )
    name = re.sub(
        r"\.stages\.(\d+)\.downsample\.", lambda m: f".layers.{int(m[1]) - 1}.downsample.", name
    )
    return re.sub(r"\.conv\.(?=weight$)", ".c.", name.replace(".stages.", ".layers."))


def _stem_name(match: re.Match[str]) -> str:
    return f"patch_embed.conv{1 + int(match[1]) // 2}."


def _merge_name(match: re.Match[str]) -> str:
    return f"stages.{int(match[1]) + 1}.downsample."
