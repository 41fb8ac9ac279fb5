"""Interactive training: the decoder answers several times, as to a user who corrects it.

This is the algorithm of the SAM paper (Kirillov et al. 2023, appendix A). For each object::

    round 1   a point drawn uniformly from the object, or its noisy box      -> three masks
      |  the logits of the mask with the highest predicted IoU
      v
    round 2   ... and a point drawn uniformly from where that mask is wrong  -> one mask
      ...
    round 11

Of the 10 rounds after the first, 8 add a click. Two do not, so that the model also learns to refine
its own mask: one of them at a random place before one of the clicks, and one at the end. The logits
that go back are neither thresholded nor bounded.

The variant ``sam2`` follows the training code of SAM 2 (``training/model/sam2.py`` there): 7
clicks, no round without a click, a tenth of the clicks drawn from the whole object, and a click on
the background if the mask has no error. In the variant ``sam`` such an object gets a padding point,
which says nothing.

Everything random is drawn before the first round, so the state of the generator does not depend on
what the model predicts. An error has a different number of pixels in each round; a click is
therefore drawn as a place in [0, 1) among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from samadapt.sam.click_disks import with_click_disks
from samadapt.sam.types import Prompts

if TYPE_CHECKING:
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.sam.types import MaskOutput
    from samadapt.system.arrays import Array
    from samadapt.training.keyed_random import BatchRandom

Decode = Callable[[Prompts, bool], "MaskOutput"]
"""Decodes prompts, with several masks an object or with one."""

BOX_SHARE = 0.5
"""Chance that an object's first prompt is its box and not a point."""

TRUTH_SHARE = 0.1
"""Share of the clicks that the variant ``sam2`` draws from the whole object."""


@dataclass(frozen=True)
class Click:
    """What is drawn at random for one click on each of p objects in b images.

    Attributes:
        place: (b, p) in [0, 1), the place of the click among the pixels that it is drawn from.
        from_truth: (b, p) bool, whether that is the whole object and not the error.
        even_if_right: click on the background where the mask has no error.
    """

    place: Float[Tensor, "b p"]
    from_truth: Bool[Tensor, "b p"]
    even_if_right: bool


@dataclass(frozen=True)
class Rounds:
    """The rounds in which the decoder answers to one batch.

    Attributes:
        by_box: (b, p) bool, whether the first prompt of an object is its box and not a point.
        clicks: for each round after the first one, the click that it adds, or None.
        click_disks: whether the masks that go back show the clicks.
    """

    by_box: Bool[Tensor, "b p"]
    clicks: tuple[Click | None, ...]
    click_disks: bool = False

    @property
    def count(self) -> int:
        """Number of rounds."""
        return 1 + len(self.clicks)


def draw_rounds(policy: PromptPolicy, objects: int, random: BatchRandom) -> Rounds:
    """Draw everything that is random in the rounds of one batch.

    Args:
        policy: how many clicks there are, and which variant.
        objects: number p of objects in each of the b images.
        random: the generators of the b images. That of the batch draws which rounds have no click.
    """
    is_sam2 = policy.variant == "sam2"
    share = TRUTH_SHARE if is_sam2 else 0.0
    # (b, p) and (b, corrections, p): each image draws its own.
    by_box = _stacked([rng.random(objects) for rng in random.own]) < BOX_SHARE
    shape = policy.corrections, objects
    places = _stacked([rng.random(shape) for rng in random.own])
    from_truth = _stacked([rng.random(shape) for rng in random.own]) < share
    clicks: list[Click | None] = [
        Click(place=places[:, k], from_truth=from_truth[:, k], even_if_right=is_sam2)
        for k in range(policy.corrections)
    ]
    if not is_sam2:
        clicks.insert(int(random.shared.integers(len(clicks))), None)
        clicks.append(None)
    return Rounds(by_box, tuple(clicks), policy.click_disks)


def _stacked(rows: Sequence[Array]) -> Tensor:
    return torch.from_numpy(np.stack(rows))


