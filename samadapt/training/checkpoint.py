"""Checkpoints that are whole or absent: a folder with a manifest, renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from samadapt.errors import UserError

KEEP = 2
"""Checkpoints kept in a run directory: the newest, and one before it."""


class CheckpointError(UserError):
    """A checkpoint is missing or damaged; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had not stopped.

    Attributes:
        step: optimizer steps done.
        weights: the trained parameters by name.
        best_weights: the same at the best validation so far; empty before the first one.
        optimizer: state dict.
        progress: plain values: sampler, random state of the prompts, best score.
        random: torch's random states by device.
    """

    step: int
    weights: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    progress: dict[str, Any]
    random: dict[str, Tensor]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/step_<N>`` and point ``folder/LATEST`` to it; keep the one before it."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{checkpoint.step:06d}"
    part = folder / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    save_file(_plain(checkpoint.weights), part / "weights.safetensors")
    save_file(_plain(checkpoint.best_weights), part / "best.safetensors")
    torch.save({"optimizer": checkpoint.optimizer, "random": checkpoint.random}, part / "state.pt")
    (part / "progress.json").write_text(json.dumps(checkpoint.progress), encoding="utf-8")
    files = {path.name: _sha256(path) for path in sorted(part.iterdir())}
    manifest = {"step": checkpoint.step, "sha256": files}
    (part / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    part.replace(target)
    write_atomically(folder / "LATEST", target.name + "\n")
    others = sorted(path for path in folder.glob("step_*") if path != target)
    before = [path for path in others if path.name < target.name]
    for old in set(others) - set(before[1 - KEEP :]):  # also those of a way that was left
        shutil.rmtree(old)
    return target


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read the checkpoint that ``folder/LATEST`` names, checked against its manifest.

    Raises:
        CheckpointError: naming the file that is missing or differs, and what else there is.
    """
    latest = folder / "LATEST"
    if not latest.is_file():
        raise CheckpointError(f"{latest}: not found; nothing was saved here to resume from")
    source = folder / latest.read_text(encoding="utf-8").strip()
    try:
        _verify(source)
        state = torch.load(source / "state.pt", weights_only=True, map_location="cpu")
        progress = json.loads((source / "progress.json").read_text(encoding="utf-8"))
        return Checkpoint(
            step=int(progress["step"]),
            weights=load_file(source / "weights.safetensors"),
            best_weights=load_file(source / "best.safetensors"),
            optimizer=state["optimizer"],
            progress=progress,
            random=state["random"],
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        others = sorted(path.name for path in folder.glob("step_*") if path != source)
        advice = f"; write one of {', '.join(others)} into {latest} to use it" if others else ""
        raise CheckpointError(f"{source}: damaged checkpoint: {error}{advice}") from error


def write_atomically(path: Path, text: str) -> None:
    """Write text to a file that is either the old one or the new one, never a part."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _verify(source: Path) -> None:
    manifest = json.loads((source / "manifest.json").read_text(encoding="utf-8"))
    for name, expected in manifest["sha256"].items():
        found = _sha256(source / name)
        if found != expected:
            raise ValueError(f"{name} has sha256 {found[:12]}…, expected {expected[:12]}…")


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
