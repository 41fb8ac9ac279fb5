"""Measure the oracle gap of ``samadapt evaluate prompts=matrix``.

The scores of a model depend on its prompts, and prompts made from the ground truth flatter it. So
the base model and the adapted one are scored with every kind of prompt, exact and inexact, side by
side; and both segment photographs, which shows what the adaptation cost outside its domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.evaluation.forgetting import answers, forgetting, photographs
from samadapt.evaluation.number_of_clicks import summarise_clicks
from samadapt.evaluation.prompt_matrix import PromptMatrix, score_settings
from samadapt.reports.oracle_gap import gap_summary, write_gap
from samadapt.reports.tables import STATES

if TYPE_CHECKING:
    from samadapt.data.types import SliceRef
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.runs.scorer import Scorer
    from samadapt.system.arrays import Array


@dataclass
class OracleGap:
    """The scores of two models with no prompt, clicks, and good and bad boxes.

    Attributes:
        scorer: scores the model of the run, which changes from the base to the adapted one.
        refs: the slices that are scored.
        scores: by state (``zero_shot``, ``adapted``).
        masks: by state, then by photograph: the masks that the model predicts there.
    """

    scorer: Scorer
    refs: Sequence[SliceRef]
    scores: dict[str, PromptMatrix] = field(default_factory=dict)
    masks: dict[str, Mapping[str, Array]] = field(default_factory=dict)

    def measure(self, state: str) -> None:
        """Score the run's model as it is now, under the name of one of ``STATES``."""
        context = self.scorer.context
        data, is_semantic = context.dataset, context.policy.finds_classes
        predictor = self.scorer.predictor(self._policy(state))
        # The classes of a model without prompts are scored one by one, as its zero-shot scores
        # are: the boxes of two classes may coincide and would take pixels from each other.
        predictor = replace(predictor, independent=is_semantic or data.overlapping)
        name = f"oracle gap, {STATES[state]}"
        with context.progress.phase(name, units=len(self.refs)):
            self.scores[state] = score_settings(
                predictor, self.refs, data.sample, data.classes, context.progress.advance
            )
        self.masks[state] = answers(context.sam, context.autocast, photographs(), data.stack)

    def _policy(self, state: str) -> PromptPolicy:
        policy = self.scorer.context.policy
        kind = "semantic" if policy.finds_classes else policy.main_kind
        context = self.scorer.context.of_kind(kind)
        if state == "zero_shot":
            return untrained(context.zero_shot_policy)
        if not context.policy.is_semantic:
            return context.policy
        # One prompt for each class, as the base model gets it, so that the two can be compared.
        return replace(context.policy, objects="class")

    def summary(self) -> dict[str, Any]:
        """Return the entries ``oracle_gap``, ``clicks`` and ``forgetting`` of ``summary.json``."""
        classes = self.scorer.context.dataset.classes
        return {
            "oracle_gap": gap_summary(self.scores),
            "clicks": {
                state: summarise_clicks(matrix.clicks, classes)
                for state, matrix in self.scores.items()
            },
            "forgetting": forgetting(self.masks["zero_shot"], self.masks["adapted"]),
        }

    def write(self, directory: Path, summary: Mapping[str, Any]) -> None:
        """Write the tables and the plot.

        Args:
            directory: their folder.
            summary: what ``summary`` returned.
        """
        write_gap(directory, self.scores, summary["oracle_gap"], summary["clicks"])


def untrained(policy: PromptPolicy) -> PromptPolicy:
    """Return how a base model answers where the adapter was trained with clicks.

    It gives one mask to a box: the tokens for several masks of some base models, such as
    LiteMedSAM, were never trained.
    """
    return replace(policy, kind="box") if policy.is_interactive else policy
