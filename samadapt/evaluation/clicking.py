"""Click on objects as a careful user would, and return the prompts that this makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from samadapt.errors import PromptError
from samadapt.prompts.clicker import Clicker
from samadapt.sam.decode import object_logits

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.data.types import Sample
    from samadapt.sam.segmentation_model import SegmentationModel
    from samadapt.sam.types import Frame, ImagePrompts
    from samadapt.system.arrays import Array


@torch.no_grad()
def corrected_prompts(
    sam: SegmentationModel,
    embeddings: Tensor,
    frames: Sequence[Frame],
    prompts: Sequence[ImagePrompts],
    samples: Sequence[Sample],
    clicks: int,
    *,
    click_disks: bool = False,
) -> list[ImagePrompts]:
    """Add simulated clicks to prompts, each where the mask so far is most wrong.

    Args:
        sam: the model that answers.
        embeddings: (b, c, g, g).
        frames: the frame of each image.
        prompts: the objects of each image, with their ground truth.
        samples: the slices; no click goes where the truth is not known.
        clicks: number of clicks to add.
        click_disks: whether the masks that go back show the clicks.

    Returns:
        The prompts with all clicks and the mask from before the last one. An object whose mask has
        no error gets a padding point.

    Raises:
        PromptError: objects come without ground truth.
    """
    found = list(prompts)
    users = [_users(*pair) for pair in zip(prompts, samples, strict=True)]
    for _ in range(clicks):
        decoded = object_logits(
            sam, embeddings, frames, found, multimask=None, click_disks=click_disks
        )
        for place, ((logits, _), frame) in enumerate(zip(decoded, frames, strict=True)):
            objects = found[place]
            if not len(objects):
                continue
            planes = sam.postprocess(logits[None].float(), frame)[0, :, 0].cpu().numpy()
            points, labels = _clicks(users[place], planes > sam.mask_threshold)
            if objects.points is not None and objects.point_labels is not None:
                points = np.concatenate([objects.points, points], axis=1)
                labels = np.concatenate([objects.point_labels, labels], axis=1)
            low = logits.float().cpu().numpy()
            found[place] = replace(objects, points=points, point_labels=labels, mask_logits=low)
    return found


def _users(objects: ImagePrompts, sample: Sample) -> list[Clicker]:
    """Return a simulated user for each object of a slice."""
    if objects.truth is None:
        raise PromptError("simulated clicks need the ground truth of the objects")
    unknown = [sample.unknown(int(class_id)) for class_id in objects.class_ids]
    users = [Clicker(*pair) for pair in zip(objects.truth, np.logical_not(unknown), strict=True)]
    if objects.points is not None:
        for user in users:  # a user never clicks the same pixel twice, so the first click counts
            user.click(np.zeros_like(user.truth))
    return users


def _clicks(users: Sequence[Clicker], predicted: Array) -> tuple[Array, Array]:
    """Return points (p, 1, 2) and labels (p, 1) that correct masks (p, h, w)."""
    points = np.zeros((len(users), 1, 2), np.float32)
    labels = np.full((len(users), 1), -1)
    for index, (user, mask) in enumerate(zip(users, predicted, strict=True)):
        if ((mask != user.truth) & user.known).any():
            points[index, 0], labels[index, 0] = user.click(mask)
    return points, labels
