"""Scores of objects: COCO's average precision and panoptic quality.

A true object is an instance that the data set numbers, or else a connected component of a class
(neighbours also across corners) over the whole case. In a volume this is a 3D component, such as a
lesion. A predicted object is the mask of one prompt, or else a component of the predicted labels.
Objects of one map do not overlap.

Average precision (AP) follows pycocotools, which a test compares. Detections take, in the order of
falling scores, the free object with the highest IoU. Precision is read at 101 recalls. The mean is
taken over the IoU thresholds 0.50 to 0.95 and over the classes that occur. The number of detections
in an image and the size of objects are not limited. The score of an object is the IoU that the mask
decoder predicts, averaged over the object's voxels. Without prompts there is no predicted IoU. Then
objects that the model separates (``sam/watershed.py``) have the mean probability of their class;
components score 1, and AP describes one operating point.

Panoptic quality (Kirillov et al. 2019, "Panoptic Segmentation", section 4.1) matches objects with
an IoU above 0.5. SQ is the mean IoU of the matches, RQ = TP / (TP + FP/2 + FN/2) and PQ = SQ · RQ,
over the objects of all cases together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# Above this IoU, an object can match only one other (Kirillov et al. 2019, section 4.1).
MATCHED = 0.5


@dataclass(frozen=True)
class ObjectMatches:
    """The objects of one class in one case, after matching.

    Attributes:
        case: name of the case.
        class_name: name of the class.
        scores: (p,) scores of the predicted objects, in falling order.
        hits: (p, 10) whether each matches a true object at each of ``THRESHOLDS``.
        true_objects: number of true objects.
        overlaps: IoU of each pair with an IoU above 0.5.
    """

    case: str
    class_name: str
    scores: tuple[float, ...]
    hits: tuple[tuple[bool, ...], ...]
    true_objects: int
    overlaps: tuple[float, ...]


def components(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the connected components of a mask from 1, also across corners; 0 is background."""
    from scipy.ndimage import generate_binary_structure, label

    numbered: NDArray[np.int32] = label(mask, generate_binary_structure(mask.ndim, mask.ndim))[0]
    return numbered


def match_objects(
    case: str,
    class_name: str,
    predicted: NDArray[np.integer[Any]],
    truth: NDArray[np.integer[Any]],
    scores: NDArray[np.floating[Any]] | None = None,
) -> ObjectMatches:
    """Match the objects of one class in one case.

    Args:
        case: name of the case.
        class_name: name of the class.
        predicted: number of the predicted object of each voxel, 0 for none; any shape.
        truth: number of the true object of each voxel, the same shape.
        scores: score of each voxel, the same shape. An object has the mean of its voxels. None:
            all objects score 1.
    """
    # One pass over the voxels: number the objects of both maps compactly and count every pair.
    p_numbers, p_index = np.unique(predicted, return_inverse=True)
    t_numbers, t_index = np.unique(truth, return_inverse=True)
    p_index, t_index = p_index.ravel(), t_index.ravel()
    p_size, t_size = np.bincount(p_index), np.bincount(t_index)
    confidence = np.ones(len(p_numbers))
    if scores is not None:
        confidence = np.bincount(p_index, weights=scores.ravel()) / p_size
    pairs, shared = np.unique(t_index * len(p_numbers) + p_index, return_counts=True)
    t_pair, p_pair = np.divmod(pairs, len(p_numbers))
    # IoU = |P∩T| / (|P| + |T| - |P∩T|), for pairs that share a voxel.
    overlap = shared / (t_size[t_pair] + p_size[p_pair] - shared)
    # Number 0 is background. No threshold is below THRESHOLDS[0], so other pairs cannot match.
    near = (t_numbers[t_pair] != 0) & (p_numbers[p_pair] != 0) & (overlap >= THRESHOLDS[0])
    partners: dict[int, list[tuple[int, float]]] = {}
    for p, t, value in zip(p_pair[near], t_pair[near], overlap[near], strict=True):
        partners.setdefault(int(p), []).append((int(t), float(value)))
    found = np.flatnonzero(p_numbers != 0)
    # A stable sort keeps the order of equally confident objects, as pycocotools does.
    order = found[np.argsort(-confidence[found], kind="stable")]
    return match_ordered(
        case,
        class_name,
        confidence[order].tolist(),
        [partners.get(int(p), []) for p in order],
        int((t_numbers != 0).sum()),
        tuple(overlap[near][overlap[near] > MATCHED].tolist()),
    )


