"""Plain PEFT directories with LoRA, under segment-anything's or transformers' module names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.adapters.store import PEFT_CONFIG
from samadapt.errors import AdapterError
from samadapt.imports.foreign import FOREIGN_FORMATS, Foreign, ForeignFormat, check_pair

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.sam.model import Sam

_RANK_AND_ALPHA = (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern"))
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight$")
# Options with which the update is not simply ``scale * B A``
_UNSUPPORTED = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "alora_invocation_tokens",
    "arrow_config",
    "velora_config",
    "monteclora_config",
    "use_bdlora",
    "kasa_config",
    "layer_replication",
)
_BASE_UNCHANGED = (True, False, None, "gaussian", "eva", "mica", "orthogonal", "lora_ga")
"""Values of ``init_lora_weights`` with which peft 0.21 leaves the weights of the base unchanged.

With others (``pissa``, ``pissa_niter_4``, ``olora``, ``corda``, ``loftq``) it subtracts the initial
B A from the base before it loads the trained A and B.
"""


def _knows(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> bool:
    return "peft_type" in config and any(_FACTOR.match(key) for key in tensors)


def _read(
    path: Path, tensors: dict[str, Tensor], config: Mapping[str, Any], sam: Sam, scale: float
) -> Foreign:
    odd = [key for key in _UNSUPPORTED if config.get(key)]
    odd += [f"bias={config['bias']}"] if config.get("bias", "none") != "none" else []
    if config["peft_type"] != "LORA" or odd:
        kind = ", ".join([str(config["peft_type"]), *odd])
        raise AdapterError(f"{path}: only peft's plain LoRA is read; got {kind}")
    if scale != 1:
        raise AdapterError(
            f"{path.parent / PEFT_CONFIG}: scale={scale:g}: this file says its own scale "
            "(lora_alpha); leave scale out"
        )
    _check_start(path.parent / PEFT_CONFIG, config.get("init_lora_weights", True))
    bare = {key.removeprefix("base_model.model."): value for key, value in tensors.items()}
    theirs = any(key.startswith("vision_encoder.") for key in bare)
    names = {key: key for key in sam.state_dict()}
    if theirs:
        from samadapt.export.peft import transformers_names

        names = transformers_names(sam)
    # Paths of modules under their names, and under ours
    modules = {a.rpartition(".")[0]: b.rpartition(".")[0] for a, b in names.items()}
    factors: dict[str, dict[str, Tensor]] = {}
    whole = {}
    for key, value in bare.items():
        match = _FACTOR.match(key)
        if match and match[1] in modules:
            factors.setdefault(match[1], {})[match[2].lower()] = value
        elif key in names:
            whole[names[key]] = value
        else:
            raise AdapterError(f"{path}: {key} belongs to no module of {sam.build.name}")
    updates = {}
    for name, found in factors.items():
        a, b = check_pair(path, name, found)
        updates[modules[name]] = (a, _scaling(path.parent / PEFT_CONFIG, name, len(a), config) * b)
    return Foreign("peft, transformers' names" if theirs else "peft", updates, whole)


def _check_start(path: Path, start: object) -> None:
    """Refuse initialisations with which peft changes the base at load, beyond A and B."""
    if (start.lower() if isinstance(start, str) else start) not in _BASE_UNCHANGED:
        raise AdapterError(
            f"{path}: init_lora_weights {start!r}: peft then changes the weights of the base at "
            "load, which a plain LoRA cannot express; save it in peft as plain LoRA "
            "(save_pretrained(..., path_initial_model_for_weight_conversion=...)) and import that"
        )


def _scaling(path: Path, name: str, rank: int, config: Mapping[str, Any]) -> float:
    """Return the factor of ``B A`` in peft; refuse a configuration with another rank."""
    said, alpha = (_said(key, pattern, name, config) for key, pattern in _RANK_AND_ALPHA)
    if said != rank or not isinstance(alpha, int | float):
        raise AdapterError(
            f"{path}: expected r {rank} of {name}, as its weights have it, and a number as "
            f"lora_alpha; got {said!r} and {alpha!r}"
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _said(key: str, pattern: str, name: str, config: Mapping[str, Any]) -> object:
    patterns: Mapping[str, object] = config.get(pattern) or {}
    # As in peft, a pattern must match the end of the path (peft's get_pattern_key).
    named = [v for known, v in patterns.items() if re.match(rf"(.*\.)?({known})$", name)]
    return named[0] if named else config.get(key)


FOREIGN_FORMATS.append(ForeignFormat("peft", _knows, _read))
