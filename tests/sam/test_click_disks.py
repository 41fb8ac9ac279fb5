"""Disks at clicks, in the mask that goes back to the decoder."""

from __future__ import annotations

import pytest
import torch

from samadapt.sam.click_disks import LOGIT, RADIUS, obey_clicks, with_click_disks
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


def test_the_answer_obeys_every_click_in_its_cell_alone():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 1, SIDE, SIDE)
    points = torch.rand(2, 3, 4, 2) * SIZE
    points[0, 0, 0] = torch.tensor([0.0, SIZE])  # the border belongs to the last cell
    labels = torch.tensor([1, 0, -1, 2]).expand(2, 3, 4)
    found = obey_clicks(logits, Prompts(points=points, point_labels=labels), SIZE)
    cells = (points * SIDE / SIZE).long().clamp(max=SIDE - 1)
    for image in range(2):
        for number in range(3):
            (x, y), (u, v) = cells[image, number, 0], cells[image, number, 1]
            plane = found[image, number, 0]
            assert plane[v, u] == -LOGIT
            assert (y, x) == (v, u) or plane[y, x] == LOGIT
    assert int((found != logits).sum()) <= 2 * 3 * 2
    assert obey_clicks(logits, Prompts(), SIZE) is logits


def test_the_last_click_into_a_cell_counts():
    points, labels = torch.full((1, 1, 2, 2), 30.0), torch.tensor([[[0, 1]]])
    logits = torch.full((1, 1, 1, SIDE, SIDE), 3 * LOGIT)
    found = obey_clicks(logits, Prompts(points=points, point_labels=labels), SIZE)
    assert found[0, 0, 0, 7, 7] == LOGIT
    assert int((found != logits).sum()) == 1
