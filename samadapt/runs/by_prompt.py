"""The scores of an adapter for several kinds of prompts (``prompts=mixed``), side by side.

The kind with the largest share is the main one: the tables, overlays and cases that every run has
are made with it. The scores of all kinds are in the entry ``by_prompt`` of ``summary.json``, and
those of every case in ``eval/by_prompt/KIND/per_case.csv``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.evaluation.absent_prompts import join_answers
from samadapt.evaluation.case_scores import summarise
from samadapt.evaluation.comparison import compare_states
from samadapt.evaluation.confidence import ConfidenceCurve, confidence_error
from samadapt.evaluation.false_positives import summarise_false_positives
from samadapt.prompts.shares import MIXED
from samadapt.reports.false_positives import pool_false_positives, write_false_positives
from samadapt.reports.tables import read_per_case, write_per_case
from samadapt.runs.results import write_scores
from samadapt.runs.summary import scores_of, summarise_run

if TYPE_CHECKING:
    from samadapt.data.types import SliceRef
    from samadapt.evaluation.case_scores import CaseClassScore
    from samadapt.evaluation.evaluate import Evaluation
    from samadapt.runs.context import RunContext
    from samadapt.runs.run_slices import RunSlices
    from samadapt.runs.scorer import Scorer

FOLDER = "by_prompt"
"""Folder within ``eval/``, and entry of the summary."""


@dataclass
class KindScores:
    """The scores with one kind of prompt.

    Attributes:
        zero_shot: those of the base model; None if they were not measured.
        adapted: those of the adapted model; None if they were not measured.
    """

    zero_shot: Evaluation | None = None
    adapted: Evaluation | None = None

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """What was measured, by state."""
        states = {"zero_shot": self.zero_shot, "adapted": self.adapted}
        return {state: found for state, found in states.items() if found}

    @property
    def rows(self) -> dict[str, Sequence[CaseClassScore]]:
        """The scores of each case and class by state."""
        return {state: found.rows for state, found in self.evaluations.items()}


def score_adapted(
    scorer: Scorer,
    refs: Sequence[SliceRef],
    curve: ConfidenceCurve | str | None,
    found: Mapping[str, KindScores],
) -> None:
    """Score the adapted model, as it is now, with each kind of prompt.

    Args:
        scorer: scores the model of the run.
        refs: the slices.
        curve: the confidence of objects with the main kind, whose error is measured; the reason
            why there is none; or None where nobody asks for it.
        found: receives the scores by kind.
    """
    main = scorer.context.policy.main_kind
    for kind, one in scorer.by_kind().items():
        is_curve = kind == main and isinstance(curve, ConfidenceCurve)
        scores = one.score(refs, one.context.policy, confidence=is_curve)
        if kind == main and curve is not None:
            scores.summary["confidence"] = confidence_error(curve, scores.object_scores)
        found[kind].adapted = scores


def score_base(scorer: Scorer, refs: Sequence[SliceRef], found: Mapping[str, KindScores]) -> None:
    """Score the base model, which the run holds now, as it compares with each kind of prompt."""
    for kind, one in scorer.by_kind().items():
        found[kind].zero_shot = one.score(refs, one.context.zero_shot_policy)


def summarise_kinds(
    scorer: Scorer, slices: RunSlices, found: Mapping[str, KindScores], **options: Any
) -> dict[str, Any]:
    """Return the content of ``eval/summary.json``: the scores of the main kind, then of all kinds.

    Args:
        scorer: what scored the model of the run.
        slices: the slices of the run.
        found: the scores of each kind.
        options: further arguments of ``summarise_run``.
    """
    policy, classes = scorer.context.policy, scorer.context.dataset.classes
    main = found[policy.main_kind]
    summary = summarise_run(scorer.main(), slices, main.zero_shot, main.adapted, **options)
    if not policy.is_mixed:
        return summary
    summary["prompt"], by_kind = MIXED, scorer.by_kind()
    measured = {kind: one for kind, one in found.items() if one.rows}
    summary[FOLDER] = {
        kind: {
            "share": policy.shares[kind],
            "zero_shot": one.zero_shot
            and scores_of(one.zero_shot, by_kind[kind].context.zero_shot_policy),
            "adapted": one.adapted and scores_of(one.adapted, policy.of_kind(kind)),
            "paired": one.zero_shot
            and one.adapted
            and compare_states(one.zero_shot.rows, one.adapted.rows, classes),
        }
        for kind, one in measured.items()
    }
    if measured:
        summary["notes"].append(
            f"trained with several kinds of prompts; where scores name no kind, they are those of "
            f"{policy.main_kind}, the kind with the largest share"
        )
    return summary


def write_kinds(
    context: RunContext,
    refs: Sequence[SliceRef],
    scored: Mapping[str, KindScores],
    summary: Mapping[str, Any],
    *,
    overlays: int,
) -> None:
    """Write what ``write_scores`` writes of the main kind, and the scores of every kind and case.

    Args:
        context: the run.
        refs: the slices that were scored.
        scored: the scores of each kind.
        summary: the content of ``eval/summary.json``.
        overlays: the number of cases that are drawn.
    """
    main = scored[context.policy.main_kind]
    write_scores(context, refs, main.zero_shot, main.adapted, summary, overlays=overlays)
    for kind, one in scored.items() if len(scored) > 1 else ():
        if one.rows:
            folder = context.run_dir / "eval" / FOLDER / kind
            write_per_case(folder, one.rows)
            write_false_positives(folder, one.evaluations)


def pool_negatives(
    pooled: Mapping[str, dict[str, Any] | None],
    directory: Path,
    folders: Sequence[Path],
    before: Sequence[Mapping[str, Any]],
) -> None:
    """Add to pooled scores what the folds predicted where there is nothing.

    Args:
        pooled: the pooled scores by state; None for a state without scores.
        directory: the folder that receives the counts of all folds.
        folders: the folders with the counts of each fold.
        before: the scores of each fold by state.
    """
    counted = pool_false_positives(directory, folders)
    for state, scores in pooled.items():
        if scores is None:
            continue
        if state in counted:
            found = summarise_false_positives(counted[state], list(scores["per_class"]))
            scores["false_positives"] = found
        asked = [one[state]["absent_prompts"] for one in before if "absent_prompts" in one[state]]
        if asked:
            scores["absent_prompts"] = join_answers(asked).to_dict()


def pool_kinds(
    parent: Path, runs: Sequence[Path], summaries: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Pool the scores of each kind over the folds of a cross-validation, and write those of cases.

    Args:
        parent: the directory of the cross-validation.
        runs: the run directories of the folds.
        summaries: their summaries.

    Returns:
        The entry ``by_prompt`` for the summary; nothing for a single kind.
    """
    pooled: dict[str, Any] = {}
    for kind, entry in summaries[0].get(FOLDER, {}).items():
        rows: dict[str, list[CaseClassScore]] = {}
        for run in runs:
            for state, found in read_per_case(run / "eval" / FOLDER / kind).items():
                rows.setdefault(state, []).extend(found)
        write_per_case(parent / "eval" / FOLDER / kind, rows)
        first = entry["adapted"] or entry["zero_shot"]
        classes = list(first["per_class"])
        means: dict[str, Any] = {"zero_shot": None, "adapted": None}
        for state, found in rows.items():
            marks = {key: entry[state][key] for key in ("prompt", "oracle_prompt")}
            means[state] = summarise(found, classes, intervals=True) | marks
        folders = [run / "eval" / FOLDER / kind for run in runs]
        before = [summary[FOLDER][kind] for summary in summaries]
        pool_negatives(means, parent / "eval" / FOLDER / kind, folders, before)
        paired = None
        if len(rows) == 2:
            paired = compare_states(rows["zero_shot"], rows["adapted"], classes)
        pooled[kind] = {"share": entry["share"], **means, "paired": paired}
    return {FOLDER: pooled} if pooled else {}
