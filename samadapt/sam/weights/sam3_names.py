"""Translation between the state-dict names of SAM 3's tracker and those of ``Sam.state_dict()``.

A published file also holds the detector with its text encoder, and the memory of the tracker. Meta
keeps the parts as ``detector.`` and ``tracker.``, and the tracker's neck as ``sam2_convs`` of the
detector. transformers keeps them as ``detector_model.``, ``tracker_model.`` and ``tracker_neck.``
(``Sam3VideoModel``), or the tracker alone without a prefix (``Sam3TrackerModel``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from samadapt.sam.weights.sam2_names import from_hugging_face, sam2_key, to_hugging_face

_NORM = re.compile(
    r"(?:image_encoder\.trunk\.ln_pre|vision_backbone\.trunk\.ln_pre"
    r"|vision_encoder\.backbone\.layer_norm)\.weight$"
)
# What ``save_pretrained`` writes of a ``Sam3TrackerModel`` may have several prefixes at once.
_TRUNK = re.compile(
    r"(?:(?:tracker_model\.)?(?:detector_model\.)?vision_encoder\.backbone"
    r"|detector\.backbone\.vision_backbone\.trunk|image_encoder\.trunk)\."
)
_NECK = re.compile(
    r"(?:(?:tracker_model\.)?(?:tracker_neck|vision_encoder\.neck)\.fpn_layers"
    r"|detector\.backbone\.vision_backbone\.sam2_convs|image_encoder\.neck\.convs)\."
)
_REST = re.compile(
    r"(?:tracker_model\.|tracker\.)?(?=(?:sam_)?(?:prompt_encoder|mask_decoder)\."
    r"|shared_image_embedding\.|no_memory_embedding$|no_mem_embed$)"
)
# The coarsest level of the neck is not used, and rotations follow from the places.
_UNUSED = re.compile(r"3\.|blocks\.\d+\.attn\.freqs_cis$")
_OTHER_PARTS = re.compile(
    r"detector_model\.|detector\.|tracker_model\.|tracker\.|memory_|mask_downsample"
    r"|object_pointer_proj\.|temporal_positional_encoding_projection_layer\."
    r"|no_memory_positional_encoding$|no_object_pointer$|occlusion_spatial_embedding_parameter$"
)

# transformers' names in the trunk and the neck, and ours.
_TRUNK_NAMES = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.position_embeddings", "pos_embed"),
    ("layer_norm1.", "norm1."),
    ("layer_norm2.", "norm2."),
    ("layer_norm.", "ln_pre."),
    ("layers.", "blocks."),
    ("attention.o_proj.", "attn.proj."),
    ("attention.", "attn."),
    ("mlp.fc1.", "mlp.lin1."),
    ("mlp.fc2.", "mlp.lin2."),
)
_NECK_NAMES = (
    ("0.scale_layers.0.", "0.dconv_2x2_0."),
    ("0.scale_layers.2.", "0.dconv_2x2_1."),
    ("1.scale_layers.0.", "1.dconv_2x2."),
    ("proj1.", "conv_1x1."),
    ("proj2.", "conv_3x3."),
)
_PART = re.compile(r"(.+\.attn)\.([qkv])_proj\.(weight|bias)$")
_POSITIONS = "image_encoder.trunk.pos_embed"


def is_sam3(keys: Iterable[str]) -> bool:
    """Return whether names are those of a SAM 3, whose ViT begins with a norm."""
    return any(_NORM.search(key) for key in keys)


def from_sam3(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of the tracker for still pictures under our names.

    Args:
        tensors: what a file of SAM 3 holds, under Meta's, transformers' or our names.

    Returns:
        The tensors by name, and the names in the file of what else SAM 3 has: detector, text
        encoder, memory. Names that nothing explains are kept as they are.
    """
    named: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    left: list[str] = []
    for key, tensor in tensors.items():
        if match := _TRUNK.match(key):
            _place(named, left, key, "trunk.", _renamed(key[match.end() :], _TRUNK_NAMES), tensor)
        elif match := _NECK.match(key):
            name = _renamed(key[match.end() :], _NECK_NAMES)
            _place(named, left, key, "neck.convs.", name, tensor)
        elif match := _REST.match(key):
            rest[key[match.end() :]] = tensor
        elif _OTHER_PARTS.match(key):
            left.append(key)
        else:
            named[key] = tensor
    is_theirs = any("vision_encoder.backbone." in key for key in tensors)
    rest = from_hugging_face(rest) if is_theirs else {sam2_key(k): t for k, t in rest.items()}
    named = _joined(named) | rest
    if _POSITIONS in named:
        named[_POSITIONS] = _as_grid(named[_POSITIONS])
    return named, left