def match_ordered(
    case: str,
    class_name: str,
    scores: Sequence[float],
    partners: Sequence[Sequence[tuple[int, float]]],
    true_objects: int,
    overlaps: tuple[float, ...],
) -> ObjectMatches:
    """Match detections in the order of falling scores.

    Args:
        case: name of the case.
        class_name: name of the class.
        scores: scores of the detections, in falling order.
        partners: for each detection (number of a true object, IoU), where the IoU is at least 0.5.
        true_objects: number of true objects.
        overlaps: see ``ObjectMatches``.
    """
    hits = np.array([_hits(partners, threshold) for threshold in THRESHOLDS])
    return ObjectMatches(
        case,
        class_name,
        tuple(scores),
        tuple(map(tuple, hits.T.tolist())),
        true_objects,
        overlaps,
    )


def summarise_objects(rows: Sequence[ObjectMatches], classes: Sequence[str]) -> dict[str, Any]:
    """Pool the objects of all cases.

    Args:
        rows: matches of any number of cases and classes.
        classes: all class names.

    Returns:
        ``{"map", "ap50", "ap75", "pq", "sq", "rq", "per_class": {name: {… "true_objects",
        "predicted_objects", "matched"}}}``. AP is None without a true object, PQ without any
        object, and SQ without a match. Classes with None are left out of the mean over classes.
    """
    per_class = {name: _of_class([r for r in rows if r.class_name == name]) for name in classes}
    summary: dict[str, Any] = {}
    for key in ("map", "ap50", "ap75", "pq", "sq", "rq"):
        values = [entry[key] for entry in per_class.values() if entry[key] is not None]
        summary[key] = math.fsum(values) / len(values) if values else None
    return {**summary, "per_class": per_class}


def _hits(detections: Sequence[Sequence[tuple[int, float]]], threshold: float) -> list[bool]:
    """Return whether each detection, by falling score, gets a free true object of that IoU."""
    taken: set[int] = set()
    hits = []
    for partners in detections:
        # pycocotools lowers a threshold of 1 a little, so that perfect masks match.
        best, found = min(threshold, 1 - 1e-10), None
        for number, overlap in partners:  # the last of equal ones, as in pycocotools
            if number not in taken and overlap >= best:
                best, found = overlap, number
        if found is not None:
            taken.add(found)
        hits.append(found is not None)
    return hits


def _of_class(rows: Sequence[ObjectMatches]) -> dict[str, Any]:
    true = sum(row.true_objects for row in rows)
    predicted = sum(len(row.scores) for row in rows)
    overlaps = [value for row in rows for value in row.overlaps]
    precisions = _average_precisions(rows, true)
    matched = len(overlaps)
    sq = math.fsum(overlaps) / matched if matched else None
    # TP / (TP + FP/2 + FN/2) with TP + FN true and TP + FP predicted objects
    rq = 2 * matched / (true + predicted) if true + predicted else None
    return {
        "map": math.fsum(precisions) / len(precisions) if true else None,
        "ap50": precisions[0] if true else None,
        "ap75": precisions[5] if true else None,  # THRESHOLDS[5] is 0.75
        "pq": None if rq is None else rq * (sq or 0.0),
        "sq": sq,
        "rq": rq,
        "true_objects": true,
        "predicted_objects": predicted,
        "matched": matched,
    }


def _average_precisions(rows: Sequence[ObjectMatches], true: int) -> list[float]:
    """Return AP at each of ``THRESHOLDS``; 0 without a true object."""
    if not true:
        return [0.0] * len(THRESHOLDS)
    scores = np.array([score for row in rows for score in row.scores])
    hits = np.array([hit for row in rows for hit in row.hits], bool).reshape(-1, len(THRESHOLDS))
    hits = hits[np.argsort(-scores, kind="stable")]
    # (detections, thresholds): true positives among the n most confident detections.
    found = np.cumsum(hits, axis=0)
    precision = found / np.arange(1, len(hits) + 1)[:, None]
    # The precision at a recall is the best precision at this or any higher recall.
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    averages = []
    for n in range(len(THRESHOLDS)):
        at = np.searchsorted(found[:, n] / true, RECALLS, side="left")
        padded = np.append(precision[:, n], 0.0)  # recalls that are never reached have precision 0
        averages.append(float(padded[at].mean()))
    return averages
