"""Confidence intervals of means over cases, and a test of whether training changed them.

The unit is the case, because slices and classes of one patient are not independent. Intervals are
95 % percentile bootstraps (Efron and Tibshirani 1993, chapter 13) of 9,999 draws of all cases with
replacement, which are the same in every run. They equal those of ``scipy.stats.bootstrap``, which a
test shows; scipy would draw anew for each of a hundred scores. Two states of the model are compared
case by case with Wilcoxon's signed-rank test. The test is two-sided, and cases without a change are
left out, as Wilcoxon did. If there are too few cases, a reason replaces the number.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 0
DRAWN_AT_ONCE = 2**22
"""Drawn cases that are converted to 64-bit numbers at once; it bounds the memory."""
FEWEST_FOR_INTERVAL = 2
FEWEST_FOR_TEST = 6
"""The smallest two-sided p of five pairs is 1/16, so no result could be significant at 5 %."""


def class_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average (n, K, ...) over the cases that have a value, to (K, ...); NaN if none has."""
    counts = np.isfinite(values).sum(axis=0)
    with np.errstate(invalid="ignore"):
        means: NDArray[np.float64] = np.nansum(values, axis=0) / counts
    return means


def interval_of(values: NDArray[np.float64]) -> dict[str, Any]:
    """Return the interval of the mean over classes of the means over cases.

    Args:
        values: (n, K) scores of n cases and K classes; NaN if there is none.

    Returns:
        ``{"interval": [low, high]}``; or the interval None and a ``"reason"``.
    """
    values = values[np.isfinite(values).any(axis=1)]
    if len(values) < FEWEST_FOR_INTERVAL:
        return _too_few(len(values))
    has = np.isfinite(values)
    present, filled = has.astype(np.float64), np.where(has, values, 0.0)
    # times: (draws, n) how often each case was drawn. times @ values sums the drawn values.
    means = []
    for part in np.array_split(
        _times_drawn(len(values)), 1 + RESAMPLES * len(values) // DRAWN_AT_ONCE
    ):
        times = part.astype(np.float64)
        counts = times @ present
        with np.errstate(invalid="ignore"):
            per_class = (times @ filled) / counts
        # A class that no drawn case has is left out, as it is left out of the mean itself.
        means.append(np.nansum(per_class, axis=1) / (counts > 0).sum(axis=1))
    outside = (1 - CONFIDENCE) / 2
    bounds = np.quantile(np.concatenate(means), [outside, 1 - outside])
    return {"interval": bounds.tolist()}


def interval_of_ratio(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> dict[str, Any]:
    """Return the interval of the mean of values that belong to cases, such as objects.

    Whole cases are drawn, because the objects of a case are not independent.

    Args:
        sums: (n,) the sum of each case's values.
        counts: (n,) the number of each case's values, above 0.

    Returns:
        ``{"interval": [low, high]}``; or the interval None and a ``"reason"``.
    """
    if len(sums) < FEWEST_FOR_INTERVAL:
        return _too_few(len(sums))
    times = _times_drawn(len(sums)).astype(np.float64)
    outside = (1 - CONFIDENCE) / 2
    bounds = np.quantile((times @ sums) / (times @ counts), [outside, 1 - outside])
    return {"interval": bounds.tolist()}


def _too_few(cases: int) -> dict[str, Any]:
    reason = f"{_cases(cases)}; an interval needs at least {FEWEST_FOR_INTERVAL}"
    return {"interval": None, "reason": reason}


def compare(
    before: NDArray[np.float64], after: NDArray[np.float64], gains: NDArray[np.float64]
) -> dict[str, Any]:
    """Compare two states of the same cases.

    Args:
        before: (n, K) scores of n cases and K classes; NaN if there is none.
        after: the scores of the same cases and classes in the other state.
        gains: (n, K) by how much each score improved.

    Returns:
        - ``difference``: of the means, after minus before, over the cases that both states score.
        - ``interval``: of the difference.
        - ``p``: of the signed-rank test of each case's mean difference over classes.
        - ``cases``: number of compared cases; ``better``, ``worse`` and ``same``: how many of them
          improved, worsened and stayed.
        - ``left_out``: number of cases that only one state scores.

        If there are too few cases for a number, it is None beside a ``reason``.
    """
    differences = after - before
    both = np.isfinite(differences)
    some = both.any(axis=1)
    means = class_means(differences)
    mean = np.nanmean(means) if np.isfinite(means).any() else math.nan
    found: dict[str, Any] = {"difference": float(mean) if some.any() else None}
    found |= interval_of(differences)
    # The test needs one number for each case: the mean over its classes.
    case_means, case_gains = _over_classes(differences[some]), _over_classes(gains[some])
    tested = _signed_rank(case_means)
    reasons = [part.pop("reason") for part in (found, tested) if "reason" in part]
    found |= tested
    found |= {
        "cases": int(some.sum()),
        "better": int((case_gains > 0).sum()),
        "worse": int((case_gains < 0).sum()),
        "same": int((case_gains == 0).sum()),
        "left_out": int(((np.isfinite(before) ^ np.isfinite(after)).any(axis=1) & ~some).sum()),
    }
    return found | ({"reason": "; ".join(reasons)} if reasons else {})


def _signed_rank(differences: NDArray[np.float64]) -> dict[str, Any]:
    """Return ``p``; or ``p`` None and a ``reason``."""
    from scipy.stats import wilcoxon

    changed = differences[differences != 0]
    if len(changed) < FEWEST_FOR_TEST:
        reason = f"{_cases(len(changed))} changed; Wilcoxon's test needs at least {FEWEST_FOR_TEST}"
        return {"p": None, "reason": reason}
    return {"p": float(wilcoxon(changed).pvalue)}


def _over_classes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average (n, K) over the classes that each case has."""
    return class_means(values.T)


@lru_cache(maxsize=2)
def _times_drawn(count: int) -> NDArray[np.uint8]:
    """Return how often each of ``count`` cases occurs in each draw: (RESAMPLES, count)."""
    rng = np.random.default_rng(SEED)
    # A case is drawn about once in a draw (almost Poisson with mean 1), so 8 bits are enough.
    times = np.empty((RESAMPLES, count), np.uint8)
    # Blocks of draws bound the memory; the offsets count * row let one bincount serve all rows.
    for part in np.array_split(times, 1 + times.size // DRAWN_AT_ONCE):
        drawn = rng.integers(0, count, part.shape) + count * np.arange(len(part))[:, None]
        part[:] = np.bincount(drawn.ravel(), minlength=part.size).reshape(part.shape)
    return times


def _cases(count: int) -> str:
    return f"{count} case" if count == 1 else f"{count} cases"
