"""Calibrate the confidence of a run's objects on its validation cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from samadapt.evaluation.confidence import ConfidenceCurve, fit_confidence

if TYPE_CHECKING:
    from samadapt.runs.run_slices import RunSlices
    from samadapt.runs.scorer import Scorer


def fit_to_validation(scorer: Scorer, slices: RunSlices) -> ConfidenceCurve | str:
    """Fit the confidence of the trained model to the validation cases, or say why it cannot be.

    The held-out cases are not looked at. The validation cases chose the best step, so the curve may
    be a little too sure; the summary measures this on the held-out cases.
    """
    if not slices.validation:
        return "the run had no validation cases (train.validate_cases=0)"
    context = scorer.context
    with context.progress.aside("validation", len(slices.validation)):
        return fit_confidence(scorer.object_scores(slices.validation, context.policy))


def confidence_entry(curve: ConfidenceCurve | str) -> dict[str, Any]:
    """Return what ``samadapt.json`` records: the curve, or the reason why there is none."""
    return {"reason": curve} if isinstance(curve, str) else curve.to_dict()
