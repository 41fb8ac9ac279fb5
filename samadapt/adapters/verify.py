"""Read and check the files of an adapter directory. Every error names the file.

Whether weights and record are those that were saved is checked by the digests in ``record.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.errors import AdapterError
from samadapt.system import atomic

if TYPE_CHECKING:
    from torch import Tensor

# Keys of adapter_config.json that do not change the output of the loaded model.
_NEUTRAL = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "revision",
    "task_type",
}
_DECISIVE = {"peft_type", "r", "lora_alpha", "target_modules", "method"}  # always present


def check_peft_config(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a PEFT configuration that contradicts the record.

    Raises:
        AdapterError: naming the key.
    """
    every = (found.keys() | expected.keys()) - _NEUTRAL
    # A wrong peft_type is reported first, because many other keys then differ too.
    for key in sorted(every, key=lambda name: (name != "peft_type", name)):
        want, got = expected.get(key), found.get(key)
        if key not in found and key not in _DECISIVE:  # written by a version of peft without it
            continue
        if isinstance(want, list) and isinstance(got, list):
            want, got = sorted(want), sorted(got)
        # None, False, [] and {} all say that an option is not used, so they count as equal.
        if want != got and (want or got):
            raise AdapterError(
                f"{path}: {key} was changed: expected {_short(want)}, as samadapt.json records; "
                f"got {_short(got)}"
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_tensors(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse missing or unexpected keys, wrong shapes, and integers in place of floats.

    Raises:
        AdapterError: naming the file and the first such key.
    """
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    if missing or unexpected:
        parts = [
            f"{len(keys)} {what} keys, first {keys[0]}"
            for keys, what in ((missing, "missing"), (unexpected, "unexpected"))
            if keys
        ]
        raise AdapterError(f"{path}: {'; '.join(parts)}")
    for key, value in found.items():
        if value.shape != expected[key].shape:
            raise AdapterError(
                f"{path}: {key}: expected shape {tuple(expected[key].shape)}; "
                f"got {tuple(value.shape)}"
            )
        # Another float type is accepted, because copying into a parameter converts it.
        if value.is_floating_point() != expected[key].is_floating_point():
            raise AdapterError(f"{path}: {key}: expected {expected[key].dtype}; got {value.dtype}")


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse NaN and infinite values.

    Raises:
        AdapterError: naming the file and the key.
    """
    for key, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise AdapterError(f"{path}: {key} holds NaN or infinite values")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file and check that all values are finite.

    Raises:
        AdapterError: when the file is missing, broken, or a pickle.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise AdapterError(f"{path}: the file is missing")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as file:
            head = file.read(4)
        # A zip archive (torch.save), or the first bytes of a bare pickle of protocol 2 or 4.
        pickled = head[:2] in (b"PK", b"\x80\x02", b"\x80\x04")
        kind = "a pickle" if pickled else "truncated or broken"
        raise AdapterError(
            f"{path}: expected a safetensors file; it is {kind} ({error})"
        ) from error
    check_finite(tensors, path)
    return tensors


MAX_JSON_BYTES = 64 * 2**20
"""Largest size of a JSON file that is read. The hashes of a million images take this much."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most ``MAX_JSON_BYTES``.

    Raises:
        AdapterError: when the file is missing, broken or too large.
    """
    if not path.is_file():
        raise AdapterError(f"{path}: the file is missing")
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise AdapterError(f"{path}: expected at most {MAX_JSON_BYTES} bytes of JSON; got {size}")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: expected JSON; it is truncated or broken ({error})") from error
    if not isinstance(values, dict):
        raise AdapterError(f"{path}: expected a JSON object; got {type(values).__name__}")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object, indented."""
    atomic.write_text(path, json.dumps(values, indent=2) + "\n")
