"""Checkpoints of micro-sam (Archit et al.): a whole model whose ``qkv`` contains the LoRA.

``...blocks.3.attn.qkv.qkv_proj.weight`` is the ``qkv`` of the base. Beside it are ``w_a_linear_q``,
``w_b_linear_q`` and the same for v. The factor ``alpha`` of the update is not in the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.errors import AdapterError
from samadapt.imports.foreign import (
    FOREIGN_FORMATS,
    Foreign,
    ForeignFormat,
    check_pair,
    stack_slices,
)

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.sam.model import Sam

_LINEAR = re.compile(r"(image_encoder\.blocks\.\d+\.attn\.qkv)\.w_(a|b)_linear_([qkv])\.weight$")
_OTHERS = re.compile(r"pixel_(mean|std)$")


def _knows(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> bool:
    del config
    return any(_LINEAR.search(key) for key in tensors)


def _read(
    path: Path, tensors: dict[str, Tensor], config: Mapping[str, Any], sam: Sam, scale: float
) -> Foreign:
    del config
    own = sam.state_dict()
    parts: dict[str, dict[str, dict[str, Tensor]]] = {}
    whole: dict[str, Tensor] = {}
    for key, value in tensors.items():
        # "module." comes from DataParallel, "sam." from the model that micro-sam trains.
        name = key.removeprefix("module.").removeprefix("sam.").replace(".qkv.qkv_proj.", ".qkv.")
        if name.startswith("peft_blocks.") or _OTHERS.match(name):
            continue  # peft_blocks lists the same linears a second time
        if match := _LINEAR.match(name):
            parts.setdefault(match[1], {}).setdefault(match[3], {})[match[2]] = value
        elif name in own:
            whole[name] = value
        else:
            raise AdapterError(
                f"{path}: {key} is neither a weight of {sam.build.name} nor LoRA on q, k or v; "
                "only micro-sam's LoRA is read"
            )
    updates = {}
    for place, found in parts.items():
        pairs = {n: check_pair(path, f"{place}, {n}", found[n]) for n in "qkv" if n in found}
        scaled = {n: (a, scale * b) for n, (a, b) in pairs.items()}
        # Each slice has as many rows as the fused qkv has inputs.
        updates[place] = stack_slices(scaled, own[f"{place}.weight"].shape[1])
    return Foreign("micro-sam", updates, whole)


FOREIGN_FORMATS.append(ForeignFormat("micro-sam", _knows, _read))
