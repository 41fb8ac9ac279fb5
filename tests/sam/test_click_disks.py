"""Disks at clicks, in the mask that goes back to the decoder."""

from __future__ import annotations

import pytest
import torch

from samadapt.sam.click_disks import LOGIT, RADIUS, with_click_disks
from samadapt.sam.types import Prompts

SIDE, SIZE = 50, 200


def painted(points, labels, masks=None):
    masks = torch.zeros(1, 1, 1, SIDE, SIDE) if masks is None else masks
    prompts = Prompts(
        points=torch.tensor([[points]], dtype=torch.float32),
        point_labels=torch.tensor([[labels]]),
        masks=masks,
    )
    return with_click_disks(prompts, SIZE).masks[0, 0, 0]


def test_disks_have_the_sign_the_place_and_the_size_of_their_clicks():
    found = painted([[40.0, 120.0], [160.0, 20.0]], [1, 0])
    rows, columns = torch.meshgrid(*[torch.arange(SIDE) + 0.5] * 2, indexing="ij")
    for x, y, value in ((10, 30, LOGIT), (40, 5, -LOGIT)):  # a cell is 4 pixels
        disk = (columns - x) ** 2 + (rows - y) ** 2 <= (RADIUS * SIDE) ** 2
        assert disk.any()
        assert torch.equal(found == value, disk)
    assert int((found != 0).sum()) == int((found.abs() == LOGIT).sum())


def test_logits_that_are_surer_stay_and_later_clicks_count():
    sure = torch.full((1, 1, 1, SIDE, SIDE), 3 * LOGIT)
    assert (painted([[40.0, 40.0]], [1], sure) == 3 * LOGIT).all()
    assert painted([[40.0, 40.0], [40.0, 40.0]], [1, 0], sure)[10, 10] == -LOGIT
    assert painted([[40.0, 40.0], [40.0, 40.0]], [0, 1])[10, 10] == LOGIT


@pytest.mark.parametrize("label", [-1, 2, 3])
def test_padding_and_corners_of_boxes_draw_nothing(label):
    assert (painted([[40.0, 40.0]], [label]) == 0).all()


def test_without_masks_or_points_nothing_changes():
    prompts = Prompts(masks=torch.zeros(1, 1, 1, SIDE, SIDE))
    assert with_click_disks(prompts, SIZE) is prompts
    prompts = Prompts(points=torch.zeros(1, 1, 1, 2), point_labels=torch.ones(1, 1, 1))
    assert with_click_disks(prompts, SIZE) is prompts
