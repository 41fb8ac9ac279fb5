"""Prompts that somebody draws: scribbles and rough masks, simulated from the ground truth."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from samadapt.errors import PromptError
from samadapt.prompts.rough_masks import rough_masks
from samadapt.prompts.scribbles import scribbles_around, scribbles_in

if TYPE_CHECKING:
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.sam.types import ImagePrompts
    from samadapt.system.arrays import Array


def with_drawings(
    objects: ImagePrompts,
    labels: Array,
    policy: PromptPolicy,
    rng: np.random.Generator | None = None,
) -> ImagePrompts:
    """Return objects with a scribble or a rough mask each, in the place of other prompts.

    Args:
        objects: p objects with their ground truth.
        labels: (h, w) integers, or (n, h, w) if classes overlap; pixels below 0 are unknown, and no
            scribble outside goes there.
        policy: ``"scribble"`` or ``"mask"``, and how they are made.
        rng: source of the noise in training. Without it the drawings follow from the objects, and
            there is no scribble outside.

    Raises:
        PromptError: objects come without ground truth.
    """
    truth = objects.truth
    if truth is None:
        raise PromptError("simulated scribbles and masks need the ground truth of the objects")
    bare = replace(objects, boxes=None, points=None, point_labels=None)
    if policy.kind == "mask":
        return replace(bare, masks=rough_masks(truth, policy.mask_noise, rng))
    count, exists = policy.scribble_points, truth.any(axis=(1, 2))
    points = np.zeros((len(truth), count, 2), np.float32)
    points[exists] = scribbles_in(truth[exists], count, rng)
    # -1 is padding: an annotated object may have no ground truth.
    point_labels = np.where(exists, 1, -1)[:, None].repeat(count, axis=1)
    if rng is not None and rng.random() < policy.scribble_outside:
        known = np.logical_and.reduce(labels.reshape(-1, *labels.shape[-2:]) >= 0)
        around, found = scribbles_around(truth, known, count, rng)
        outside = np.where(found & exists, 0, -1)[:, None].repeat(count, axis=1)
        points = np.concatenate([points, around], axis=1)
        point_labels = np.concatenate([point_labels, outside], axis=1)
    return replace(bare, points=points, point_labels=point_labels)
