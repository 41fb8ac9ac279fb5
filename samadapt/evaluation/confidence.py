"""A calibrated confidence for each predicted object: the chance that it is a true one.

An object's score is the mean probability of its class over its pixels. A mask decoder is usually
too sure or not sure enough of itself, so the score is turned into a probability by Platt's method
(Platt 1999, with the targets and the argument of Lin, Lin and Weng 2007): a logistic curve of the
score's logit, fitted to the validation cases of the training. Niculescu-Mizil and Caruana (2005)
found it better than isotonic regression below about a thousand examples, which is more than the
validation cases of most data sets hold.

"A true one" means: the object has an IoU of at least 0.5 with an object of its class in the ground
truth. Objects are the connected components of a class over the whole case, specks included, or
what was prompted on one slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from samadapt.errors import AdapterError
from samadapt.evaluation.calibration import calibration
from samadapt.evaluation.instances import components
from samadapt.system.arrays import Array

FEWEST = 20
"""Objects below which no curve is fitted: two parameters would follow single objects."""
FEWEST_OF_A_KIND = 3
"""Matched, and unmatched, objects below which no curve is fitted."""
IOU = 0.5
"""IoU with a true object from which on a predicted object counts as found."""
_EDGE = 1e-4
"""Scores are kept this far from 0 and 1, where their logits have no end."""

ObjectScore = tuple[float, bool]
"""The score of a predicted object, and whether it matches a true one."""


@dataclass(frozen=True)
class ConfidenceCurve:
    """How likely an object of a score is a true one: ``sigmoid(slope · logit(score) + intercept)``.

    Attributes:
        slope: of at least 0, so that a higher score is never a lower confidence.
        intercept: the logit of the confidence at a score of 1/2.
        objects: number of objects that it was fitted to.
        matched: how many of them matched a true object.
    """

    slope: float
    intercept: float
    objects: int
    matched: int

    def __call__(self, score: float) -> float:
        """Return the confidence, 0..1, of an object with this score."""
        return float(_sigmoid(self.slope * _logits(np.array(score)) + self.intercept))

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as plain values for ``samadapt.json``."""
        return asdict(self)


def read_curve(values: Mapping[str, Any]) -> ConfidenceCurve | str:
    """Return the curve of a record, or the reason why there is none.

    Args:
        values: the entry ``confidence`` of ``samadapt.json``; empty in older adapters.

    Raises:
        AdapterError: the entry is neither a curve nor a reason.
    """
    if not values:
        return "this adapter was trained without it (by an earlier version, or imported)"
    if isinstance(values.get("reason"), str):
        return str(values["reason"])
    names = ("slope", "intercept", "objects", "matched")
    numbers = [values.get(name) for name in names]
    fine = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    if not fine or set(values) != set(names) or values["slope"] < 0:
        raise AdapterError(
            f"confidence: expected the numbers {', '.join(names)} with a slope of at least 0, or a "
            f"reason; got {dict(values)}"
        )
    return ConfidenceCurve(**values)


def fit_confidence(pairs: Sequence[ObjectScore]) -> ConfidenceCurve | str:
    """Fit the curve to validation objects; return the reason if there are too few.

    Args:
        pairs: score of each predicted object, and whether it matches a true one.
    """
    from scipy.optimize import minimize

    count, matched = len(pairs), sum(hit for _, hit in pairs)
    if count < FEWEST or min(matched, count - matched) < FEWEST_OF_A_KIND:
        return (
            f"the validation cases gave {count} predicted objects, {matched} of them true; a curve "
            f"needs at least {FEWEST}, and {FEWEST_OF_A_KIND} of each kind"
        )
    scores, hits = np.array(pairs, dtype=np.float64).T
    x = _logits(scores)
    # Platt's targets: as if one more true and one more false object had been seen, so that the
    # curve stays finite where a score divides the two perfectly.
    target = np.where(hits > 0, (matched + 1) / (matched + 2), 1 / (count - matched + 2))

    def loss(parameters: Array) -> tuple[float, Array]:
        z = parameters[0] * x + parameters[1]
        # Cross-entropy: log(1 + exp(z)) - target · z, in a form that does not overflow.
        value = float(np.sum(np.logaddexp(0, z) - target * z))
        error = _sigmoid(z) - target
        return value, np.array([np.sum(error * x), np.sum(error)])

    bounds = [(0.0, None), (None, None)]
    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds).x
    return ConfidenceCurve(float(found[0]), float(found[1]), count, int(matched))


