"""Whether a model's own estimate of a mask's IoU can be trusted.

After adaptation the IoU head often says what it said before, while the masks changed; automatic
masks, which are chosen by it, then fail without a sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 10
FEWEST = 3
"""Objects without which a rank correlation says nothing."""


def calibration(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Compare predicted with true IoU.

    Args:
        pairs: (predicted, true) IoU of each object's mask; predicted values may leave 0..1.

    Returns:
        ``objects``; ``predicted`` and ``true``, the means; ``bias``, their difference (above 0:
        too sure of itself); ``expected_error``, the mean over ten equal bins of the predicted IoU
        of the distance between the two means in the bin, weighted by objects (expected calibration
        error, Guo et al. 2017); ``rank_correlation`` (Spearman; None for fewer than three objects
        or constant values); ``bins`` with ``low``, ``high``, ``objects``, ``predicted``, ``true``.
        Without objects all scores are None beside a ``reason``.
    """
    from scipy.stats import spearmanr

    names = ("predicted", "true", "bias", "expected_error", "rank_correlation")
    if not pairs:
        found: dict[str, Any] = dict.fromkeys(names)
        return {"objects": 0, **found, "bins": [], "reason": "no object was prompted"}
    predicted, true = np.array(pairs, dtype=np.float64).T
    place = np.clip((predicted * BINS).astype(int), 0, BINS - 1)
    bins = []
    for index in range(BINS):
        here = place == index
        if here.any():
            bins.append(
                {
                    "low": index / BINS,
                    "high": (index + 1) / BINS,
                    "objects": int(here.sum()),
                    "predicted": float(predicted[here].mean()),
                    "true": float(true[here].mean()),
                }
            )
    error = sum(one["objects"] * abs(one["predicted"] - one["true"]) for one in bins) / len(pairs)
    varied = len(pairs) >= FEWEST and np.ptp(predicted) > 0 and np.ptp(true) > 0
    return {
        "objects": len(pairs),
        "predicted": float(predicted.mean()),
        "true": float(true.mean()),
        "bias": float(predicted.mean() - true.mean()),
        "expected_error": float(error),
        "rank_correlation": float(spearmanr(predicted, true).statistic) if varied else None,
        "bins": bins,
    }