def answers(
    decode: Decode,
    prompts: Prompts,
    targets: Integer[Tensor, "b p s s"],
    rounds: Rounds,
    threshold: float,
    cell: float,
) -> Iterator[MaskOutput]:
    """Decode the objects of a batch round by round, and click where the last mask is wrong.

    The caller may run backward after each round: the next one needs no graph of the last.

    Args:
        decode: runs the mask decoder on the embeddings of the batch.
        prompts: a box (b, p, 4) and a point (b, p, 1, 2) of each object in the model frame. A point
            of label -1 is none; such an object starts with its box.
        targets: (b, p, s, s), 1 in the object, 0 outside, -1 where nothing is known; no click goes
            there.
        rounds: what was drawn for this batch.
        threshold: logit above which a pixel belongs to a mask.
        cell: side of a cell of the targets, in pixels of the model frame.

    Yields:
        What the decoder answers in each round.
    """
    shown = first_prompts(prompts, rounds.by_box)
    # A single prompt is ambiguous, so the first round may give a part, the whole and more.
    output = decode(shown, True)
    yield output
    for click in rounds.clicks:
        logits = best_logits(output)
        if click is not None:
            points, labels = draw_clicks(targets, logits[:, :, 0] > threshold, click)
            shown = add_points(shown, cell * points, labels)
        asked = replace(shown, masks=logits)
        if rounds.click_disks:
            asked = with_click_disks(asked, image_size=round(cell * targets.shape[-1]))
        output = decode(asked, False)
        yield output


def first_prompts(prompts: Prompts, by_box: Bool[Tensor, "b p"]) -> Prompts:
    """Return two points of each object: the corners of its box, or its point and a padding point.

    Both are what the prompt encoder makes of a box alone and of a point alone, so objects of both
    kinds share one tensor.
    """
    boxes, points, labels = prompts.boxes, prompts.points, prompts.point_labels
    if boxes is None or points is None or labels is None:
        raise ValueError("interactive training needs a box and a point of each object")
    by_box = by_box.to(boxes.device) | (labels[:, :, 0] < 0)
    corners = torch.unflatten(boxes, -1, (2, 2))  # (b, p, 2, 2)
    clicked = torch.cat([points, torch.zeros_like(points)], dim=2)
    corner_labels = torch.tensor([2, 3], device=labels.device).expand(*labels.shape[:2], 2)
    click_labels = torch.cat([labels, torch.full_like(labels, -1)], dim=2)
    return Prompts(
        points=torch.where(by_box[..., None, None], corners, clicked),
        point_labels=torch.where(by_box[..., None], corner_labels, click_labels),
        is_complete=True,
    )


def best_logits(output: MaskOutput) -> Float[Tensor, "b p 1 s s"]:
    """Return the logits of each object's mask with the highest predicted IoU, without gradient."""
    best = output.iou.argmax(dim=2)[:, :, None, None, None]
    return output.logits.detach().take_along_dim(best, dim=2)


def draw_clicks(
    targets: Integer[Tensor, "b p s s"], predicted: Bool[Tensor, "b p s s"], click: Click
) -> tuple[Float[Tensor, "b p 2"], Integer[Tensor, "b p"]]:
    """Draw a click of each object from the pixels where its mask is wrong.

    Returns:
        Points (b, p, 2), the centres (x, y) of cells of the targets; and labels (b, p): 1 where the
        object was missed, 0 where the mask exceeds it, -1 if there is nothing to click on.
    """
    inside, outside = targets > 0, targets == 0
    wrong = (inside & ~predicted) | (outside & predicted)
    from_truth = click.from_truth.to(targets.device)[..., None, None]
    region = torch.where(from_truth, inside, wrong).flatten(2)  # (b, p, s * s)
    if click.even_if_right:
        is_right = ~region.any(dim=2, keepdim=True)
        region = region | (outside.flatten(2) & is_right)
    count = region.sum(dim=2)
    # The click is pixel number k of its region, counted from 1 row by row.
    place = click.place.to(targets.device) * count
    number = torch.minimum(place.long() + 1, count.clamp(min=1))
    at = torch.searchsorted(region.cumsum(dim=2), number[..., None]).clamp(max=region.shape[2] - 1)
    is_inside = inside.flatten(2).take_along_dim(at, dim=2)[:, :, 0].long()
    side = targets.shape[-1]
    points = torch.cat([at % side, at // side], dim=2) + 0.5
    return points, torch.where(count > 0, is_inside, -1)


def add_points(
    prompts: Prompts, points: Float[Tensor, "b p 2"], labels: Integer[Tensor, "b p"]
) -> Prompts:
    """Return the prompts with one more point of each object."""
    if prompts.points is None or prompts.point_labels is None:
        raise ValueError("there are no points to which one could be added")
    return replace(
        prompts,
        points=torch.cat([prompts.points, points[:, :, None].to(prompts.points)], dim=2),
        point_labels=torch.cat([prompts.point_labels, labels[:, :, None]], dim=2),
    )
