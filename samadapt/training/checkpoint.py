"""Checkpoints on disk. Each is a folder with a manifest that is renamed into place when complete.

::

    checkpoints/
      LATEST                      name of the newest checkpoint
      step_000050/
        weights.safetensors       trained parameters
        best.safetensors          trained parameters of the best step so far
        averages.safetensors      moving averages of the trained parameters, with train.ema
        state.pt                  states of the optimizer, torch's random generators and the method
        progress.json             step, best score, time used, state of the sampler
        manifest.json             step, and sha256 of the other files

A damaged checkpoint is skipped with a warning, and the newest good one is used instead.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from samadapt.adapters.injection import CLASSES
from samadapt.errors import UserError
from samadapt.system import atomic
from samadapt.system.out_of_memory import is_out_of_memory

KEEP = 2
"""Number of checkpoints kept in a run directory: the newest and the one before it."""

COPIES = 4
"""Tensors in a checkpoint for each trained parameter: its value, its best value, AdamW's two."""

FILES = ("best.safetensors", "progress.json", "state.pt", "weights.safetensors")
"""The files of a checkpoint besides its manifest."""

AVERAGES = "averages.safetensors"
"""A further file, if the run averages its weights."""

MANIFEST = "manifest.json"

_NAME = re.compile(r"step_(\d{6,12})")
_MOST_JSON = 2**20
"""Largest accepted size of a JSON file in bytes. Such a file has a few hundred bytes."""


class CheckpointError(UserError):
    """A checkpoint is missing or damaged; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a resumed run needs to continue as if it had not stopped.

    Attributes:
        step: number of optimizer steps done.
        weights: the trained parameters by name.
        best_weights: the trained parameters at the best validation; empty before the first one.
        optimizer: state dict of the optimizer.
        progress: plain values: state of the sampler, best score, time used.
        random: torch's random states by device.
        method: the result of ``Method.state_dict``; None if the method has none, or an earlier
            version wrote the checkpoint.
        averages: moving averages of the trained parameters by name; empty without ``train.ema``.
    """

    step: int
    weights: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    progress: dict[str, Any]
    random: dict[str, Tensor]
    method: dict[str, Tensor] | None = None
    averages: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/step_<N>``, name it in ``folder/LATEST``, and keep the one before it.

    Raises:
        DiskFullError: naming the folder, the bytes needed and the bytes free. Existing checkpoints
            stay.
    """
    target = folder / f"step_{checkpoint.step:06d}"
    state: dict[str, Any] = {"optimizer": checkpoint.optimizer, "random": checkpoint.random}
    size = checkpoint_bytes(checkpoint.weights, COPIES + bool(checkpoint.averages))
    if checkpoint.method is not None:
        state["method"] = checkpoint.method
        size += checkpoint_bytes(checkpoint.method, copies=1)
    with atomic.folder(target, size) as part:
        save_file(_plain(checkpoint.weights), part / "weights.safetensors")
        save_file(_plain(checkpoint.best_weights), part / "best.safetensors")
        if checkpoint.averages:
            save_file(_plain(checkpoint.averages), part / AVERAGES)
        torch.save(state, part / "state.pt")
        (part / "progress.json").write_text(json.dumps(checkpoint.progress), encoding="utf-8")
        files = {path.name: _sha256(path) for path in sorted(part.iterdir())}
        manifest = {"step": checkpoint.step, "sha256": files}
        (part / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    atomic.write_text(folder / "LATEST", target.name + "\n")
    older = [path for path in saved(folder) if _number(path) < checkpoint.step]
    # Later steps are removed too: they belong to a run that was resumed from an earlier step.
    for old in {*saved(folder)} - {target, *older[: KEEP - 1]}:
        shutil.rmtree(old)
    return target


def saved(folder: Path) -> list[Path]:
    """Return all checkpoints in a folder, good or damaged, the newest first."""
    found = [path for path in folder.glob("step_*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_number, reverse=True)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has written a checkpoint, good or damaged."""
    return (folder / "LATEST").exists() or bool(saved(folder))


