"""``w_a_000``, ``w_b_000``, ...: SAMed (Zhang and Liu 2023) and the small SAM-LoRA projects.

Each block has two pairs, of q and then of v, for all blocks in order and without a scale. SAMed's
``.pth`` also holds the prompt encoder and the mask decoder, under segment-anything's names.
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

_PAIR = re.compile(r"w_(a|b)_(\d{3})$")
_WHOLE = ("mask_decoder.", "prompt_encoder.")
_PER_TOKEN = ".output_hypernetworks_mlps."  # there is one for each mask token of the source


def _knows(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> bool:
    del config
    return "w_a_000" in tensors and all(_PAIR.match(k) or k.startswith(_WHOLE) for k in tensors)


def _read(
    path: Path, tensors: dict[str, Tensor], config: Mapping[str, Any], sam: Sam, scale: float
) -> Foreign:
    del config
    attention_blocks = sam.attention_blocks()
    count, others = (sum(key.startswith(p) for key in tensors) for p in ("w_a_", "w_b_"))
    names = {f"w_{part}_{i:03d}" for part in "ab" for i in range(2 * len(attention_blocks))}
    if len(names) != count + others or not names <= tensors.keys():
        raise AdapterError(
            f"{path}: expected w_a_ and w_b_ of q and v of all {len(attention_blocks)} blocks of "
            f"{sam.build.name}, {2 * len(attention_blocks)} of each; got {count} and {others}: "
            "another model, or blocks left out, which the file does not name"
        )
    updates = {}
    for index, block in enumerate(attention_blocks):
        pairs = {}
        for name, i in (("q", 2 * index), ("v", 2 * index + 1)):
            found = {part: tensors[f"w_{part}_{i:03d}"] for part in "ab"}
            a, b = check_pair(path, f"w_a_{i:03d}, w_b_{i:03d}", found)
            pairs[name] = (a, scale * b)
        updates[block.qkv] = stack_slices(pairs, block.width)
    whole = {key: value for key, value in tensors.items() if key.startswith(_WHOLE)}
    if not whole:
        return Foreign("a SAM-LoRA project (w_a_, w_b_)", updates)
    parts = tuple(part for part in _WHOLE if any(key.startswith(part) for key in whole))
    # Weights that are missing would stay those of the base without notice.
    left = [
        key
        for key in sam.state_dict()
        if key.startswith(parts) and key not in whole and _PER_TOKEN not in key
    ]
    if left:
        raise AdapterError(f"{path}: expected all of {' and '.join(parts)}; {left[0]} is missing")
    return Foreign("SAMed", updates, whole, _notes(sam))


def _notes(sam: Sam) -> tuple[str, str]:
    background = (
        "mask token 0 is SAMed's background class, also without prompts: the label of a pixel is "
        "the token with the largest logit"
    )
    values = (
        "SAMed's own training gives the network values from 0 to 1 without SAM's mean and "
        f"deviation; this adapter's input is what {sam.build.name} expects "
        f"({sam.preprocessing.normalization}), so its masks differ from theirs if this file was "
        "trained so"
    )
    return background, values


FOREIGN_FORMATS.append(ForeignFormat("w_a_/w_b_ (SAMed, SAM-LoRA projects)", _knows, _read))
