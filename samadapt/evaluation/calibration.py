"""Measure whether the IoU that a model predicts for its masks can be trusted.

After adaptation the IoU head often predicts what it predicted before, although the masks have
changed. Automatic masks, which are selected by the predicted IoU, then fail without a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 10
FEWEST = 3
"""Objects below which a rank correlation has no meaning."""


def calibration(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Compare predicted and true IoU.

    Args:
        pairs: (predicted, true) IoU of each object's mask; predicted values may leave 0..1.

    Returns:
        - ``objects``: their number.
        - ``predicted`` and ``true``: the means.
        - ``bias``: predicted minus true; above 0 the model is overconfident.
        - ``expected_error``: the expected calibration error (Guo et al. 2017). It is the distance
          between the two means in each of ten equal bins of the predicted IoU, averaged over
          objects.
        - ``rank_correlation``: Spearman's; None for fewer than three objects or constant values.
        - ``bins``: for each bin ``low``, ``high``, ``objects``, ``predicted`` and ``true``.

        Without objects all scores are None beside a ``reason``.
    """
    from scipy.stats import spearmanr

    names = ("predicted", "true", "bias", "expected_error", "rank_correlation")
    if not pairs:
        found: dict[str, Any] = dict.fromkeys(names)
        return {"objects": 0, **found, "bins": [], "reason": "no object was prompted"}
    predicted, true = np.array(pairs, dtype=np.float64).T
    # Predicted values below 0 or above 1 go into the first or last bin.
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