def checkpoint_bytes(weights: Mapping[str, Tensor], copies: int = COPIES) -> int:
    """Return an upper bound of the bytes that a checkpoint of these parameters takes.

    Args:
        weights: the trained parameters.
        copies: tensors of the checkpoint for each of them.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    return copies * size + 2**14 + 2048 * len(weights)  # headers, names and alignment


def load_checkpoint(
    folder: Path, warn: Callable[[str], None] | None = None, *, like: Mapping[str, Tensor] = {}
) -> Checkpoint:
    """Load the checkpoint that ``folder/LATEST`` names, or else the newest good one.

    Args:
        folder: ``checkpoints/`` of the run.
        warn: called with the reason if a newer checkpoint is skipped; None makes a damaged
            checkpoint an error.
        like: the trained parameters by name, to compare names and shapes with; empty: no check.

    Raises:
        CheckpointError: no good checkpoint; names what is missing, damaged or malformed.
    """
    latest = _named_by(folder / "LATEST")
    candidates = saved(folder)
    if latest is None and not candidates:
        raise CheckpointError(
            f"{folder / 'LATEST'}: not found; nothing was saved here to resume from"
        )
    # LATEST comes first. A newer folder exists only if the program died before it was named there.
    if latest is not None:
        candidates = [latest, *(path for path in candidates if path != latest)]
    faults: list[str] = []
    for source in candidates:
        try:
            found = _read(source, like)
        except CheckpointError as error:
            faults.append(str(error))
            if warn is None:
                break
            continue
        for fault in faults if warn else ():
            warn(f"warning: {fault}; continuing from {source.name} instead")  # type: ignore[misc]
        return found
    raise CheckpointError(
        f"{'; '.join(faults)}; no good checkpoint is left in {folder}. Restore the folder from a "
        "copy, or start a new run"
    )


def _named_by(latest: Path) -> Path | None:
    """Return the folder that ``LATEST`` names, or None if there is no such file.

    Raises:
        CheckpointError: the file does not hold the name of a checkpoint.
    """
    try:
        with latest.open("rb") as file:
            name = file.read(64).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{latest}: cannot be read: {error.strerror}") from error
    if not _NAME.fullmatch(name):
        names = ", ".join(path.name for path in saved(latest.parent)) or "none"
        raise CheckpointError(
            f"{latest}: expected the name of a checkpoint of this run, such as step_000100; got "
            f"something else. Write one of these names: {names}; or delete it to use the newest"
        )
    return latest.parent / name


def _read(source: Path, like: Mapping[str, Tensor]) -> Checkpoint:
    """Load one checkpoint after checking it against its manifest.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    try:
        _verify(source)
        state = _load_state(source / "state.pt")
        progress = _checked_progress(source / "progress.json", _number(source))
        weights = load_file(source / "weights.safetensors")
        best = load_file(source / "best.safetensors")
        averages = load_file(source / AVERAGES) if (source / AVERAGES).exists() else {}
        _check_weights(source / "weights.safetensors", weights, like)
        for name, found in (("best.safetensors", best), (AVERAGES, averages)):
            if found:
                _check_weights(source / name, found, weights)
        return Checkpoint(
            progress["step"],
            weights,
            best,
            state["optimizer"],
            progress,
            state["random"],
            state.get("method"),
            averages,
        )
    except CheckpointError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise _damaged(source, f"it cannot be read ({reason})") from error


def _verify(source: Path) -> None:
    """Compare the files of a checkpoint with its manifest."""
    if source.is_symlink() or not source.is_dir():
        raise _damaged(source, "there is no such folder")
    manifest = _json(source / MANIFEST)
    step, hashes = manifest.get("step"), manifest.get("sha256")
    if type(step) is not int or step != _number(source):
        raise _damaged(source / MANIFEST, f"its step must be {_number(source)}")
    if not isinstance(hashes, dict) or sorted({*hashes} - {AVERAGES}) != sorted(FILES):
        raise _damaged(source / MANIFEST, f"its sha256 must list exactly {', '.join(FILES)}")
    there = {path.name: path for path in source.iterdir()}
    if strange := sorted(set(there) - {*hashes, MANIFEST}):
        raise _damaged(source, f"{strange[0]!r} does not belong to it")
    for name, expected in hashes.items():
        path = there.get(name)
        if path is None or path.is_symlink() or not path.is_file():
            raise _damaged(source / name, "the file is missing")
        if (found := _sha256(path)) != expected:
            wanted = expected[:12] if isinstance(expected, str) else "text"
            raise _damaged(path, f"it has sha256 {found[:12]}…, expected {wanted}…")


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_JSON + 1)
        if len(content) > _MOST_JSON:
            raise _damaged(path, f"it is larger than {_MOST_JSON} bytes")
        values = json.loads(content)
    except FileNotFoundError as error:
        raise _damaged(path, "the file is missing") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "it is not valid JSON") from error
    if not isinstance(values, dict):
        raise _damaged(path, "expected a JSON object")
    return values


