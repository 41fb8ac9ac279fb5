"""The input of a score (one class in one case) and the registry of all scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from samadapt.evaluation.surface_distances import SurfaceDistances, surface_distances

if TYPE_CHECKING:
    from numpy.typing import NDArray

OVERLAP = ("dice", "iou")
"""The scores that only need voxel counts. A validation during training takes these."""


@dataclass
class ClassMasks:
    """One class of one case: two masks, their voxel counts and the size of a voxel.

    Attributes:
        crop: returns prediction and truth as booleans, cropped to the box that holds both.
        prediction_voxels: |P|, the voxels of the prediction.
        truth_voxels: |T|, the voxels of the truth.
        intersection: |P∩T|, the voxels of both.
        shape: (h, w, d) of the whole case, or (h, w) if it has one slice.
        spacing: size of a voxel along each of these axes, in mm; 1 if it is not known.
        voxel_size: volume of a voxel in mm³, also for one slice; 1 if it is not known.
        is_mm: whether the spacing is known; otherwise lengths are in pixels.
        tolerance: of the normalised surface Dice, in mm, or in pixels without spacing.
    """

    crop: Callable[[], tuple[NDArray[np.bool_], NDArray[np.bool_]]]
    prediction_voxels: int
    truth_voxels: int
    intersection: int
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    voxel_size: float
    is_mm: bool
    tolerance: float

    @cached_property
    def distances(self) -> SurfaceDistances:
        """Distances between the two surfaces, computed once for all scores; no mask is empty."""
        return surface_distances(*self.crop(), self.spacing)

    @property
    def diagonal(self) -> float:
        """Diagonal of the case's image, from corner to corner."""
        return math.hypot(*(n * step for n, step in zip(self.shape, self.spacing, strict=True)))


@dataclass(frozen=True)
class Score:
    """One number for one class of one case.

    Attributes:
        name: key in ``summary.json`` and column in ``per_case.csv``.
        heading: heading of its column in a table.
        measure: computes it from masks, at least one of which is not empty; NaN if undefined.
        best: the direction in which it is better; ``"zero"``: nearer to 0 is better.
        kind: ``"ratio"``, ``"length"`` (mm, or px without spacing) or ``"volume"`` (ml, or px).
        in_table: what the table that a run prints shows: nothing, the mean, or the mean with its
            interval. The files always hold both.
    """

    name: str
    heading: str
    measure: Callable[[ClassMasks], float]
    best: Literal["high", "low", "zero"] = "high"
    kind: Literal["ratio", "length", "volume"] = "ratio"
    in_table: Literal["", "mean", "interval"] = ""

    def unit(self, is_mm: bool) -> str:
        """Return the unit of the values; an empty string for a ratio."""
        units = {"length": ("mm", "px"), "volume": ("ml", "px")}
        return units[self.kind][0 if is_mm else 1] if self.kind in units else ""

    def gain(self, before: Any, after: Any) -> Any:
        """Return by how much values improved; positive is better, whatever the direction is."""
        if self.best == "zero":
            return np.abs(before) - np.abs(after)
        return after - before if self.best == "high" else before - after


SCORES: dict[str, Score] = {}
"""Scores by name: Dice and IoU first, then in the order of the file names."""


def register(*scores: Score) -> None:
    """Add scores to ``SCORES``.

    Raises:
        ValueError: a name occurs twice.
    """
    for score in scores:
        if score.name in SCORES:
            raise ValueError(f"two scores are named {score.name!r}")
        SCORES[score.name] = score
    # A dict keeps the order of insertion, so each score is taken out and put back in order.
    first = [name for name in OVERLAP if name in SCORES]
    for name in [*first, *(name for name in list(SCORES) if name not in OVERLAP)]:
        SCORES[name] = SCORES.pop(name)
