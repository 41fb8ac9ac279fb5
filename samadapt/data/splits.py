"""Training and validation: by case, or by a slab with a gap where there is one volume.

Rule: sort the case names; every ``val_every``-th, from the first (0, 5, 10 … for 5), is
validation. A card or the user may list names instead: ``{"val": [...]}``, the others train, or
``{"train": [...], "val": [...]}``. Slices of one volume are never on both sides, but for a data
set of a single volume: there a slab of neighbouring slices is held out, ``{"slab": [0.4, 0.6],
"gap_mm": 5}``: from 40 to 60 % of the span of slices with foreground, and the slices within
5 mm of it are left out on both sides.

Cases of one patient, where the files say so, count as one and are never divided. A fold of a
cross-validation holds out every ``folds``-th of them, from the ``fold``-th; fold 0 of 5 is the rule
above.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samadapt.data.types import Case
from samadapt.errors import ConfigError, nearest

DEFAULT_SLAB = {"slab": [0.4, 0.6], "gap_mm": 5.0}
_KEYS = ("train", "val", "slab", "gap_mm")


@dataclass(frozen=True)
class Slab:
    """The slices [start, stop) of the only volume that are held out, and the gap around them."""

    start: int
    stop: int
    gap: int
    depth: int

    def indices(self, split: str) -> list[int]:
        """Return the slices of ``"train"`` or ``"val"``."""
        if split == "val":
            return list(range(self.start, self.stop))
        below = range(max(0, self.start - self.gap))
        return [*below, *range(min(self.depth, self.stop + self.gap), self.depth)]


@dataclass(frozen=True)
class Splits:
    """Case names of both sides; with a ``slab`` both name the one volume."""

    train: list[str]
    val: list[str]
    rule: str
    slab: Slab | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what ``splits.json`` records."""
        record: dict[str, Any] = {"rule": self.rule, "train": self.train, "val": self.val}
        if self.slab is not None:
            slab = self.slab
            record["slices"] = {
                "val": [slab.start, slab.stop],
                "train": [[0, max(0, slab.start - slab.gap)], [slab.stop + slab.gap, slab.depth]],
                "gap": slab.gap,
            }
        return record


def divide(
    cases: Sequence[Case],
    chosen: Mapping[str, Any] | None,
    val_every: int,
    fold: int | None,
    folds: int,
    least_gap: int,
) -> Splits:
    """Hold out a fold where one is asked for, else what ``make_splits`` says."""
    if fold is not None:
        return make_fold(cases, fold, folds)
    return make_splits(cases, chosen, val_every, least_gap)


def make_splits(
    cases: Sequence[Case],
    chosen: Mapping[str, Any] | None,
    val_every: int = 5,
    least_gap: int = 0,
) -> Splits:
    """Divide the cases by the module's rules.

    Args:
        cases: the usable cases, sorted by name.
        chosen: the card's or the user's lists or slab, or None.
        val_every: every such case is validation, from the first.
        least_gap: slices that stay unused beside a slab at least: those that a slice is shown with.

    Raises:
        ConfigError: unknown keys or names, a case on both sides, a slab for several volumes.
    """
    chosen = dict(chosen or {})
    for key in chosen:
        if key not in _KEYS:
            known = ", ".join(_KEYS)
            raise ConfigError(f"split: unknown key {key!r}; known: {known}{nearest(key, _KEYS)}")
    if "val" in chosen or "train" in chosen:
        return _listed(cases, chosen)
    if len(cases) == 1 and cases[0].shape[2] > 1:
        return _slab_split(cases[0], {**DEFAULT_SLAB, **chosen}, least_gap)
    if chosen:
        raise ConfigError(
            f"split: a slab is for a data set of one volume; this one has {len(cases)} cases; "
            "list case names under val instead"
        )
    if val_every < 2:
        raise ConfigError(f"data.val_every must be at least 2; got {val_every}")
    rule = f"every {val_every}th case by name, from the first, is validation"
    return _every(cases, val_every, 0, rule)


