"""What ``samadapt evaluate prompts=matrix`` measures beside the usual scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.evaluation.forgetting import answers, forgetting, photographs
from samadapt.evaluation.prompt_matrix import SettingScores, score_settings
from samadapt.prompts.policy import PromptPolicy
from samadapt.reports.oracle_gap import STATES, gap_summary, write_gap

if TYPE_CHECKING:
    from samadapt.data.types import SliceRef
    from samadapt.runs.context import Session
    from samadapt.system.arrays import Array


@dataclass
class OracleGap:
    """Two models in every setting: with no prompt, clicks, good and bad boxes.

    Attributes:
        session: model and data; the model changes from the base to the adapted one.
        refs: the slices that are scored.
        scores: by state (``zero_shot``, ``adapted``), then by setting.
        masks: by state, then by photograph: what the model sees there.
    """

    session: Session
    refs: Sequence[SliceRef]
    scores: dict[str, Mapping[str, SettingScores]] = field(default_factory=dict)
    masks: dict[str, Mapping[str, Array]] = field(default_factory=dict)

    def measure(self, state: str) -> None:
        """Score the session's model as it is now, as one of ``STATES``.

        Classes of a model without prompts are scored each on its own, as its zero-shot is: the
        boxes of two classes may be the same.
        """
        session, data = self.session, self.session.dataset
        predictor = session.predictor(self._policy(state))
        predictor = replace(predictor, independent=session.policy.is_semantic or data.overlapping)
        name = f"oracle gap, {STATES[state][0]}"
        with session.progress.phase(name, units=len(self.refs)):
            self.scores[state] = score_settings(
                predictor, self.refs, data.sample, data.classes, session.progress.advance
            )
        stack = session.config.peft.stack
        self.masks[state] = answers(session.sam, session.autocast, photographs(), stack)

    def _policy(self, state: str) -> PromptPolicy:
        session = self.session
        if state == "zero_shot" or not session.policy.is_semantic:
            return session.zero_shot_policy
        return replace(session.policy, objects="class")

    def summary(self) -> dict[str, Any]:
        """Return what ``summary.json`` holds: ``oracle_gap`` and ``forgetting``."""
        return {
            "oracle_gap": gap_summary(self.scores),
            "forgetting": forgetting(self.masks["zero_shot"], self.masks["adapted"]),
        }

    def write(self, directory: Path) -> None:
        """Write ``oracle_gap.csv`` and ``oracle_gap.png``."""
        write_gap(directory, self.scores, gap_summary(self.scores))
