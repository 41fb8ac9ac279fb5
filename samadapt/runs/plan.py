"""Predict what a run will need before it runs: parameters, memory, disk and time."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.config.compose import to_dict
from samadapt.runs.feature_planner import FEATURES_BATCH
from samadapt.system import atomic, processes
from samadapt.system.cache import cache_folder
from samadapt.system.machine import find_processors
from samadapt.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samadapt.config.schema import Config

BUSY = 0.15
"""Share of the processors that other programs may use on a machine that counts as quiet."""


@dataclass(frozen=True)
class Phase:
    """What a phase was measured to need with one and with two units of work at once.

    Attributes:
        units: the smaller and the larger number of slices at once; equal if only one was measured.
        peaks: bytes of the process's memory at most, with each of them.
        seconds: seconds of one pass, with each of them.
    """

    units: tuple[int, int]
    peaks: tuple[int, int]
    seconds: tuple[float, float]

    @classmethod
    def once(cls, units: int, peak: int, seconds: float) -> Phase:
        """Return what was measured with one number of units."""
        return cls((units,) * 2, (peak,) * 2, (seconds,) * 2)

    def peak(self, units: int) -> int:
        """Return the memory with so many slices at once."""
        return int(self._at(units, *map(float, self.peaks)))

    def time(self, units: int) -> float:
        """Return the seconds of one pass with so many slices at once."""
        return self._at(units, *self.seconds)

    def _at(self, units: int, low: float, high: float) -> float:
        first, second = self.units
        if first == second:
            return high
        # Two measurements of nearly the same number may come out in the wrong order.
        slope = max(0.0, (high - low) / (second - first))
        return max(low, high) + slope * (units - second)


@dataclass(frozen=True)
class Rehearsal:
    """What was measured, and the sizes of the run that it belongs to.

    Attributes:
        trained, total: numbers of parameters.
        start_peak: bytes of memory at most until the model and the data were opened.
        start_seconds: seconds until then.
        features: the frozen blocks; None if no features are to be computed.
        training: steps by slices in a batch; None if nothing trains.
        scoring: scores by slices of a case; None if nothing is scored or validated.
        images: images whose features are kept.
        missing: images whose features must still be computed.
        feature_bytes: bytes of the features of one image.
        in_memory: features are kept in memory and not on the disk.
        later_bytes: bytes of images that a run holds in memory and that were not read here.
        stack: slices that the encoder sees together.
        train: number of slices.
        validation, test: numbers of slices that this process scores.
        deepest: largest number of slices of a scored case.
        passes: models that were scored: the one after training and the base model, or the first.
        threads: threads of torch.
    """

    trained: int
    total: int
    start_peak: int
    start_seconds: float
    features: Phase | None
    training: Phase | None
    scoring: Phase | None
    images: int
    missing: int
    feature_bytes: int
    in_memory: bool
    later_bytes: int
    stack: int
    train: int
    validation: int
    test: int
    deepest: int
    passes: int
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Rehearsal:
        """Return what ``to_dict`` returned, also after it was JSON."""
        phases = {
            name: None if values[name] is None else Phase(**_as_tuples(values[name]))
            for name in ("features", "training", "scoring")
        }
        return cls(**{**values, **phases})


def _as_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) for key, value in values.items()}


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    Attributes:
        trained, total: numbers of parameters.
        memory_bytes: largest resident memory of the process.
        memory_by_phase: the same for each phase: ``start``, ``features``, ``training``, ``scores``.
        feature_bytes: bytes of the features that the run uses, those of earlier runs included.
        new_feature_bytes: bytes of the features that it still has to compute and keep.
        feature_place: ``disk``, ``memory`` or ``none``.
        seconds: wall seconds of each phase: ``start``, ``features``, ``training``,
            ``validation``, ``scores``.
        batch_size, accumulate: micro-batch and number of them in a step.
        recompute: whether blocks are computed again in the backward pass.
        folds: number of runs of a cross-validation, one after another; all other values are those
            of one of them.
        measured: what it is predicted from.
        busy: processors that other programs kept busy while this was measured.
        notes: what a reader must know.
    """

    trained: int
    total: int
    memory_bytes: int
    memory_by_phase: dict[str, int]
    feature_bytes: int
    new_feature_bytes: int
    feature_place: str
    seconds: dict[str, float]
    batch_size: int
    accumulate: int
    recompute: bool
    measured: Rehearsal
    folds: int = 1
    busy: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def is_loaded(self) -> bool:
        """Whether other programs used the machine while the seconds were measured."""
        return self.busy > BUSY * find_processors().usable

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def predict(config: Config, measured: Rehearsal, *, busy: float = 0.0, folds: int = 1) -> Plan:
    """Return what a run will need, from what was measured in its rehearsal.

    Args:
        config: the configuration of the run.
        measured: what ``rehearse`` returned for it. Batch size, accumulation, steps and the number
            of slices may differ from those of the rehearsal.
        busy: processors that other programs kept busy meanwhile.
        folds: number of runs of the cross-validation.
    """
    train = config.train
    memory = memory_by_phase(config, measured)
    seconds = _seconds(config, measured)
    place = "none" if not measured.images else "memory" if measured.in_memory else "disk"
    notes = []
    processors = find_processors().usable
    if busy > BUSY * processors:
        notes.append(
            f"this machine is loaded: other programs keep {busy:.1f} of {processors} processors "
            "busy, so the seconds are those of a loaded machine; plan again when it is quiet"
        )
    new_bytes = measured.missing * measured.feature_bytes
    where = _existing(Path(config.cache.dir or config.output.dir))
    free = shutil.disk_usage(where).free
    if place == "disk" and new_bytes > free:
        notes.append(
            f"the disk of {where} has {free / 1e9:.2f} GB left, and the features need "
            f"{new_bytes / 1e9:.2f} GB"
        )
    return Plan(
        trained=measured.trained,
        total=measured.total,
        memory_bytes=max(memory.values()),
        memory_by_phase=memory,
        feature_bytes=measured.images * measured.feature_bytes,
        new_feature_bytes=new_bytes,
        feature_place=place,
        seconds=seconds,
        batch_size=train.slices,
        accumulate=train.accumulate,
        recompute=train.recompute,
        measured=measured,
        folds=folds,
        busy=busy,
        notes=notes,
    )


