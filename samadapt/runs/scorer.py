"""Score the model of a run, as it is, on some slices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from samadapt.data.mirroring import mirrors_of, refuse_sides
from samadapt.errors import PromptError
from samadapt.evaluation.absent_prompts import ask_where_nothing_is
from samadapt.evaluation.evaluate import Evaluation, SlicePredictor, evaluate_cases
from samadapt.evaluation.second_pass import SecondPass
from samadapt.runs.carried_objects import carry_objects
from samadapt.runs.kept_components import kept_classes
from samadapt.sam.mirror import AS_IT_IS, Mirror

if TYPE_CHECKING:
    from samadapt.config.schema import Eval
    from samadapt.data.types import SliceRef
    from samadapt.evaluation.confidence import ObjectScore
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.runs.context import RunContext
    from samadapt.runs.feature_planner import FeaturePlanner


@dataclass(frozen=True)
class Scorer:
    """Scores the model of a run.

    Attributes:
        context: the run, whose model is scored as it is at the time of the call.
        planner: the frozen features of the run.
        batch_size: slices in one forward pass.
        nsd_tolerance_mm: tolerance of the normalised surface Dice; in pixels without spacing.
        instances: whether the data set's numbered objects, or components, are matched too.
        mirrors: the mirrored copies of the slices that final scores are averaged over.
        keep_largest: classes of which predictions without prompts keep the largest component.
        second_pass: refines final scores without prompts; None: nothing does.
    """

    context: RunContext
    planner: FeaturePlanner
    batch_size: int
    nsd_tolerance_mm: float
    instances: bool | Literal["components"]
    mirrors: tuple[Mirror, ...] = (AS_IT_IS,)
    keep_largest: tuple[str, ...] = ()
    second_pass: SecondPass | None = None

    def by_kind(self) -> dict[str, Scorer]:
        """Return what scores the model, as it is now, with each of its kinds of prompts.

        The kind whose scores come first in a report is the first one.
        """
        policy = self.context.policy
        kinds = sorted(policy.kinds, key=lambda kind: kind != policy.main_kind)
        return {kind: replace(self, context=self.context.of_kind(kind)) for kind in kinds}

    def main(self) -> Scorer:
        """Return what scores the model with its main kind of prompt."""
        return self.by_kind()[self.context.policy.main_kind]

    def score(
        self, refs: Sequence[SliceRef], policy: PromptPolicy, *, confidence: bool = False
    ) -> Evaluation:
        """Return every score with its interval, and matched objects where they were asked for.

        Args:
            refs: the slices.
            policy: how the model is prompted.
            confidence: also return what the confidence of objects is measured by.
        """
        run = self.context
        predictor = self.predictor(policy)
        is_carried = predictor.carry is not None
        kept = self.keep_largest if policy.is_semantic else ()
        found = evaluate_cases(
            replace(
                predictor,
                mirrors=self.mirrors,
                second_pass=self.second_pass,
                scores_objects=confidence and not is_carried,
            ),
            refs,
            run.dataset.sample,
            run.dataset.classes,
            run.progress.advance,
            spacing_of=lambda case: run.dataset.case(case).spacing_mm,
            tolerance=self.nsd_tolerance_mm,
            instances=self.instances,
            keep_largest=[run.dataset.classes.index(name) + 1 for name in kept],
            keep_in_pictures=run.dataset.axis is None,
            watershed=run.model.watershed,
            false_positives=policy.is_semantic,
        )
        if confidence and is_carried:  # only where an object is prompted it has a score
            found.object_scores = self.object_scores(refs, policy)
        if policy.negatives and not policy.is_semantic:
            answers = ask_where_nothing_is(predictor, refs, run.dataset.sample)
            found.summary["absent_prompts"] = answers.to_dict()
        return found

    def object_scores(self, refs: Sequence[SliceRef], policy: PromptPolicy) -> list[ObjectScore]:
        """Return what the confidence of objects is fitted to.

        Nothing is mirrored, and objects are prompted on each of their slices.
        """
        data = self.context.dataset
        found = evaluate_cases(
            replace(self.predictor(policy), scores_objects=True, carry=None),
            refs,
            data.sample,
            data.classes,
            overlap_only=True,
            watershed=self.context.model.watershed,
        )
        return found.object_scores

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
        """Return the model of the run as it is, prompted by a policy.

        With clips it prompts an object on one slice, and SAM 2's memory carries it to the others.
        """
        run = self.context
        carry = partial(carry_objects, read=run.dataset.sample) if policy.clip > 1 else None
        # Beside a model that predicts classes without prompts, the zero-shot model is scored class
        # by class: the boxes of two classes may coincide and would take pixels from each other.
        zero_shot_of_semantic = run.policy.is_semantic and not policy.is_semantic
        return SlicePredictor(
            sam=run.model,
            first_trainable_block=run.injection.first_trainable_block,
            features=self.planner.features,
            unstored=self.planner.features.compute,
            keys_of=lambda refs: self.planner.keys_of([(ref, 0) for ref in refs]),
            policy=policy,
            classes=len(run.dataset.classes),
            autocast=run.autocast,
            batch_size=self.batch_size,
            independent=run.dataset.overlapping or zero_shot_of_semantic,
            overlapping=run.dataset.overlapping,
            stacks=run.dataset.stacks,
            image_of=lambda ref: run.dataset.sample(ref).image,
            carry=carry,
        )


def mean_by_share(values: Mapping[str, float], shares: Mapping[str, float]) -> float:
    """Return the mean of scores by kind of prompt, weighted by the shares of the kinds.

    Args:
        values: the score of each kind; kinds with NaN have none and are left out.
        shares: the share of each kind; a kind without a share counts as 1.
    """
    known = {kind: value for kind, value in values.items() if not math.isnan(value)}
    weights = {kind: shares.get(kind, 1.0) for kind in known}
    if not weights:
        return math.nan
    return math.fsum(weights[kind] * known[kind] for kind in known) / math.fsum(weights.values())


def make_scorer(planner: FeaturePlanner, options: Eval) -> Scorer:
    """Return what scores the model of a run, on the features that the planner serves.

    Raises:
        PromptError: ``eval.tta=flip`` with classes that name a side and are found without prompts,
            or ``eval.second_pass`` where nothing is found without prompts or no base model is; or
            ``prompts=propagate`` with ``eval.tta`` or tiles.
    """
    context = planner.context
    if context.policy.clip > 1:
        _check_carried(context, options)
    mirrors: tuple[Mirror, ...] = (AS_IT_IS,)
    if options.tta:
        if context.policy.finds_classes:
            refuse_sides(context.dataset.classes, f"eval.tta={options.tta}")
        cases = context.dataset.cases
        pictures = all(case.axis is None and case.shape[2] == 1 for case in cases)
        mirrors = mirrors_of(context.dataset.intensity, is_picture=pictures)
    # A model that separates objects is scored by objects, where the data set numbers them.
    separates = context.model.watershed is not None and context.dataset.numbers_objects
    return Scorer(
        context=context,
        planner=planner,
        batch_size=options.batch_size,
        nsd_tolerance_mm=options.nsd_tolerance_mm,
        instances=options.instances or separates,
        mirrors=mirrors,
        keep_largest=_kept(context, options.keep_largest),
        second_pass=_second_pass(context, options.second_pass),
    )


def _check_carried(context: RunContext, options: Eval) -> None:
    """Refuse what does not go with objects that memory carries; see ``make_scorer``."""
    wrong = ""
    if options.tta:
        wrong = f"eval.tta={options.tta}: mirrored copies have memories of their own"
    elif context.dataset.tiling is not None:
        wrong = f"data.tile={context.dataset.tiling.side}: tiles are no slices of a volume"
    if wrong:
        raise PromptError(f"prompts=propagate does not go with {wrong}. Leave it out")


def _kept(context: RunContext, wanted: Literal["auto"] | Sequence[str] | None) -> tuple[str, ...]:
    """Return the classes of ``eval.keep_largest``, and say what ``auto`` found."""
    if not context.policy.finds_classes:
        return ()
    kept = tuple(kept_classes(wanted, context.dataset))
    if wanted == "auto":
        found = ", ".join(kept) or "no class is one piece in every training volume"
        context.say(f"largest component kept: {found} (eval.keep_largest=auto)")
    return kept


def _second_pass(context: RunContext, wanted: Literal["base"] | None) -> SecondPass | None:
    """Return what refines final scores without prompts, if it is asked for; see ``make_scorer``."""
    if wanted is None:
        return None
    if not context.policy.finds_classes:
        raise PromptError(
            f"eval.second_pass={wanted} refines what is found without prompts; got "
            f"prompts={context.policy.kind}. Leave it out"
        )
    base = context.promptable_base
    if base is None or base.input_channels != context.model.input_channels:
        raise PromptError(
            f"eval.second_pass={wanted} prompts the base model, which a U-Net does "
            "not have and which sees three channels at most; leave it out"
        )
    return SecondPass(base)
