"""Clicks that are drawn into the mask which goes back to the decoder.

SAM's prompt encoder turns a click into a token, and the decoder has to learn where in the image it
acts. A model whose base was trained with boxes alone, such as LiteMedSAM, learns that slowly. The
mask that goes back has the place already: a disk of the click's sign at each click, as methods of
interactive segmentation have given clicks to their networks since RITM (Sofiiuk et al. 2021).

A user also expects that what was clicked has the right label afterwards. A network alone does not
promise that, so the answer of such a model obeys: the cell of each click gets its sign.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from samadapt.sam.types import Prompts

RADIUS = 0.03
"""Radius of a disk, as a share of the side of the model's square: 5 of 168 pixels."""

LOGIT = 10.0
"""Logit in a disk, at least; that of a click outside has the other sign."""


def obey_clicks(
    logits: Float[Tensor, "b p m s s"], prompts: Prompts, image_size: int
) -> Float[Tensor, "b p m s s"]:
    """Return logits whose cells under the clicks have the clicks' signs, at least ``LOGIT`` strong.

    Of several clicks into one cell the last counts. Corners of boxes and padding change nothing.

    Args:
        logits: masks of p objects in b images, on any grid over the model's square.
        prompts: the same objects' prompts, in the model frame.
        image_size: side of the model's square, in pixels.
    """
    points, labels = prompts.points, prompts.point_labels
    if points is None or labels is None:
        return logits
    side = logits.shape[-1]
    cells = (points.float() * (side / image_size)).long().clamp(0, side - 1)
    columns = torch.arange(side, device=logits.device)
    for cell, label in zip(cells.unbind(2), labels.unbind(2), strict=True):
        across, down = (columns == cell[..., axis, None] for axis in (0, 1))  # (b, p, side)
        is_here = (down[..., :, None] & across[..., None, :])[:, :, None]
        sign = label[:, :, None, None, None]
        logits = torch.where(is_here & (sign == 1), logits.clamp(min=LOGIT), logits)
        logits = torch.where(is_here & (sign == 0), logits.clamp(max=-LOGIT), logits)
    return logits


def with_click_disks(prompts: Prompts, image_size: int) -> Prompts:
    """Return prompts whose masks show their clicks.

    In the disk of a positive click logits are at least ``LOGIT``, in that of a negative one at most
    ``-LOGIT``. Where disks overlap, the later click counts. Corners of boxes and padding draw
    nothing.

    Args:
        prompts: in the model frame. Without masks or points they are returned as they are.
        image_size: side of the model's square, in pixels.
    """
    masks, points, labels = prompts.masks, prompts.points, prompts.point_labels
    if masks is None or points is None or labels is None:
        return prompts
    side = masks.shape[-1]
    centres = torch.arange(side, device=masks.device) + 0.5
    places = points.float() * (side / image_size)
    for place, label in zip(places.unbind(2), labels.unbind(2), strict=True):
        across = (centres - place[..., :1]) ** 2  # (b, p, side)
        down = (centres - place[..., 1:]) ** 2
        is_near = (down[..., :, None] + across[..., None, :] <= (RADIUS * side) ** 2)[:, :, None]
        sign = label[:, :, None, None, None]
        masks = torch.where(is_near & (sign == 1), masks.clamp(min=LOGIT), masks)
        masks = torch.where(is_near & (sign == 0), masks.clamp(max=-LOGIT), masks)
    return replace(prompts, masks=masks)
