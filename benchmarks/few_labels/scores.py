"""Means, intervals and paired differences over the rows of one place in the tables.

The scores of a case are averaged over the draws first. Intervals are 95 % percentile bootstraps of
patients (rats, fields, groups of look-alikes), not of cases: the pictures of one patient are not
independent. Arms are compared on the same patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 9999
FEWEST = 6
"""Fewest patients for Wilcoxon's test, as in ``samadapt.evaluation.statistics``."""

Row = Mapping[str, Any]
Cluster = Callable[[str], str]


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        value: the mean over classes of the means over cases.
        interval: its bounds; None for a single patient.
        p: of Wilcoxon's signed-rank test over patients, of a difference; None if there are too few.
    """

    value: float
    interval: tuple[float, float] | None = None
    p: float | None = None

    def text(self, form: str = ".3f") -> str:
        """Return the mean and its interval."""
        bounds = self.interval
        return f"{self.value:{form}}" + (
            f" [{bounds[0]:{form}}, {bounds[1]:{form}}]" if bounds else ""
        )


def table_of(rows: Sequence[Row], score: str) -> dict[tuple[str, str], float]:
    """Return one score by case and class, averaged over the draws that define it."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        column = row["columns"].index(score)
        for line in row["per_case"]:
            if line[column] is not None:
                found.setdefault((line[0], line[1]), []).append(line[column])
    return {place: sum(values) / len(values) for place, values in found.items()}


def mean_of(rows: Sequence[Row], score: str, cluster: Cluster) -> Estimate:
    """Return the mean of a score over the draws ``rows``."""
    return _estimate(table_of(rows, score), cluster)


def difference_of(
    rows: Sequence[Row], others: Sequence[Row], score: str, cluster: Cluster
) -> Estimate:
    """Return the mean of ``rows`` minus that of ``others``, over what both score."""
    one, other = table_of(rows, score), table_of(others, score)
    return _estimate({place: one[place] - other[place] for place in one if place in other}, cluster)


def _estimate(values: Mapping[tuple[str, str], float], cluster: Cluster) -> Estimate:
    if not values:
        return Estimate(math.nan)
    groups = sorted({cluster(case) for case, _ in values})
    classes = sorted({name for _, name in values})
    # Sums and counts by patient and class: a drawn patient brings all of its cases.
    sums, counts = np.zeros((2, len(groups), len(classes)))
    for (case, name), value in values.items():
        place = groups.index(cluster(case)), classes.index(name)
        sums[place] += value
        counts[place] += 1
    mean = float(_mean(sums.sum(axis=0), counts.sum(axis=0)))
    if len(groups) < 2:
        return Estimate(mean)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), RESAMPLES)
    means = _mean(drawn @ sums, drawn @ counts)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(mean, (float(low), float(high)), _signed_rank(_mean(sums, counts)))


def _mean(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means over classes of sums / counts; a class without a case is left out."""
    with np.errstate(invalid="ignore"):
        means: NDArray[np.float64] = np.nanmean(sums / counts, axis=-1)
    return means


def _signed_rank(differences: NDArray[np.float64]) -> float | None:
    from scipy.stats import wilcoxon

    changed = differences[differences != 0]
    return float(wilcoxon(changed).pvalue) if len(changed) >= FEWEST else None


def spread_of(rows: Sequence[Row], score: str = "dice") -> float | None:
    """Return how far the draws lie apart, largest minus smallest; None for a single one."""
    values = [row[score] for row in rows if row[score] is not None]
    return max(values) - min(values) if len(values) > 1 else None
