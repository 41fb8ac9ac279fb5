"""The adapted model against its base outside the domain."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from samadapt.evaluation.forgetting import answers, forgetting, grid_boxes, photographs


def test_boxes_lie_within_and_cover_the_image():
    boxes = grid_boxes((30, 60))
    assert boxes.shape == (16, 4)
    assert boxes.min() == 0
    assert boxes.max(axis=0).tolist() == [40, 20, 60, 30]
    covered = np.zeros((30, 60), bool)
    for x0, y0, x1, y1 in np.rint(boxes).astype(int):
        covered[y0:y1, x0:x1] = True
    assert covered.all()


def test_the_photographs_are_there_and_in_colour():
    for name, image in photographs().items():
        assert image.dtype == np.uint8, name
        assert image.ndim == 3, name
        assert image.shape[2] == 3, name


def test_an_unchanged_model_forgets_nothing_and_a_changed_one_does(any_sam):
    images = {name: image[::8, ::8] for name, image in list(photographs().items())[:2]}
    before = answers(any_sam, nullcontext, images)
    again = forgetting(before, answers(any_sam, nullcontext, images))
    assert again["iou"] == 1
    assert again["masks"] > 0
    with torch.no_grad():
        for weight in any_sam.mask_decoder.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    changed = forgetting(before, answers(any_sam, nullcontext, images))
    assert changed["iou"] < 1
    assert changed["masks"] == again["masks"]


def test_means_are_over_images_and_empty_references_left_out():
    base = {"a": np.zeros((3, 2, 2), bool), "b": np.zeros((1, 2, 2), bool)}
    base["a"][0] = True
    base["a"][1, 0, 0] = True
    base["b"][:] = True
    adapted = {name: masks.copy() for name, masks in base.items()}
    adapted["a"][0, 0] = False
    found = forgetting(base, adapted)
    assert found["images"]["a"] == {"iou": pytest.approx(0.75), "lowest": 0.5, "masks": 2}
    assert found["iou"] == pytest.approx((0.75 + 1) / 2)
    nothing = forgetting({"a": np.zeros((2, 3, 3), bool)}, {"a": np.ones((2, 3, 3), bool)})
    assert nothing["iou"] is None
    assert "finds nothing" in nothing["reason"]