def sam3_to_hugging_face(state: Mapping[str, Tensor], keys: Iterable[str]) -> dict[str, Tensor]:
    """Return tensors under the names of ``Sam3TrackerModel``.

    Args:
        state: the state dict of a ``Sam`` with the tracker of SAM 3.
        keys: the names of the state dict of a ``Sam3TrackerModel``.
    """
    parts = [key for key in keys if not key.startswith("vision_encoder.")]
    found = to_hugging_face(state, parts)
    for name, tensor in state.items():
        if name == _POSITIONS:
            found["vision_encoder.backbone.embeddings.position_embeddings"] = tensor.flatten(1, 2)
        elif name.startswith("image_encoder.trunk."):
            theirs = _renamed(name.removeprefix("image_encoder.trunk."), _TRUNK_NAMES, back=True)
            found |= _split(f"vision_encoder.backbone.{theirs}", tensor)
        elif name.startswith("image_encoder.neck.convs."):
            theirs = _renamed(
                name.removeprefix("image_encoder.neck.convs."), _NECK_NAMES, back=True
            )
            found[f"vision_encoder.neck.fpn_layers.{theirs}"] = tensor
    return found


def _place(
    named: dict[str, Tensor], left: list[str], key: str, part: str, name: str, tensor: Tensor
) -> None:
    if _UNUSED.match(name):
        left.append(key)
    else:
        named[f"image_encoder.{part}{name}"] = tensor


def _renamed(name: str, pairs: Iterable[tuple[str, str]], *, back: bool = False) -> str:
    """Replace the parts of a name; longer ones come first in ``pairs``."""
    for theirs, ours in pairs:
        old, new = (ours, theirs) if back else (theirs, ours)
        name = re.sub(rf"(?<![\w]){re.escape(old)}", new, name)
    return name


def _joined(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the projections of q, k and v; an incomplete triple stays as it is."""
    triples: dict[str, dict[str, Tensor]] = {}
    for name, tensor in named.items():
        if match := _PART.match(name):
            triples.setdefault(f"{match[1]}.qkv.{match[3]}", {})[match[2]] = tensor
    whole = {name: parts for name, parts in triples.items() if len(parts) == len("qkv")}
    joined = {
        name: tensor
        for name, tensor in named.items()
        if not (match := _PART.match(name)) or f"{match[1]}.qkv.{match[3]}" not in whole
    }
    return joined | {name: torch.cat([x[part] for part in "qkv"]) for name, x in whole.items()}


def _split(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Divide a fused projection into those of q, k and v; return other tensors as they are."""
    match = re.match(r"(.+\.attention)\.qkv\.(weight|bias)$", name)
    if match is None:
        return {name: tensor}
    parts = zip("qkv", tensor.chunk(3), strict=True)
    return {f"{match[1]}.{part}_proj.{match[2]}": x for part, x in parts}


def _as_grid(table: Tensor) -> Tensor:
    """Return positions (1, n, c) as (1, side, side, c), without Meta's first one, of no place."""
    if table.ndim != 3:
        return table
    side = math.isqrt(table.shape[1])
    grid = torch.unflatten(table[:, table.shape[1] - side**2 :], 1, (side, side))
    return grid.contiguous()
