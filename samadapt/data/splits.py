"""Split cases into training and validation: by case, or by a slab of slices of a single volume.

The rule: case names are sorted, and every ``val_every``-th case from the first is validation (cases
0, 5, 10, ... for 5). A card or the user may list names instead: ``{"val": [...]}``, where all
others train, or ``{"train": [...], "val": [...]}``. With ``val_every=0`` every case trains, and
nothing is held out, whatever a card lists.

All slices of a volume are in one split. The exception is a data set of a single volume. There a
slab of neighbouring slices is held out, ``{"slab": [0.4, 0.6], "gap_mm": 5}``: the slices from 40
to 60 % of the span that contains foreground. Slices within 5 mm of the slab are in neither split,
because neighbouring slices look alike::

    slice   0 ......... a   gap   b ============ c   gap   d ......... depth
              training              validation               training

Cases of one patient, where the files name the patient, count as one and stay in one split. A fold
of a cross-validation holds out every ``folds``-th of them, from number ``fold``; fold 0 of 5 is the
rule above.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.data.types import Case
from samadapt.errors import ConfigError, nearest

DEFAULT_SLAB = {"slab": [0.4, 0.6], "gap_mm": 5.0}
_KEYS = ("train", "val", "slab", "gap_mm")


def listed_names(path: Path) -> list[str]:
    """Return the case names in a text file, one a line; lines that start with # are comments.

    Raises:
        ConfigError: it cannot be read, or it lists nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"data.held_out={path}: expected a text file with the name of one case a line; it "
            f"cannot be read: {error}"
        ) from error
    names = [name for line in lines if (name := line.strip()) and not name.startswith("#")]
    if not names:
        raise ConfigError(f"data.held_out={path}: lists no case; write the name of one a line")
    return names


@dataclass(frozen=True)
class Slab:
    """The slices of the only volume that are held out.

    Attributes:
        start, stop: the slices [start, stop) are validation.
        gap: number of slices before and after them that are not used.
        depth: slices of the volume.
    """

    start: int
    stop: int
    gap: int
    depth: int

    def indices(self, split: str) -> list[int]:
        """Return the slice numbers of ``"train"`` or ``"val"``."""
        if split == "val":
            return list(range(self.start, self.stop))
        below = range(max(0, self.start - self.gap))
        return [*below, *range(min(self.depth, self.stop + self.gap), self.depth)]