def make_fold(cases: Sequence[Case], fold: int, folds: int) -> Splits:
    """Hold out one fold of a cross-validation by case.

    Args:
        cases: the usable cases, sorted by name.
        fold: which one, from 0.
        folds: how many there are.

    Raises:
        ConfigError: for a fold that is not there, or fewer cases (or patients) than folds.
    """
    if not 0 <= fold < folds:
        raise ConfigError(f"data.fold must be 0 to {folds - 1} (data.folds={folds}); got {fold}")
    units = len(_patients(cases))
    if units < folds:
        raise ConfigError(
            f"data.folds={folds}: a case is on one side of a fold, and so are all cases of a "
            f"patient; there are {len(cases)} cases of {units} patients. Use fewer folds"
        )
    rule = f"fold {fold} of {folds}: one case in {folds} by name, from number {fold}, is held out"
    return _every(cases, folds, fold, rule)


def _every(cases: Sequence[Case], step: int, start: int, rule: str) -> Splits:
    patients = _patients(cases)
    if len(patients) < len(cases):
        rule += f"; the cases of a patient together ({len(patients)} patients)"
        if len(patients) == 1:  # anonymisers write one ID into all files
            rule += ": if one ID stands for all people, data.patient='(.+)' tells cases apart"
    held = {name for names in patients[start::step] for name in names}
    names = [case.name for case in cases]
    val = [name for name in names if name in held]
    return Splits([name for name in names if name not in held], val, rule)


def _patients(cases: Sequence[Case]) -> list[list[str]]:
    """Return the case names of each patient, by their first; a case without a mark is one."""
    found: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        key = ("patient", case.patient) if case.patient else ("case", case.name)
        found.setdefault(key, []).append(case.name)
    return list(found.values())


def _listed(cases: Sequence[Case], chosen: Mapping[str, Any]) -> Splits:
    names = [case.name for case in cases]
    val, train = list(chosen.get("val", [])), chosen.get("train")
    train = [name for name in names if name not in val] if train is None else list(train)
    if not val:
        val = [name for name in names if name not in train]
    both = sorted(set(val) & set(train))
    if both:
        raise ConfigError(f"split: on both sides: {', '.join(both[:5])}; keep each on one")
    unknown = sorted({*val, *train} - set(names))
    if unknown:
        raise ConfigError(
            f"split: {len(unknown)} names are no usable case: {', '.join(unknown[:5])}"
            + nearest(unknown[0], names)
        )
    for group in _patients(cases):
        if set(group) & set(val) and set(group) & set(train):
            raise ConfigError(
                f"split: of one patient, but on both sides: {', '.join(group[:5])}; keep each "
                "patient on one"
            )
    return Splits(sorted(train), sorted(val), "listed by name")


def _slab_split(case: Case, chosen: Mapping[str, Any], least_gap: int) -> Splits:
    low, high = (float(bound) for bound in chosen["slab"])
    gap_mm = float(chosen["gap_mm"])
    if not (0 <= low < high <= 1 and gap_mm >= 0):
        raise ConfigError(
            f"split.slab must be two rising fractions of 0..1 and gap_mm at least 0; "
            f"got {chosen['slab']} and {chosen['gap_mm']}"
        )
    depth = case.shape[2]
    first, last = 0, depth
    if case.presence is not None and case.presence.any():
        filled = np.flatnonzero(case.presence.any(axis=1))
        first, last = int(filled[0]), int(filled[-1]) + 1
    start = first + int((last - first) * low)
    stop = max(start + 1, first + int((last - first) * high))
    spacing = case.spacing_mm[2] if case.spacing_mm else 1.0
    gap = max(1, least_gap, math.ceil(gap_mm / spacing))
    rule = f"one volume: slices {start} to {stop - 1} are validation, {gap} beside them unused"
    return Splits([case.name], [case.name], rule, Slab(start, stop, gap, depth))