def confidence_error(curve: ConfidenceCurve | str, pairs: Sequence[ObjectScore]) -> dict[str, Any]:
    """Return how far the confidence is from the truth on objects that it was not fitted to.

    Returns:
        ``objects``, the mean ``confidence``, the share ``matched`` and ``expected_error``, the
        expected calibration error; see ``calibration.py``. Or the ``reason`` why there is none.
    """
    if isinstance(curve, str):
        return {"reason": curve}
    found = calibration([(curve(score), float(hit)) for score, hit in pairs])
    if not pairs:
        return {"objects": 0, "reason": "no object was found in the scored cases"}
    return {
        "objects": found["objects"],
        "confidence": found["predicted"],
        "matched": found["true"],
        "expected_error": found["expected_error"],
    }


def match_components(predicted: Array, truth: Array, probability: Array) -> list[ObjectScore]:
    """Score the connected components of a predicted mask and compare them with the true ones.

    Args:
        predicted: (h, w, d) bool mask of a class; ignored voxels are outside of it.
        truth: (h, w, d) bool true mask.
        probability: (h, w, d) probability of the class, 0..1.
    """
    return match_numbers(components(predicted), components(truth), probability)


def match_numbers(found: Array, true: Array, probability: Array) -> list[ObjectScore]:
    """Score the objects of a predicted map and compare them with the true ones.

    Args:
        found: number of the predicted object of each voxel, any shape; 0 is none. Numbers without
            a voxel are left out.
        true: number of the true object of each voxel, the same shape.
        probability: probability of the class of each voxel, 0..1, the same shape.
    """
    predicted = found > 0
    if not predicted.any():
        return []
    count = int(found.max())
    # Only voxels of predicted objects are looked at; numbers count from 1 in both maps.
    numbers, partners = (part[predicted].astype(np.int64) for part in (found, true))
    sizes, true_sizes = np.bincount(numbers), np.bincount(true.ravel())
    sums = np.bincount(numbers, weights=probability[predicted].astype(np.float64))
    pairs, shared = np.unique(partners * (count + 1) + numbers, return_counts=True)
    partner, number = np.divmod(pairs, count + 1)
    overlap = shared / (true_sizes[partner] + sizes[number] - shared)
    best = np.zeros(count + 1)
    np.maximum.at(best, number, np.where(partner > 0, overlap, 0))
    present = (n for n in range(1, count + 1) if sizes[n])
    return [(float(sums[n] / sizes[n]), bool(best[n] >= IOU)) for n in present]


def match_object(predicted: Array, truth: Array, probability: Array) -> list[ObjectScore]:
    """Score the mask of one prompted object; nothing if it is empty.

    Args:
        predicted: (h, w) bool mask.
        truth: (h, w) bool true mask.
        probability: (h, w) probability of the object, 0..1.
    """
    if not predicted.any():
        return []
    overlap = (predicted & truth).sum() / (predicted | truth).sum()
    return [(float(probability[predicted].astype(np.float64).mean()), bool(overlap >= IOU))]


def _logits(scores: Array) -> Array:
    inside = np.clip(scores.astype(np.float64), _EDGE, 1 - _EDGE)
    logits: Array = np.log(inside / (1 - inside))
    return logits


def _sigmoid(values: Array) -> Array:
    # exp of a number that is never positive cannot overflow.
    small = np.exp(-np.abs(values))
    sigmoid: Array = np.where(values >= 0, 1, small) / (1 + small)
    return sigmoid
