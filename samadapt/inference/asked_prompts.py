"""What the prompts of a user ask of an adapter that answers to several kinds of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samadapt.errors import PromptError
from samadapt.prompts.user_drawings import Drawings
from samadapt.prompts.user_prompts import object_classes, slice_prompts

if TYPE_CHECKING:
    from samadapt.inference.bundle import AdapterBundle
    from samadapt.inference.options import PredictionOptions
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.sam.types import ImagePrompts
    from samadapt.system.arrays import Array


def asked_policy(policy: PromptPolicy, options: PredictionOptions) -> PromptPolicy:
    """Return how an adapter answers: without prompts by its classes, else to boxes or points."""
    if not options.has_prompts:
        return policy.of_kind("semantic")
    return policy.answering(points=options.points is not None or options.scribbles is not None)


def asked_prompts(
    options: PredictionOptions, shape: tuple[int, int, int], count: int
) -> dict[int, ImagePrompts]:
    """Return the prompts of a user by slice; all objects are of class 1.

    Args:
        options: prompts and options, whose files were read.
        shape: (h, w, d) of the image.
        count: number of points that a scribble is turned into.

    Raises:
        PromptError: see ``slice_prompts``.
    """
    if isinstance(options.scribbles, str | Path) or isinstance(options.masks, str | Path):
        raise PromptError("the files of scribbles and masks must be read before the prompts")
    drawings = Drawings(options.scribbles, options.scribble_labels, options.masks, count)
    return slice_prompts(options.boxes, options.points, options.point_labels, shape, drawings)


def asked_classes(
    options: PredictionOptions, prompts: Mapping[int, ImagePrompts], classes: Sequence[str]
) -> Array:
    """Return the class (p,) of each object.

    Args:
        options: the class names that the user gives. The numbers of masks without a named class
            are those of classes, if there are several.
        prompts: by slice.
        classes: names of the adapter's classes.

    Raises:
        PromptError: a name is unknown or missing, or a number is no class.
    """
    count = max((int(item.numbers.max(initial=0)) for item in prompts.values()), default=0)
    if options.labels is not None or options.masks is None or len(classes) == 1:
        return object_classes(options.labels, count, classes)
    if count > len(classes):
        raise PromptError(
            f"masks: the value {count} is no class of this adapter, which has {len(classes)} "
            f"({', '.join(classes)}). If the values number objects, name the class of each with "
            "labels"
        )
    return np.arange(1, count + 1, dtype=np.int64)


def why_uncalibrated(members: Sequence[AdapterBundle], options: PredictionOptions) -> str:
    """Return why objects get no confidence; empty if they get one.

    The confidence of an adapter for several kinds of prompts is fitted to its main kind.

    Args:
        members: the adapters that predict together.
        options: the prompts of the user.
    """
    policy = members[0].policy
    if policy.is_mixed and (kind := asked_policy(policy, options).kind) != policy.main_kind:
        return (
            f"the confidence of this adapter was fitted to prompts={policy.main_kind}, and this "
            f"is prompts={kind}"
        )
    reasons = [one.curve for one in members if isinstance(one.curve, str)]
    return reasons[0] if reasons else ""