def memory_by_phase(config: Config, measured: Rehearsal) -> dict[str, int]:
    """Return the largest memory of each phase in bytes."""
    # Each phase was measured with what the process already held then. A run also holds the images
    # that were not read yet, and in memory all features.
    kept = measured.later_bytes
    features = measured.images * measured.feature_bytes if measured.in_memory else 0
    found = {"start": measured.start_peak}
    if measured.features is not None:
        batch = min(FEATURES_BATCH, measured.missing)
        found["features"] = measured.features.peak(batch) + kept + features
    if measured.training is not None:
        found["training"] = measured.training.peak(config.train.slices) + kept + features
    if measured.scoring is not None:
        # One batch at a time goes through the model; beyond it the labels of a case grow alone.
        measured_at, batch = measured.scoring.units[1], config.eval.batch_size
        units = measured.deepest if measured_at > batch else min(measured.deepest, batch)
        found["scores"] = measured.scoring.peak(max(units, measured_at)) + kept + features
    return found


def _seconds(config: Config, measured: Rehearsal) -> dict[str, float]:
    """Return the wall seconds of each phase."""
    train, found = config.train, {"start": measured.start_seconds}
    features = validation = training = scores = 0.0
    if measured.features is not None:
        each = measured.features.seconds[1] / measured.features.units[1]
        features = measured.missing * each
    if measured.scoring is not None:
        # All kinds of prompts, the model after training and the base model are scored in the
        # measurement, and a validation scores the model alone.
        each = measured.scoring.seconds[1] / measured.scoring.units[1]
        scores = measured.test * each
        count = math.ceil((train.steps or 0) / train.validate_every) if train.validate_every else 1
        validation = count * measured.validation * each / measured.passes
    if measured.training is not None:
        step = measured.training.time(train.slices) * train.accumulate
        training = step * (train.steps or 0)
        if (limit := train.max_seconds or train.max_cpu_seconds) is not None:
            left = max(0.0, limit - features)
            training = min(training, left) if train.steps else left
            validation = min(validation, max(0.0, left - training))
    return {
        **found,
        "features": features,
        "training": training,
        "validation": validation,
        "scores": scores,
    }


def _existing(path: Path) -> Path:
    """Return the innermost folder of a path that exists."""
    path = path.expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def remember(config: Config, measured: Rehearsal, busy: float) -> None:
    """Keep a rehearsal for runs of the same kind; a folder that cannot be written is no error.

    Args:
        config: the configuration that was rehearsed.
        measured: the result.
        busy: processors that other programs kept busy meanwhile.
    """
    values = {"measured": measured.to_dict(), "busy": busy}
    with suppress(OSError):
        atomic.write_text(kept_in(config), json.dumps(values) + "\n")


def remembered(config: Config) -> tuple[Rehearsal, float] | None:
    """Return the rehearsal of a run of the same kind, and how busy the machine was; or None."""
    try:
        values = json.loads(kept_in(config).read_text(encoding="utf-8"))
        return Rehearsal.from_dict(values["measured"]), float(values["busy"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # there is none, or it is from another version


OTHER_GROUPS = {
    "memory",
    "output",
    "seed",
    "resume",
    "init",
    "init_sha256",
    "folds",
    "cache",
    "recipe",
}
OTHER_KEYS = {
    "train.steps",
    "train.max_seconds",
    "train.max_cpu_seconds",
    "train.batch_size",
    "train.accumulate",
    "train.lr",
    "train.decoder_lr",
    "train.weight_decay",
    "train.warmup_steps",
    "train.schedule",
    "train.clip",
    "train.validate_every",
    "train.validate_cases",
    "train.checkpoint_every",
    "train.patience",
    "eval.max_cases",
    "eval.overlays",
    "data.fold",
    "data.folds",
}
"""Keys that do not change what one slice needs in a step or a score."""


def kept_in(config: Config, more: Sequence[object] = ()) -> Path:
    """Return the file for what is known of all runs that need the same for a slice.

    Args:
        config: the configuration of one of them.
        more: what else tells them apart; nothing for rehearsals.
    """
    import torch

    kind = {
        f"{group}.{key}" if isinstance(values, dict) else group: value
        for group, values in to_dict(config).items()
        if group not in OTHER_GROUPS
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
    kind = {key: value for key, value in kind.items() if key not in OTHER_KEYS}
    known = [
        __version__,
        torch.__version__,
        torch.get_num_threads(),
        processes.count(),
        platform.machine(),
        kind,
        *more,
    ]
    text = json.dumps(known, sort_keys=True, default=str)
    name = hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
    return cache_folder("plans") / f"{name}.json"
