"""Scores of masks that may overlap: mAP, mean segmentation accuracy and panoptic quality.

Masks without prompts belong to no class, so every true object of the image counts. A true object is
an instance that the data set numbers, or else a connected component of a class.

Mean segmentation accuracy is the score of the Data Science Bowl 2018 and of micro-sam: TP / (TP +
FP + FN), averaged over the IoU thresholds 0.50 to 0.95 and then over the images. AP and PQ are
those of ``instances.py``. Detections are matched in the order of falling scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samadapt.evaluation.instances import (
    MATCHED,
    THRESHOLDS,
    ObjectMatches,
    match_ordered,
    summarise_objects,
)
from samadapt.system.arrays import Array

OBJECT = "object"


@dataclass(frozen=True)
class ScoredMask:
    """One mask and how it lies on the true objects of its image.

    Attributes:
        score: confidence of the mask.
        overlaps: (object number, IoU) of each true object with an IoU of at least 0.5.
        best: IoU with the best true object.
    """

    score: float
    overlaps: tuple[tuple[int, float], ...]
    best: float


def score_mask(mask: Array, truth: Array, areas: Array, score: float) -> ScoredMask:
    """Compare a mask with the true objects of its image.

    Args:
        mask: (h, w) bool.
        truth: (h, w) object numbers from 1, 0 for none.
        areas: pixels of each number, ``np.bincount(truth.ravel())``.
        score: confidence of the mask.
    """
    shared = np.bincount(truth[mask], minlength=len(areas))
    overlap = shared / np.maximum(areas + mask.sum() - shared, 1)
    overlap[0] = 0
    near = np.flatnonzero(overlap >= THRESHOLDS[0])
    pairs = tuple((int(number), float(overlap[number])) for number in near)
    return ScoredMask(score, pairs, float(overlap.max(initial=0)))


def match_masks(case: str, masks: Sequence[ScoredMask], true_objects: int) -> ObjectMatches:
    """Match the masks of one image, in the order of falling scores, with its true objects."""
    ordered = sorted(masks, key=lambda one: -one.score)
    taken: dict[int, float] = {}  # for PQ each object has the first mask that matches it
    for one in ordered:
        for number, value in one.overlaps:
            if value > MATCHED and number not in taken:
                taken[number] = value
                break
    return match_ordered(
        case,
        OBJECT,
        [one.score for one in ordered],
        [list(one.overlaps) for one in ordered],
        true_objects,
        tuple(taken.values()),
    )


def segmentation_accuracy(match: ObjectMatches) -> float:
    """Return the mean over the IoU thresholds of TP / (TP + FP + FN) of one image.

    It is NaN for an image without any true object or mask.
    """
    found, true = len(match.scores), match.true_objects
    if not found and not true:
        return math.nan
    hits = np.array(match.hits, dtype=int).reshape(-1, len(THRESHOLDS)).sum(axis=0)
    return float(np.mean(hits / (found + true - hits)))


def summarise_masks(matches: Sequence[ObjectMatches]) -> dict[str, float | None]:
    """Return ``map``, ``msa``, ``pq``, ``sq`` and ``rq`` of several images; None: undefined."""
    pooled = summarise_objects(matches, [OBJECT])
    values = [value for one in matches if not math.isnan(value := segmentation_accuracy(one))]
    msa = math.fsum(values) / len(values) if values else None
    return {"msa": msa} | {key: pooled[key] for key in ("map", "pq", "sq", "rq")}
