"""Checkpoints of micro-sam's version 2: a whole SAM 2 with wrapped layers in its image encoder.

micro-sam puts a wrapper in the place of a layer, and the wrapper keeps that layer under a name of
its own. With ``B`` for ``image_encoder.trunk.blocks.N``, the file holds, for each method:

- LoRA: ``B.attn.qkv.w_a_linear_q`` and ``w_b_linear_q`` (and k, v) beside ``qkv_proj``, and
  ``B.mlp.w_a_linear_1``, ``w_b_linear_1`` (and 2) beside ``mlp_layer``.
- FacT: ``FacTu``, ``FacTv``, ``q_FacTs`` and ``v_FacTs`` beside ``qkv_proj``. The update of q is
  ``FacTv q_FacTs FacTu``, a LoRA. Its dropout acts in training alone.
- SSF: ``scale`` and ``shift`` beside ``layer``, for norms, linears and the patch embedding. They
  are folded into the layer.
- AdaptFormer: ``B.mlp.down_proj``, ``up_proj`` and maybe ``alpha`` beside ``mlp_proj``; see
  ``methods.adaptformer``.

All other tensors have the names of sam2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.errors import AdapterError
from samadapt.imports.foreign import (
    FOREIGN_FORMATS,
    Foreign,
    ForeignFormat,
    MlpBottleneck,
    check_pair,
    stack_slices,
)
from samadapt.sam.weights.sam2_names import memory_names, sam2_key

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.sam.model import Sam

_TRUNK = r"image_encoder\.trunk\.(?:blocks\.\d+|patch_embed)\."
_LORA = re.compile(rf"({_TRUNK}attn\.qkv)\.w_(a|b)_linear_([qkv])\.weight$")
_MLP_LORA = re.compile(rf"({_TRUNK}mlp)\.w_(a|b)_linear_([12])\.weight$")
_FACT = re.compile(rf"({_TRUNK}attn\.qkv)\.(FacTu|FacTv|q_FacTs|v_FacTs)\.weight$")
_SCALE_SHIFT = re.compile(rf"({_TRUNK}.+)\.(scale|shift)$")
_BOTTLENECK = re.compile(rf"({_TRUNK}mlp)\.(alpha|(?:down|up)_proj\.(?:weight|bias))$")
_ADDED = (_LORA, _MLP_LORA, _FACT, _SCALE_SHIFT, _BOTTLENECK)

# The names under which the wrappers keep the layer that they replace.
_KEPT = re.compile(rf"({_TRUNK}(?:attn\.qkv|mlp))\.(?:qkv_proj|mlp_layer|mlp_proj)\.")
_KEPT_LAYER = re.compile(rf"({_TRUNK}.+)\.layer\.(weight|bias)$")

_QUANTIZED = (".absmax", ".quant_map", ".quant_state.")


@dataclass
class _Found:
    """The tensors of the file by what they belong to; the first key is the path of the layer."""

    lora: dict[str, dict[str, dict[str, Tensor]]] = field(default_factory=dict)
    fact: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    scale_shift: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    bottlenecks: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)


def _bare(key: str) -> str:
    """Return a key without the prefixes of DataParallel and of the wrapper of the model."""
    return key.removeprefix("module.").removeprefix("sam.")


def _knows(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> bool:
    del config
    return any(pattern.match(_bare(key)) for key in tensors for pattern in _ADDED)


def _read(
    path: Path, tensors: dict[str, Tensor], config: Mapping[str, Any], sam: Sam, scale: float
) -> Foreign:
    del config
    found = _sorted(path, tensors, sam)
    updates = _lora_updates(path, found, sam, scale) | _fact_updates(path, found, scale)
    if scale != 1 and not updates:
        raise AdapterError(
            f"{path}: scale={scale:g}: only LoRA and FacT have a factor that is not in the file; "
            "leave scale out"
        )
    _fold_scale_shift(path, found)
    expected = [*sam.state_dict(), *(memory_names(sam.build.version) if found.memory else ())]
    have = found.whole.keys() | found.memory.keys()
    if missing := [key for key in expected if key not in have]:
        raise AdapterError(
            f"{path}: expected a whole {sam.build.name} beside the adapter; {missing[0]} is "
            f"missing{f', and {len(missing) - 1} more' if missing[1:] else ''}"
        )
    return Foreign(
        "micro-sam v2",
        updates,
        found.whole,
        _notes(sam, found),
        bottlenecks={place: _bottleneck(path, place, x) for place, x in found.bottlenecks.items()},
        memory=found.memory,
    )


def _sorted(path: Path, tensors: Mapping[str, Tensor], sam: Sam) -> _Found:
    """Assign every tensor of the file.

    Raises:
        AdapterError: a tensor belongs to nothing that is known.
    """
    found, own = _Found(), sam.state_dict()
    memory = memory_names(sam.build.version) if sam.build.encoder == "hiera" else frozenset()
    for key, value in tensors.items():
        name = _bare(key)
        if match := _LORA.match(name):
            found.lora.setdefault(match[1], {}).setdefault(match[3], {})[match[2]] = value
        elif match := _MLP_LORA.match(name):
            place = f"{match[1]}.lin{match[3]}"
            found.lora.setdefault(place, {}).setdefault("", {})[match[2]] = value
        elif match := _FACT.match(name):
            found.fact.setdefault(match[1], {})[match[2]] = value
        elif match := _SCALE_SHIFT.match(name):
            place = _ours(f"{match[1]}.").removesuffix(".")
            found.scale_shift.setdefault(place, {})[match[2]] = value
        elif match := _BOTTLENECK.match(name):
            found.bottlenecks.setdefault(match[1], {})[match[2]] = value
        elif (ours := _ours(name)) in own:
            found.whole[ours] = value
        elif ours in memory:
            found.memory[ours] = value
        else:
            raise AdapterError(f"{path}: {key} {_why_not(name, sam)}")
    return found


def _ours(name: str) -> str:
    """Return our name of a tensor of the model itself, or of a layer with a dot behind it."""
    return sam2_key(_KEPT_LAYER.sub(r"\1.\2", _KEPT.sub(r"\1.", name)))


def _why_not(name: str, sam: Sam) -> str:
    if any(part in name for part in _QUANTIZED):
        return (
            "belongs to an encoder in 4 bits (QLoRA); write it with full weights by micro-sam's "
            "export_custom_qlora_sam2_model, and give that file"
        )
    return (
        f"is neither a weight of {sam.build.name} nor of micro-sam's LoRA, FacT, SSF or "
        "AdaptFormer on SAM 2"
    )


def _lora_updates(
    path: Path, found: _Found, sam: Sam, scale: float
) -> dict[str, tuple[Tensor, Tensor]]:
    own, updates = sam.state_dict(), {}
    for place, parts in found.lora.items():
        _check_place(path, place, sam)
        pairs = {part: check_pair(path, f"{place}, {part}", x) for part, x in parts.items()}
        scaled = {part: (a, scale * b) for part, (a, b) in pairs.items()}
        # At the borders of stages, qkv has fewer inputs than a third of its outputs.
        rows = len(own[f"{place}.weight"]) // 3
        _check_rows(path, place, scaled, rows)
        updates[place] = scaled[""] if "" in scaled else stack_slices(scaled, rows)
    return updates


def _fact_updates(path: Path, found: _Found, scale: float) -> dict[str, tuple[Tensor, Tensor]]:
    updates = {}
    for place, x in found.fact.items():
        if missing := [n for n in ("FacTu", "FacTv", "q_FacTs", "v_FacTs") if n not in x]:
            raise AdapterError(f"{path}: {place} has no {missing[0]}")
        pairs = {}
        for part in "qv":
            between = x[f"{part}_FacTs"]
            check_pair(path, f"{place}, FacTv", {"a": between, "b": x["FacTv"]})
            high = scale * (x["FacTv"] @ between)
            pairs[part] = check_pair(path, f"{place}, FacTu", {"a": x["FacTu"], "b": high})
        updates[place] = stack_slices(pairs, len(x["FacTv"]))
    return updates


def _check_place(path: Path, place: str, sam: Sam) -> None:
    if f"{place}.weight" not in sam.state_dict():
        raise AdapterError(f"{path}: {sam.build.name} has no {place}")


def _check_rows(
    path: Path, place: str, pairs: Mapping[str, tuple[Tensor, Tensor]], rows: int
) -> None:
    for part, (_, b) in pairs.items():
        if part and len(b) != rows:
            raise AdapterError(
                f"{path}: {place}, {part}: expected an update of {rows} rows; got {len(b)}"
            )


def _fold_scale_shift(path: Path, found: _Found) -> None:
    """Multiply layers by their scale and add their shift: ``scale * (W x + b) + shift``."""
    for place, x in found.scale_shift.items():
        weight, bias = (found.whole.get(f"{place}.{leaf}") for leaf in ("weight", "bias"))
        if weight is None or bias is None or x.keys() != {"scale", "shift"}:
            raise AdapterError(
                f"{path}: {place}: expected a weight, a bias, a scale and a shift of this layer"
            )
        scale, shift = x["scale"], x["shift"]
        if not scale.shape == shift.shape == bias.shape:
            raise AdapterError(
                f"{path}: {place}: expected a scale and a shift of {tuple(bias.shape)}; got "
                f"{tuple(scale.shape)} and {tuple(shift.shape)}"
            )
        found.whole[f"{place}.weight"] = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        found.whole[f"{place}.bias"] = bias * scale + shift


def _bottleneck(path: Path, place: str, x: Mapping[str, Tensor]) -> MlpBottleneck:
    names = ("down_proj.weight", "down_proj.bias", "up_proj.weight", "up_proj.bias")
    if missing := [name for name in names if name not in x]:
        raise AdapterError(f"{path}: {place} has no {missing[0]}")
    down, down_bias, up, up_bias = (x[name] for name in names)
    alpha = x["alpha"].reshape(()) if "alpha" in x else 1.0
    check_pair(path, f"{place}, bottleneck", {"a": down, "b": up})
    return MlpBottleneck(down, down_bias, alpha * up, alpha * up_bias)


def _notes(sam: Sam, found: _Found) -> tuple[str, ...]:
    side = "" if sam.image_size == 1024 else f"; this adapter runs at {sam.image_size} (image_size)"
    note = (
        f"micro-sam trains SAM 2 at 1024 pixels{side}. Its predictor keeps the ratio of the sides "
        "and pads the square, where sam2 and this adapter squash the picture: masks of pictures "
        "that are not square differ"
    )
    if any("alpha" not in x for x in found.bottlenecks.values()):
        # micro-sam's default, a learned factor, is in the file; a fixed one is not.
        return note, "the file has no alpha of its AdaptFormer, which is then fixed; taken as 1"
    return (note,)


FOREIGN_FORMATS.append(
    ForeignFormat("micro-sam v2 (LoRA, FacT, SSF or AdaptFormer on SAM 2)", _knows, _read)
)
