"""Prompts for SAM 2 and SAM 3, and the comparison of their answers with transformers'."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samadapt.sam.types import MaskOutput, Prompts

KINDS = ("nothing", "point", "points", "box", "box and points", "mask", "box and mask")


def prompts_of(kind: str, side: int, low: int) -> Prompts:
    """Two objects for an image, or one object with a mask."""
    one = "mask" in kind
    boxes = side * torch.tensor([[[0.1, 0.2, 0.6, 0.7], [0.3, 0.1, 0.9, 0.8]]])
    points = side * torch.tensor([[[[0.4, 0.3], [0.7, 0.8]], [[0.5, 0.5], [0.1, 0.9]]]])
    labels = torch.tensor([[[1, 0], [1, -1]]])
    given: dict[str, Tensor] = {}
    if "box" in kind:
        given["boxes"] = boxes[:, :1] if one else boxes
    if "point" in kind:
        count = 2 if "points" in kind else 1
        given["points"], given["point_labels"] = points[:, :, :count], labels[:, :, :count]
    if one:
        generator = torch.Generator().manual_seed(3)
        given["masks"] = 4 * torch.randn(1, 1, 1, low, low, generator=generator)
    return Prompts(**given)


def theirs_of(model: Any, images: Tensor, prompts: Prompts, *, multimask: bool) -> Any:
    return model(
        pixel_values=images,
        input_points=prompts.points,
        input_labels=prompts.point_labels,
        input_boxes=prompts.boxes,
        input_masks=None if prompts.masks is None else prompts.masks[:, 0],
        multimask_output=multimask,
    )


def check_equal(found: MaskOutput, expected: Any, error: float = 1e-5) -> None:
    pairs = (
        (found.logits, expected.pred_masks),
        (found.iou, expected.iou_scores),
        (found.object_score, expected.object_score_logits),
    )
    for mine, other in pairs:
        assert mine is not None
        assert mine.shape == other.shape
        # The score is one number at the end of everything; fp32 rounds it a little more.
        allowed = 3 * error if mine is found.object_score else error
        assert float((mine - other).abs().max()) <= allowed * max(1.0, float(other.abs().max()))


def gradients(parameters: dict[str, Tensor], output: list[Tensor], seed: int) -> dict[str, Tensor]:
    """Gradients of a random sum of some tensors, by the names of the parameters."""
    generator = torch.Generator().manual_seed(seed)
    total = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in output)
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {k: g for k, g in zip(parameters, found, strict=True) if g is not None}