def _load_state(path: Path) -> dict[str, Any]:
    """Load optimizer, random and method states; refuse files that could run code."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a malformed file can raise anything in torch
        if is_out_of_memory(error):
            raise
        raise _damaged(
            path,
            "it does not hold plain tensors as samadapt writes them. It is broken, or it holds "
            "objects that could run code, which are never loaded",
        ) from error
    if not isinstance(state, dict) or set(state) - {"method"} != {"optimizer", "random"}:
        raise _damaged(path, "expected the entries optimizer and random, and at most method")
    optimizer, random = state["optimizer"], state["random"]
    if not isinstance(optimizer, dict) or set(optimizer) != {"state", "param_groups"}:
        raise _damaged(path, "optimizer: expected the entries state and param_groups")
    if not isinstance(optimizer["state"], dict) or not isinstance(optimizer["param_groups"], list):
        raise _damaged(path, "optimizer: state must be a mapping and param_groups a list")
    try:
        torch.Generator().set_state(random["cpu"])
    except (RuntimeError, TypeError, KeyError, IndexError) as error:
        raise _damaged(path, "random: expected torch's random state of the CPU") from error
    method = state.get("method", {})
    if not isinstance(method, dict) or not all(map(_is_finite_tensor, method.values())):
        raise _damaged(path, "method: expected a mapping of finite tensors")
    return state


def _checked_progress(path: Path, step: int) -> dict[str, Any]:
    """Load ``progress.json``; every field must exist and have a possible value."""
    values = _json(path)
    if type(values.get("step")) is not int or values["step"] != step:
        raise _damaged(path, f"step must be {step}")
    for key, most in (("best_step", step), ("skipped", step), ("sampler", None)):
        value = values.get(key)
        if type(value) is not int or value < 0 or (most is not None and value > most):
            upper = "" if most is None else f" and at most {most}"
            raise _damaged(path, f"{key} must be a whole number of at least 0{upper}")
    if type(values.get("stale", 0)) is not int or values.get("stale", 0) < 0:
        raise _damaged(path, "stale must be a whole number of at least 0")
    if "budget" in values and not _are_times(values["budget"]):
        raise _damaged(path, "budget must hold pairs of wall and CPU seconds")
    best = values.get("best_score", "")
    if best is not None and (type(best) not in (int, float) or not math.isfinite(best)):
        raise _damaged(path, "best_score must be a finite number or null")
    return values


def _are_times(state: object) -> bool:
    """Whether a value is what ``Budget.state`` returns."""
    names = {"used", "first_step", "step", "validation"}
    if not isinstance(state, dict) or set(state) != names:
        return False
    return all(
        isinstance(pair, list)
        and (len(pair) == 2 or (name == "validation" and not pair))
        and all(type(x) in (int, float) and math.isfinite(x) and x >= 0 for x in pair)
        for name, pair in state.items()
    )


def _check_weights(path: Path, found: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    own, before = (any(name.startswith(CLASSES) for name in names) for names in (like, found))
    if found and own and not before:
        raise CheckpointError(
            f"{path}: in this run the mask tokens predict the classes, as in earlier versions. "
            "This version gives them tokens of their own and cannot continue the run: finish it "
            "with the version that started it"
        )
    for name in sorted({*found, *like}) if like else ():
        if name not in like or name not in found:
            which = "is unknown" if name in found else "is missing"
            raise _damaged(path, f"the tensor {name} {which}; is it of another run?")
        if found[name].shape != like[name].shape:
            shapes = f"{tuple(found[name].shape)}, expected {tuple(like[name].shape)}"
            raise _damaged(path, f"the tensor {name} has the shape {shapes}")
    for name, value in found.items():
        if not bool(torch.isfinite(value).all()):
            raise _damaged(path, f"the tensor {name} holds NaN or infinite values")


def _is_finite_tensor(value: object) -> bool:
    return isinstance(value, Tensor) and bool(value.isfinite().all())


def _damaged(path: Path, fault: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged checkpoint: {fault}")


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
