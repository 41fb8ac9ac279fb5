"""Build the loss that a configuration names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from samadapt.config.schema import LossChoice
from samadapt.errors import ConfigError
from samadapt.system.settings import settings_fields
from samadapt.training.class_weights import BACKGROUND, balanced_weights, given_weights
from samadapt.training.instance_distances import with_distances
from samadapt.training.losses import LOSSES, NamedLoss, loss_keys
from samadapt.training.losses.base import Target, targets_text

if TYPE_CHECKING:
    from samadapt.data.types import SliceRef
    from samadapt.runs.context import RunContext
    from samadapt.sam.segmentation_model import SegmentationModel
    from samadapt.training.mask_losses import LossFunction


@dataclass(frozen=True)
class RunLosses:
    """The losses of a run.

    Attributes:
        loss: that of all batches, or of those with prompts.
        class_loss: that of batches without prompts, where others have prompts; else None.
    """

    loss: LossFunction
    class_loss: LossFunction | None = None


def choose_losses(choice: LossChoice, context: RunContext, train: Sequence[SliceRef]) -> RunLosses:
    """Return the losses that fit the kinds of prompts of a run; see ``choose_loss``."""
    policy = context.policy
    if not policy.is_mixed:
        return RunLosses(choose_loss(choice, context, train))
    prompted = next(kind for kind in policy.kinds if kind != "semantic")
    if not policy.finds_classes:
        return RunLosses(choose_loss(choice, context.of_kind(prompted), train))
    # Class weights are for the batches without prompts.
    of_objects = choose_loss(replace(choice, class_weights=None), context.of_kind(prompted), train)
    return RunLosses(of_objects, choose_loss(choice, context.of_kind("semantic"), train))


def choose_loss(choice: LossChoice, context: RunContext, train: Sequence[SliceRef]) -> LossFunction:
    """Return the loss that fits the prompts of a run.

    Args:
        choice: the ``loss`` group of the configuration.
        context: the run.
        train: the slices that train; ``loss.class_weights=balanced`` counts their pixels.

    Raises:
        ConfigError: when the loss does not fit the prompts or the classes, when a key is set that
            it does not take, or for wrong class weights.
    """
    target: Target = "objects"
    if context.policy.is_semantic:
        # Classes that may overlap each need their own mask; otherwise one label map holds all.
        target = "regions" if context.dataset.overlapping else "classes"
    auto = "sam" if target == "objects" else "dice_ce"
    loss = LOSSES[auto if choice.name == "auto" else choice.name]
    _check_fit(loss, target, context.policy.kind)
    # A configuration with loss=auto may hold the weights of both losses that auto stands for.
    names = {"sam", "dice_ce"} if choice.name == "auto" else {loss.name}
    for name, key in loss_keys().items():
        value = getattr(choice, name, key.default)
        if value != key.default and not names & set(key.losses):
            raise ConfigError(
                f"loss.{name}={value} has no effect: loss={choice.name} does not take it, only "
                f"{', '.join(key.losses)}; leave it out, or choose one of these losses"
            )
    _check_object_score(choice, context.model)
    taken = {name: getattr(choice, name) for name in settings_fields(loss) if hasattr(choice, name)}
    weights = None  # all are equal
    if choice.class_weights is not None:
        weights = _class_weights(choice.class_weights, context, train)
    count = len(context.dataset.classes)
    built = loss(**taken).build(target, count, weights)
    return built if context.model.watershed is None else with_distances(built, count)


def _check_fit(loss: type[NamedLoss], target: Target, prompts: str) -> None:
    """Raise ``ConfigError`` unless the loss can compare what the run trains on."""
    if target in loss.fits:
        return
    fitting = ", ".join(name for name, other in LOSSES.items() if target in other.fits)
    where = " with data.regions" if target == "regions" else ""
    raise ConfigError(
        f"loss={loss.name} does not fit prompts={prompts}{where}: it is for "
        f"{targets_text(loss.fits)}; use one of {fitting}, or leave loss=auto"
    )


def _check_object_score(choice: LossChoice, model: SegmentationModel) -> None:
    """Raise ``ConfigError`` for a weight of object scores that the model does not give."""
    weight = getattr(choice, "object_score", None)
    if weight in (None, loss_keys()["object_score"].default) or model.gives_object_scores:
        return
    raise ConfigError(
        f"loss.object_score={weight} has no effect: only SAM 2 says whether an object is in the "
        "image; leave it out, or use model.name=sam2_t"
    )


def _class_weights(
    given: Literal["balanced"] | Sequence[float] | Mapping[str, float],
    context: RunContext,
    train: Sequence[SliceRef],
) -> list[float]:
    """Return the weights of the background and of each class that ``loss.class_weights`` gives."""
    names = context.dataset.classes
    if not context.policy.is_semantic:
        raise ConfigError(
            f"loss.class_weights is for prompts=semantic; with prompts={context.policy.kind} each "
            "object has a loss of its own, whatever its class; leave it out"
        )
    if given == "balanced":
        truths = (context.dataset.sample(ref).truth for ref in train)
        weights = balanced_weights(truths, len(names))
    else:
        weights = given_weights(given, names)
    shown = zip((BACKGROUND, *names), weights, strict=True)
    # Regions have a sigmoid each and no background.
    kept = [f"{name} {weight:.4g}" for name, weight in shown][context.dataset.overlapping :]
    context.say(f"loss.class_weights: {', '.join(kept)}")
    return weights