@dataclass(frozen=True)
class Splits:
    """Which cases train and which validate.

    Attributes:
        train: case names of the training split.
        val: case names of the validation split. With a ``slab`` both hold the one volume.
        rule: the rule in words.
        slab: the held out slices of a single volume, or None.
        unused: case names that are in neither split, where only some training cases are used.
    """

    train: list[str]
    val: list[str]
    rule: str
    slab: Slab | None = None
    unused: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of ``splits.json``."""
        record: dict[str, Any] = {"rule": self.rule, "train": self.train, "val": self.val}
        if self.unused:
            record["unused"] = self.unused
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
    """Return a cross-validation fold if ``fold`` is given, else the result of ``make_splits``."""
    if fold is not None:
        return make_fold(cases, fold, folds)
    return make_splits(cases, chosen, val_every, least_gap)


def make_splits(
    cases: Sequence[Case],
    chosen: Mapping[str, Any] | None,
    val_every: int = 5,
    least_gap: int = 0,
) -> Splits:
    """Split the cases by the rules of this module.

    Args:
        cases: the usable cases, sorted by name.
        chosen: lists or a slab, from the card or the user, or None.
        val_every: every n-th case is validation, from the first; 0: nothing is held out.
        least_gap: smallest gap beside a slab in slices: the number of neighbours that the model
            sees together with a slice.

    Raises:
        ConfigError: there are unknown keys or names, a case or a patient is in both splits, or
            a slab is given for several volumes.
    """
    chosen = dict(chosen or {})
    for key in chosen:
        if key not in _KEYS:
            known = ", ".join(_KEYS)
            raise ConfigError(f"split: unknown key {key!r}; known: {known}{nearest(key, _KEYS)}")
    if val_every == 0:
        names = [case.name for case in cases]
        return Splits(names, [], "nothing is held out: every case trains (data.val_every=0)")
    if "val" in chosen or "train" in chosen:
        return _listed(cases, chosen)
    if len(cases) == 1 and cases[0].shape[2] > 1:
        return _slab_split(cases[0], {**DEFAULT_SLAB, **chosen}, least_gap)
    if chosen:
        raise ConfigError(
            f"split: a slab needs a data set of one volume; this one has {len(cases)} cases; "
            "list case names under val instead"
        )
    if val_every < 2:
        raise ConfigError(f"data.val_every must be 0 or at least 2; got {val_every}")
    rule = f"every {val_every}th case by name, from the first, is validation"
    return _every(cases, val_every, 0, rule)


def make_fold(cases: Sequence[Case], fold: int, folds: int) -> Splits:
    """Hold out one fold of a cross-validation by case.

    Args:
        cases: the usable cases, sorted by name.
        fold: which one, from 0.
        folds: how many there are.

    Raises:
        ConfigError: there is no such fold, or there are fewer cases (or patients) than folds.
    """
    if not 0 <= fold < folds:
        raise ConfigError(f"data.fold must be 0 to {folds - 1} (data.folds={folds}); got {fold}")
    units = len(_patients(cases))
    if units < folds:
        raise ConfigError(
            f"data.folds={folds} needs at least as many patients, because all cases of a patient "
            f"stay in one split; there are {len(cases)} cases of {units} patients. Use fewer folds"
        )
    rule = f"fold {fold} of {folds}: one case in {folds} by name, from number {fold}, is held out"
    return _every(cases, folds, fold, rule)


def _every(cases: Sequence[Case], step: int, start: int, rule: str) -> Splits:
    patients = _patients(cases)
    if len(patients) < len(cases):
        rule += f"; the cases of a patient together ({len(patients)} patients)"
        if len(patients) == 1:  # anonymisation programs write one ID into all files
            rule += ": if all people share one ID, data.patient='(.+)' makes each case a patient"
    # Every step-th patient is held out with all cases; without patients each case is its own.
    held = {name for names in patients[start::step] for name in names}
    names = [case.name for case in cases]
    val = [name for name in names if name in held]
    return Splits([name for name in names if name not in held], val, rule)


def _patients(cases: Sequence[Case]) -> list[list[str]]:
    """Return the case names of each patient; a case without a patient counts as one."""
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
        raise ConfigError(
            f"split: in both splits: {', '.join(both[:5])}; keep each case in one split"
        )
    unknown = sorted({*val, *train} - set(names))
    if unknown:
        raise ConfigError(
            f"split: {len(unknown)} names are not usable cases: {', '.join(unknown[:5])}"
            + nearest(unknown[0], names)
        )
    for group in _patients(cases):
        if set(group) & set(val) and set(group) & set(train):
            raise ConfigError(
                f"split: of one patient, but in both splits: {', '.join(group[:5])}; keep each "
                "patient in one split"
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
        # Measure the slab from the slices with foreground: outside there is nothing to score.
        filled = np.flatnonzero(case.presence.any(axis=1))
        first, last = int(filled[0]), int(filled[-1]) + 1
    start = first + int((last - first) * low)
    stop = max(start + 1, first + int((last - first) * high))
    spacing = case.spacing_mm[2] if case.spacing_mm else 1.0
    # At least one slice, and at least those that the model sees beside a slice. A gap in mm is
    # rounded up to whole slices.
    gap = max(1, least_gap, math.ceil(gap_mm / spacing))
    rule = f"one volume: slices {start} to {stop - 1} are validation, {gap} beside them unused"
    return Splits([case.name], [case.name], rule, Slab(start, stop, gap, depth))
