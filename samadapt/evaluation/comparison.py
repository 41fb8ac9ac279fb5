"""Compare the adapted with the zero-shot model on the same cases, with intervals and tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.evaluation.case_scores import score_table
from samadapt.evaluation.scores import SCORES
from samadapt.evaluation.statistics import compare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samadapt.evaluation.case_scores import CaseClassScore


def compare_states(
    zero_shot: Sequence[CaseClassScore], adapted: Sequence[CaseClassScore], classes: Sequence[str]
) -> dict[str, Any]:
    """Compare every score case by case.

    Args:
        zero_shot: rows before training.
        adapted: rows after training, of the same cases and classes.
        classes: all class names.

    Returns:
        ``{score: comparison, "per_class": {name: {score: comparison}}}``; see
        ``statistics.compare``. Over classes a case counts with its mean over the classes.
        ``better`` and ``worse`` follow the direction of the score: a smaller HD95 is better, and
        so is a volume error nearer to 0.
    """
    before, after = score_table(zero_shot, classes), score_table(adapted, classes)
    # The two states may list the cases in different orders.
    order = [after.cases.index(case) for case in before.cases]
    changed = after.values[order]

    def of(columns: list[int]) -> dict[str, Any]:
        found = {}
        for n, name in enumerate(before.scores):
            one, other = before.values[:, columns, n], changed[:, columns, n]
            gains: np.ndarray[Any, Any] = SCORES[name].gain(one, other)
            found[name] = compare(one, other, gains)
        return found

    every = list(range(len(classes)))
    return {**of(every), "per_class": {name: of([k]) for k, name in enumerate(classes)}}
