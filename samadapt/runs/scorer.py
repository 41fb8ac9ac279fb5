"""Score the model of a run, as it is, on some slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from samadapt.evaluation.evaluate import Evaluation, SlicePredictor, evaluate_cases

if TYPE_CHECKING:
    from samadapt.config.schema import Eval
    from samadapt.data.types import SliceRef
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.runs.context import RunContext
    from samadapt.runs.feature_planner import FeaturePlanner


@dataclass(frozen=True)
class Scorer:
    """Scores the model of a run.

    Attributes:
        planner: the frozen features of the run. The run's model is scored as it is at the time
            of the call.
        batch_size: slices in one forward pass.
        nsd_tolerance_mm: tolerance of the normalised surface Dice; in pixels without spacing.
        instances: whether the data set's numbered objects, or components, are matched too.
    """

    planner: FeaturePlanner
    batch_size: int
    nsd_tolerance_mm: float
    instances: bool | Literal["components"]

    @property
    def context(self) -> RunContext:
        """The run."""
        return self.planner.context

    def score(self, refs: Sequence[SliceRef], policy: PromptPolicy) -> Evaluation:
        """Return every score with its interval, and matched objects where they were asked for."""
        run = self.context
        return evaluate_cases(
            self.predictor(policy),
            refs,
            run.dataset.sample,
            run.dataset.classes,
            run.progress.advance,
            spacing_of=lambda case: run.dataset.case(case).spacing_mm,
            tolerance=self.nsd_tolerance_mm,
            instances=self.instances,
        )

    def score_overlap(self, refs: Sequence[SliceRef], policy: PromptPolicy) -> Evaluation:
        """Return Dice and IoU alone, as a validation in training needs them; nothing is shown."""
        data = self.context.dataset
        return evaluate_cases(
            self.predictor(policy),
            refs,
            data.sample,
            data.classes,
            spacing_of=lambda case: data.case(case).spacing_mm,
            overlap_only=True,
        )

    def predictor(self, policy: PromptPolicy) -> SlicePredictor:
        """Return the model of the run as it is, prompted by a policy."""
        run = self.context
        # Beside a model that predicts classes without prompts, the zero-shot model is scored class
        # by class: the boxes of two classes may coincide and would take pixels from each other.
        zero_shot_of_semantic = run.policy.is_semantic and not policy.is_semantic
        return SlicePredictor(
            sam=run.sam,
            first_trainable_block=run.injection.first_trainable_block,
            features=self.planner.features,
            keys_of=lambda refs: self.planner.keys_of([(ref, 0) for ref in refs]),
            policy=policy,
            classes=len(run.dataset.classes),
            autocast=run.autocast,
            batch_size=self.batch_size,
            independent=run.dataset.overlapping or zero_shot_of_semantic,
            overlapping=run.dataset.overlapping,
            stacks=self.planner.samples.stacks,
            image_of=lambda ref: run.dataset.sample(ref).image,
        )


def make_scorer(planner: FeaturePlanner, options: Eval) -> Scorer:
    """Return what scores the model of a run, on the features that the planner serves."""
    return Scorer(
        planner=planner,
        batch_size=options.batch_size,
        nsd_tolerance_mm=options.nsd_tolerance_mm,
        instances=options.instances,
    )
