"""Scores of objects that are prompted on one slice and carried through their volume.

What is found may be good on the prompted slice, lose the object on the way, and leak past its end.
So an object has a Dice on its prompted slice, on the two slices on each side of it, and on its
other slices; and on the slices that it does not reach, it is counted what is found there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samadapt.system.arrays import Array

NEAR = 2
"""Slices on each side of the prompted one that are near it."""

ZONES = ("prompted", "near", "far")
"""The slices of an object by their distance from the prompted one."""


@dataclass(frozen=True)
class CarriedScore:
    """The scores of one object that was carried in one way.

    Attributes:
        way: what carried it.
        case: name of the case.
        class_name: name of its class.
        number: its number in the case, from 1.
        slice_index: the prompted slice.
        dice: Dice in each of ``ZONES``, over all of the zone's voxels; NaN without such slices.
        outside: scored slices that the object does not reach.
        leaked: those of them on which something is found.
        leaked_pixels: pixels found there.
    """

    way: str
    case: str
    class_name: str
    number: int
    slice_index: int
    dice: tuple[float, ...]
    outside: int
    leaked: int
    leaked_pixels: int


def zone_scores(counts: Array, distances: Array) -> dict[str, Any]:
    """Return the entries ``dice``, ``outside``, ``leaked`` and ``leaked_pixels`` of an object.

    Args:
        counts: (n, 3) pixels of the truth, of the prediction and of both, on each of n slices.
        distances: (n,) slices between each and the prompted one, 0 for that itself.
    """
    truth, found = counts[:, 0], counts[:, 1]
    has_object = truth > 0
    zones = (distances == 0, (distances > 0) & (distances <= NEAR), distances > NEAR)
    dice = []
    for zone in zones:
        true, predicted, both = counts[has_object & zone].sum(axis=0).tolist()
        dice.append(2 * both / (true + predicted) if true else math.nan)
    return {
        "dice": tuple(dice),
        "outside": int((~has_object).sum()),
        "leaked": int((found[~has_object] > 0).sum()),
        "leaked_pixels": int(found[~has_object].sum()),
    }


def summarise_carried(objects: Sequence[CarriedScore], names: Sequence[str]) -> dict[str, Any]:
    """Average the scores over objects, for each way of carrying them.

    Args:
        objects: of all cases and ways.
        names: names of the classes 1..K.

    Returns:
        For each way:

        - ``objects`` and ``cases``: their numbers.
        - ``dice``: for each of ``ZONES`` the mean over the objects that have such slices, or None.
        - ``outside``: slices outside of the objects; ``leaked``: the share of them on which
          something is found, or None; ``leaked_pixels``: the mean number of pixels found there.
        - ``per_class``: the same entries for each class.
    """
    ways = dict.fromkeys(one.way for one in objects)
    return {way: _of_way([one for one in objects if one.way == way], names) for way in ways}


def _of_way(objects: Sequence[CarriedScore], names: Sequence[str]) -> dict[str, Any]:
    by_class = {name: [one for one in objects if one.class_name == name] for name in names}
    return {
        **_means(objects),
        "per_class": {name: _means(found) for name, found in by_class.items()},
    }


def _means(objects: Sequence[CarriedScore]) -> dict[str, Any]:
    dice = np.array([one.dice for one in objects]).reshape(len(objects), len(ZONES))
    known = [column[~np.isnan(column)] for column in dice.T]
    outside, leaked = (sum(getattr(one, name) for one in objects) for name in ("outside", "leaked"))
    pixels = sum(one.leaked_pixels for one in objects)
    return {
        "objects": len(objects),
        "cases": len({one.case for one in objects}),
        "dice": {
            zone: float(values.mean()) if len(values) else None
            for zone, values in zip(ZONES, known, strict=True)
        },
        "outside": outside,
        "leaked": leaked / outside if outside else None,
        "leaked_pixels": pixels / outside if outside else None,
    }
