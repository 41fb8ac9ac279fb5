"""What a score sees of one class in one case, and the table of all scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from samadapt.evaluation.surfaces import SurfaceDistances, surface_distances

if TYPE_CHECKING:
    from numpy.typing import NDArray

OVERLAP = ("dice", "iou")
"""The scores that need voxel counts alone, as a validation during training takes them."""


@dataclass
class ClassMasks:
    """One class of one case: two masks, their voxel counts and the size of a voxel.

    Attributes:
        crop: returns prediction and truth as booleans within the box that holds both.
        prediction_voxels: |P|.
        truth_voxels: |T|.
        intersection: |P∩T|.
        shape: (h, w, d) of the whole case, or (h, w) where it is one slice.
        spacing: size of a voxel along each of these axes, in mm; 1 where it is not known.
        voxel_size: volume of a voxel in mm³, also of one slice; 1 where it is not known.
        is_mm: whether the spacing is known; else lengths are in pixels.
        tolerance: of the normalised surface Dice, in mm (in pixels without spacing).
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
        """Diagonal of the case's image, corner to corner."""
        return math.hypot(*(n * step for n, step in zip(self.shape, self.spacing, strict=True)))


@dataclass(frozen=True)
class Score:
    """One number for one class of one case.

    Attributes:
        name: its key in ``summary.json`` and its column in ``per_case.csv``.
        heading: what a table calls it.
        measure: from the masks, of which at least one is not empty; NaN where it is undefined.
        best: the direction in which it is better; ``"zero"``: the nearer to 0.
        kind: ``"ratio"``, ``"length"`` (mm, or px without spacing) or ``"volume"`` (ml, or px).
        in_table: whether the table that a run prints shows its mean, or its mean with the
            interval; the files hold all of both.
    """

    name: str
    heading: str
    measure: Callable[[ClassMasks], float]
    best: Literal["high", "low", "zero"] = "high"
    kind: Literal["ratio", "length", "volume"] = "ratio"
    in_table: Literal["", "mean", "interval"] = ""

    def unit(self, is_mm: bool) -> str:
        """Return the unit of its values, an empty string for a ratio."""
        units = {"length": ("mm", "px"), "volume": ("ml", "px")}
        return units[self.kind][0 if is_mm else 1] if self.kind in units else ""

    def gain(self, before: Any, after: Any) -> Any:
        """Return by how much values got better: positive is better, whatever the direction."""
        if self.best == "zero":
            return np.abs(before) - np.abs(after)
        return after - before if self.best == "high" else before - after


SCORES: dict[str, Score] = {}
"""By name, in the order of the files' names, Dice and IoU first."""


def register(*scores: Score) -> None:
    """Add scores to ``SCORES``.

    Raises:
        ValueError: for a name given twice.
    """
    for score in scores:
        if score.name in SCORES:
            raise ValueError(f"two scores are named {score.name!r}")
        SCORES[score.name] = score
    first = [name for name in OVERLAP if name in SCORES]
    for name in [*first, *(name for name in list(SCORES) if name not in OVERLAP)]:
        SCORES[name] = SCORES.pop(name)
