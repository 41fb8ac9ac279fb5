"""Which slices of a data set train, which choose the best step, and which are scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samadapt.errors import ConfigError
from samadapt.sam.watershed import INSTANCE_HEAD
from samadapt.training.selection import selection_split

if TYPE_CHECKING:
    from samadapt.data.dataset import Dataset
    from samadapt.data.types import SliceRef
    from samadapt.runs.context import RunContext
    from samadapt.runs.feature_planner import FeaturePlanner
    from samadapt.runs.scorer import Scorer
    from samadapt.training.samples import TrainingSamples


@dataclass(frozen=True)
class RunSlices:
    """The slices of a run by what they are for.

    Attributes:
        train: the slices that the adapter is trained on.
        validation: the slices that choose the best step; a part of the training cases. Empty: the
            last weights are kept.
        test: the slices that are scored before and after; the adapter never sees them. Empty:
            nothing is held out.
    """

    train: Sequence[SliceRef]
    validation: Sequence[SliceRef]
    test: Sequence[SliceRef]


def divide_slices(
    context: RunContext,
    *,
    validate_cases: int | None,
    max_test_cases: int | None,
) -> RunSlices:
    """Divide the slices of the data set, and say how many training slices are left out and why.

    Args:
        context: the run.
        validate_cases: at most so many training cases choose the best step; None: a tenth. 0: every
            case trains.
        max_test_cases: only the first held-out cases are scored; None: all. 0: none.

    Raises:
        ConfigError: when there is nothing to train on, to choose the best step by, or to score.
    """
    data = context.dataset
    train = data.slices("train")
    for reason, count in train.left_out.items():
        if count:
            context.say(f"training slices left out: {count} ({reason})")
    usable = context.samples.usable(train)
    if len(usable) < len(train):
        context.say(f"training slices left out: {len(train) - len(usable)} (no object to prompt)")
    training, validation = split_training(data, usable, validate_cases)
    if context.policy.clip > 1:
        validation = carried_through(data, training, validation)
    test = first_cases(data.slices("val"), max_test_cases)
    trains = context.has_trained_parameters
    lacks_training = trains and not (training and (validation or validate_cases == 0))
    # Without a held-out case to score, something must be trained.
    scores_nothing = max_test_cases == 0 or not data.val
    if lacks_training or not (test or (trains and scores_nothing)):
        bare = sum(train.left_out.get(reason, 0) for reason in ("empty", "not annotated"))
        if not usable and bare:
            raise ConfigError(
                f"data: no training slice holds an object to learn; {bare} are without one. Check "
                "the masks of the training cases, or split the cases otherwise (data.val_every, "
                f"data.fold). The cases are split by this rule: {data.case_splits.rule}"
            )
        raise ConfigError(
            f"data: {len(training)} slices to train on, {len(validation)} to choose the best step, "
            f"{len(test)} to score; each needs at least one. Use more cases (data.max_cases), a "
            "smaller data.slice_step, train.validate_cases=0 (no case chooses the step, the last "
            "weights are kept) or data.val_every=0 (nothing is held out and scored). The cases are "
            f"split by this rule: {data.case_splits.rule}"
        )
    return RunSlices(training, validation, test)


def split_training(
    data: Dataset, usable: Sequence[SliceRef], validate_cases: int | None
) -> tuple[list[SliceRef], list[SliceRef]]:
    """Divide training slices into those that train and those that choose the best step.

    Args:
        data: the data set.
        usable: its training slices that have something to learn.
        validate_cases: see ``divide_slices``.
    """
    return selection_split(
        usable,
        validate_cases,
        # All cases of a patient stay in one split; without a patient each case counts as one.
        lambda name: data.case(name).patient or name,
        data.tile,
        # Slices at most this far apart may share a stack, in which they attend to each other.
        gap=data.stack - 1,
    )


def carried_through(
    data: Dataset, training: Sequence[SliceRef], validation: Sequence[SliceRef]
) -> list[SliceRef]:
    """Return all annotated slices through which the objects of a validation are carried.

    They are whole cases, also past the end of the objects; or, of a case that trains too, the
    slices from the first to the last one that was chosen.
    """
    shared = {ref.case for ref in training}
    chosen: dict[str, list[int]] = {}
    for ref in validation:
        chosen.setdefault(ref.case, []).append(ref.index)
    return [
        ref
        for ref in data.slices("train", empty="keep", step=1)
        if (own := chosen.get(ref.case))
        and (ref.case not in shared or min(own) <= ref.index <= max(own))
    ]


def first_cases(refs: Sequence[SliceRef], count: int | None) -> list[SliceRef]:
    """Return the slices of the first ``count`` cases; all slices if ``count`` is None."""
    kept = set(list(dict.fromkeys(ref.case for ref in refs))[:count])
    return [ref for ref in refs if ref.case in kept]


def check_objects(
    scorer: Scorer, scored: Sequence[SliceRef], trained: Sequence[SliceRef] = ()
) -> None:
    """Refuse data whose objects cannot be learned, or not be scored, as a run asks for.

    Args:
        scorer: scores the model of the run.
        scored: the slices that are scored.
        trained: the slices that the run learns from; none in an evaluation.

    Raises:
        ConfigError: naming the alternative.
    """
    data = scorer.context.dataset
    check_negatives(scorer.context.samples, trained)
    if scorer.context.model.watershed is not None:
        check_separable(data, [*trained, *scored], trains=bool(trained))
    if scorer.instances is True:
        check_numbered_objects(data, scored)


def check_negatives(samples: TrainingSamples, trained: Sequence[SliceRef]) -> None:
    """Refuse ``prompts.negatives`` without prompts where all training slices are alike.

    Raises:
        ConfigError: no slice is without a class though some are asked for, or all are.
    """
    policy = samples.policy
    if policy.negatives is None or not policy.finds_classes or not trained:
        return
    items = samples.items(trained)
    empty = sum(map(samples.is_empty, items))
    if policy.negatives and not empty:
        raise ConfigError(
            f"prompts.negatives={policy.negatives}: no training slice is without a class, so none "
            "can be drawn; use data.empty_slices=keep, add images with nothing to find, or leave "
            "prompts.negatives out"
        )
    if empty == len(items):
        raise ConfigError(
            f"prompts.negatives={policy.negatives}: no training slice holds a class; check the "
            "masks of the training cases"
        )


def check_separable(data: Dataset, refs: Sequence[SliceRef], *, trains: bool) -> None:
    """Refuse data whose objects a run with ``head=instances`` cannot separate or learn.

    Args:
        data: the data set of the run.
        refs: the slices that are trained on or scored.
        trains: whether the run learns from the objects.

    Raises:
        ConfigError: for volumes, for classes that may overlap, and for a training on masks that do
            not number their objects.
    """
    for case in dict.fromkeys(ref.case for ref in refs):
        depth = data.case(case).shape[2]
        if depth > 1 and data.tiling is None:
            raise ConfigError(
                f"head={INSTANCE_HEAD} separates the objects of pictures; {case} is a volume of "
                f"{depth} slices, whose objects span slices. Use head=unet"
            )
    if data.overlapping:
        raise ConfigError(
            f"head={INSTANCE_HEAD} gives each pixel to one object, and the classes of data.regions "
            "may overlap. Use head=unet, or name classes with data.classes"
        )
    if trains and not data.numbers_objects:
        raise ConfigError(
            f"head={INSTANCE_HEAD} learns objects from their numbers, and the masks of "
            f"data={data.name} hold classes. Set data.instances=true if each number in a mask is "
            "one object, use data=coco, yolo or labelme, or head=unet for classes alone"
        )


def check_numbered_objects(data: Dataset, refs: Sequence[SliceRef]) -> None:
    """Refuse ``eval.instances=true`` if the data set does not number its objects.

    Raises:
        ConfigError: naming the alternative.
    """
    for case in dict.fromkeys(ref.case for ref in refs):
        depth = data.case(case).shape[2]
        sample = data.sample(next(ref for ref in refs if ref.case == case))
        if depth > 1 or sample.instances is None:
            what = "a volume" if depth > 1 else "a picture without them"
            raise ConfigError(
                f"eval.instances=true counts the numbered objects of pictures; {case} is {what}. "
                "Use eval.instances=components"
            )


def plan_progress(
    planner: FeaturePlanner, slices: RunSlices, *, steps: int, validate_every: int
) -> None:
    """Tell the progress display what the run consists of, so that it can estimate the time left.

    Args:
        planner: knows how many features are still to be computed.
        slices: the slices of the run.
        steps: optimizer steps; 0 in an evaluation, and where only the time limits them.
        validate_every: steps between validations; 0: one at the end.
    """
    context = planner.context
    validations = math.ceil(steps / validate_every) if validate_every else 1
    kinds = len(context.policy.kinds)  # each of them is scored
    scored = kinds * len(slices.test)
    context.progress.plan(
        {
            "features": planner.missing,
            "train": steps if context.has_trained_parameters else 0,
            "validation": validations * kinds * len(slices.validation),
            "adapted": scored,
            "zero-shot": 0 if context.is_baseline else scored,
        },
        # Validation scores slices as well, so its speed predicts the time of the final scores.
        like={"adapted": "validation", "zero-shot": "validation"},
    )
