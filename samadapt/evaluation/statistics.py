"""How sure a mean over cases is, and whether training changed it.

The unit is the case: slices and classes of one patient are not independent. Intervals are 95 %
percentile bootstraps (Efron and Tibshirani 1993, chapter 13): of 9,999 draws of as many cases with
replacement, the same in every run. They are ``scipy.stats.bootstrap``'s (tested), which would draw
anew for each of a hundred scores. Two samples are compared case by case with Wilcoxon's
signed-rank test (two-sided; cases that did not change are left out, as Wilcoxon did). Where there
are too few cases there is no number but the reason.
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
"""Cases turned into 64-bit numbers at once."""
FEWEST_FOR_INTERVAL = 2
FEWEST_FOR_TEST = 6
"""Of five pairs the smallest two-sided p is 1/16: no result could be significant at 5 %."""


def class_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average (n, K, ...) over the cases that have a value, to (K, ...); NaN where none has."""
    counts = np.isfinite(values).sum(axis=0)
    with np.errstate(invalid="ignore"):
        means: NDArray[np.float64] = np.nansum(values, axis=0) / counts
    return means


def interval_of(values: NDArray[np.float64]) -> dict[str, Any]:
    """Return the interval of the mean over classes of the means over cases.

    Args:
        values: (n, K) scores of n cases and K classes, NaN where there is none.

    Returns:
        ``{"interval": [low, high]}``, or None in its place beside the ``"reason"``.
    """
    values = values[np.isfinite(values).any(axis=1)]
    if len(values) < FEWEST_FOR_INTERVAL:
        reason = f"{_cases(len(values))}; an interval needs at least {FEWEST_FOR_INTERVAL}"
        return {"interval": None, "reason": reason}
    has = np.isfinite(values)
    present, filled = has.astype(np.float64), np.where(has, values, 0.0)
    means = []
    for part in np.array_split(
        _times_drawn(len(values)), 1 + RESAMPLES * len(values) // DRAWN_AT_ONCE
    ):
        times = part.astype(np.float64)
        counts = times @ present
        with np.errstate(invalid="ignore"):
            per_class = (times @ filled) / counts
        # A class that none of the drawn cases has is left out, as from the mean itself.
        means.append(np.nansum(per_class, axis=1) / (counts > 0).sum(axis=1))
    outside = (1 - CONFIDENCE) / 2
    bounds = np.quantile(np.concatenate(means), [outside, 1 - outside])
    return {"interval": bounds.tolist()}


def compare(
    before: NDArray[np.float64], after: NDArray[np.float64], gains: NDArray[np.float64]
) -> dict[str, Any]:
    """Compare two states of the same cases.

    Args:
        before: (n, K) scores of n cases and K classes, NaN where there is none.
        after: the same cases and classes in the other state.
        gains: (n, K) by how much each got better.

    Returns:
        ``difference`` of the means (after - before) over the cases that both states score, its
        ``interval``, ``p`` of the signed-rank test of each case's mean difference over classes,
        the ``cases`` compared, how many got ``better``, ``worse`` and stayed the ``same``, and how
        many were ``left_out`` since only one state scores them. A number that there are too few
        cases for is None beside the ``reason``.
    """
    differences = after - before
    both = np.isfinite(differences)
    some = both.any(axis=1)
    means = class_means(differences)
    mean = np.nanmean(means) if np.isfinite(means).any() else math.nan
    found: dict[str, Any] = {"difference": float(mean) if some.any() else None}
    found |= interval_of(differences)
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
    """Return ``p``, or None in its place beside the ``reason``."""
    from scipy.stats import wilcoxon

    changed = differences[differences != 0]
    if len(changed) < FEWEST_FOR_TEST:
        reason = f"{_cases(len(changed))} changed; Wilcoxon's test needs at least {FEWEST_FOR_TEST}"
        return {"p": None, "reason": reason}
    return {"p": float(wilcoxon(changed).pvalue)}


def _over_classes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average (n, K) over the classes that a case has."""
    return class_means(values.T)


@lru_cache(maxsize=2)
def _times_drawn(count: int) -> NDArray[np.uint8]:
    """Return how often each of ``count`` cases is in each draw, (RESAMPLES, count)."""
    rng = np.random.default_rng(SEED)
    times = np.empty((RESAMPLES, count), np.uint8)
    for part in np.array_split(times, 1 + times.size // DRAWN_AT_ONCE):
        drawn = rng.integers(0, count, part.shape) + count * np.arange(len(part))[:, None]
        part[:] = np.bincount(drawn.ravel(), minlength=part.size).reshape(part.shape)
    return times


def _cases(count: int) -> str:
    return f"{count} case" if count == 1 else f"{count} cases"
