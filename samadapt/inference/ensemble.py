"""Several adapters that segment together: which directories they are, and whether they fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from samadapt.adapters.combining import recorded_stack
from samadapt.adapters.hub import adapter_path
from samadapt.adapters.record import RECORD, AdapterRecord
from samadapt.data.tiles import recorded_tiling
from samadapt.errors import AdapterError, ConfigError
from samadapt.sam.watershed import WATERSHED_KEYS

_LONG = 120
"""Characters of a value that a message shows."""


def member_directories(adapter: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the adapter directories that a user names.

    Args:
        adapter: an adapter directory or ``hf:USER/NAME[@REVISION]``, the directory of a
            cross-validation (``folds=5``), whose folds have an adapter each, or a list of these.

    Raises:
        AdapterError: none is named, one is named twice, or a fold of a cross-validation has no
            adapter yet.
        ConfigError: as ``adapter_path``.
        DownloadError: as ``adapter_path``.
    """
    members: list[Path] = []
    for name in [adapter] if isinstance(adapter, str | Path) else adapter:
        directory = adapter_path(name)
        folds = [] if (directory / RECORD).is_file() else _folds(directory)
        members += [fold / "adapter" for fold in folds] or [directory]
        for fold in folds:
            if not (fold / "adapter" / RECORD).is_file():
                raise AdapterError(
                    f"{directory}: {fold.name} of this cross-validation has no adapter yet; finish "
                    f"it with `samadapt finetune resume={directory}`, or name the adapters to use"
                )
    if not members:
        raise AdapterError("adapter=[]: name at least one adapter directory")
    twice = [str(one) for at, one in enumerate(members) if one in members[:at]]
    if twice:
        raise AdapterError(f"adapter: {twice[0]} is named twice; each adapter has one vote")
    return members


def check_agreement(directories: Sequence[Path], records: Sequence[AdapterRecord]) -> None:
    """Refuse adapters that do not see and mean the same.

    Args:
        directories: of the adapters, for the message.
        records: their ``samadapt.json``.

    Raises:
        AdapterError: naming every entry that differs, with both values and both directories.
    """
    if len(records) == 1:
        return
    meanings = [_meaning(*one) for one in zip(directories, records, strict=True)]
    first = meanings[0]
    for directory, other in zip(directories[1:], meanings[1:], strict=True):
        apart = [name for name in first if first[name] != other[name]]
        if apart:
            listed = "\n  - ".join(
                f"{name}: {_short(first[name])} and {_short(other[name])}" for name in apart
            )
            raise AdapterError(
                f"adapters that segment together must agree; {directories[0]} and {directory} "
                f"differ in {len(apart)} entr{'y' if len(apart) == 1 else 'ies'}:\n  - {listed}"
            )


def _folds(directory: Path) -> list[Path]:
    """Return the folds of a cross-validation in the order of their numbers."""
    numbered = [
        (int(found[1]), path)
        for path in directory.glob("fold_*")
        if path.is_dir() and (found := re.fullmatch(r"fold_(\d+)", path.name))
    ]
    return [path for _, path in sorted(numbered)]


def _meaning(directory: Path, record: AdapterRecord) -> dict[str, Any]:
    """Return what members must share: what they see, and what their logits mean."""
    try:
        tiling = recorded_tiling(record.data_options)
        stack = recorded_stack(record)
    except ConfigError as error:
        raise AdapterError(f"{directory / RECORD}: {error}") from error
    prompts = ("kind", "objects", "background_token")
    return {
        "base": record.base,
        "base_sha256": record.base_sha256,
        "image_size": record.image_size,
        "input_channels": record.input_channels,
        "intensity": record.intensity,
        "axis": record.axis,
        "tile": tiling and asdict(tiling),
        "peft.depth or head.depth": stack,
        "classes": record.classes,
        "overlapping": record.overlapping,
        # How noisy the prompts of the training were does not matter at prediction.
        "prompt": {key: record.prompt[key] for key in prompts if record.prompt.get(key)},
        "threshold": record.threshold,
        # Members that separate objects do it in the same way, on the mean of their distances.
        "head": {
            key: record.head.get(key)
            for key in ("name", *WATERSHED_KEYS)
            if record.separates_objects
        },
    }


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."
