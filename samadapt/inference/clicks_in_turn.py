"""Several prompts of one object, answered one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from samadapt.sam.decode import is_single, object_logits

if TYPE_CHECKING:
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.sam.segmentation_model import SegmentationModel
    from samadapt.sam.types import Frame, ImagePrompts


def answers_to_prompts(
    sam: SegmentationModel,
    embeddings: Float[Tensor, "b c g g"],
    frames: Sequence[Frame],
    prompts: Sequence[ImagePrompts],
    policy: PromptPolicy,
    *,
    multimask: bool | None,
) -> list[tuple[Float[Tensor, "_ 1 _ _"], Float[Tensor, " _"]]]:
    """Decode the objects of some images as ``object_logits`` does, in the way of their training.

    A model that was trained with clicks has always seen the second one together with its answer to
    the first. So the box, or the first point, is decoded alone, and each further point together
    with all before it and the last mask. Objects that come with a mask have had their earlier
    answers; they are decoded once.

    Args:
        sam: the model.
        embeddings: (b, c, g, g).
        frames: the frame of each image.
        prompts: the objects of each image, in its original frame.
        policy: how the model was trained.
        multimask: as in ``object_logits``.
    """
    disks = policy.click_disks

    def decode(
        wanted: Sequence[int], shown: Sequence[ImagePrompts]
    ) -> list[tuple[Float[Tensor, "_ 1 _ _"], Float[Tensor, " _"]]]:
        return object_logits(
            sam, embeddings, frames, shown, images=wanted, multimask=multimask, click_disks=disks
        )

    turns = [_turns(item) if policy.is_interactive else [item] for item in prompts]
    found = decode(range(len(prompts)), [one[0] for one in turns])
    for turn in range(1, max(map(len, turns), default=0)):
        due = [place for place, one in enumerate(turns) if len(one) > turn]
        shown = [
            replace(turns[place][turn], mask_logits=found[place][0].float().cpu().numpy())
            for place in due
        ]
        for place, answer in zip(due, decode(due, shown), strict=True):
            found[place] = answer
    return found


def asked_last(
    sam: SegmentationModel,
    embedding: Float[Tensor, "1 c g g"],
    frame: Frame,
    prompts: ImagePrompts,
    policy: PromptPolicy,
    *,
    multimask: bool | None,
) -> ImagePrompts:
    """Return what ``answers_to_prompts`` asks last about an image.

    These are all prompts, with the answer to those before the last one.

    Args:
        sam: the model.
        embedding: (1, c, g, g).
        frame: the frame of the image.
        prompts: its objects.
        policy: how the model was trained.
        multimask: as in ``object_logits``.
    """
    turns = _turns(prompts) if policy.is_interactive else [prompts]
    if len(turns) == 1:
        return prompts
    ((answer, _),) = answers_to_prompts(
        sam, embedding, [frame], [turns[-2]], policy, multimask=multimask
    )
    return replace(prompts, mask_logits=answer.float().cpu().numpy())


def _turns(prompts: ImagePrompts) -> list[ImagePrompts]:
    """Return the prompts of an image in the order of answers, each with all before it."""
    points, labels = prompts.points, prompts.point_labels
    if prompts.has_masks or points is None or labels is None or is_single(prompts):
        return [prompts]
    first = 1 if prompts.boxes is None else 0
    turns = []
    for count in range(first, points.shape[1] + 1):
        some = (points[:, :count], labels[:, :count]) if count else (None, None)
        turns.append(replace(prompts, points=some[0], point_labels=some[1]))
    return turns
