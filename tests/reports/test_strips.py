"""Slices drawn small."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from samadapt.evaluation.label_stack import LabelStack
from samadapt.reports.overlays import COLOURS
from samadapt.reports.strips import GAP, LONGEST, MOST, SHORTEST, chosen_indices, draw_strip


@pytest.mark.parametrize("count", [1, MOST, MOST + 1, 300, 1000])
@pytest.mark.parametrize("share", [0.0, 0.37, 1.0])
def test_slices_are_spread_and_hold_the_one_that_matters(count, share):
    always = min(count - 1, int(share * count))
    chosen = chosen_indices(count, always)
    assert always in chosen
    assert len(chosen) <= MOST
    assert chosen == sorted(set(chosen))
    assert len(set(np.diff(chosen))) <= 1
    assert chosen[0] >= 0
    assert chosen[-1] < count


def _opened(strip):
    picture = np.asarray(Image.open(io.BytesIO(strip.picture)).convert("RGB")).astype(int)
    assert picture.shape[:2] == (strip.height, strip.width)
    return picture


def test_labels_lie_where_they_are_and_in_their_colour():
    image = np.full((40, 60, 3), 90, np.uint8)
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 35:55] = 2
    strip = draw_strip(7, image, [labels, None, labels * 0])
    picture = _opened(strip)
    assert strip.index == 7
    width = (strip.width - 2 * GAP) // 3  # image and two maps; None is left out
    assert strip.width == 3 * width + 2 * GAP
    scale = strip.height / 40
    painted = picture[:, width + GAP : 2 * width + GAP]
    colour = np.array(ImageColor.getrgb(COLOURS[1]))
    inside = painted[int(20 * scale), int(45 * scale)]
    assert np.abs(inside - (0.62 * 90 + 0.38 * colour)).max() < 25
    edge = painted[int(20 * scale), int(35 * scale) + 1]
    assert np.abs(edge - colour).sum() < np.abs(inside - colour).sum() / 2
    for panel in (picture[:, :width], picture[:, 2 * (width + GAP) :]):
        assert np.abs(panel - 90).max() < 12


@pytest.mark.parametrize("shape", [(8, 8), (30, 300), (900, 700), (512, 512)])
def test_panels_keep_the_proportions_in_mm_and_are_neither_tiny_nor_huge(shape):
    strip = draw_strip(0, np.zeros((*shape, 3), np.uint8), [], (3.0, 1.0))
    assert strip.height / strip.width == pytest.approx(3 * shape[0] / shape[1], rel=0.02)
    assert max(strip.height, strip.width) <= LONGEST
    assert max(strip.height, strip.width) >= SHORTEST


def test_a_stack_gives_back_what_it_was_given():
    labels = np.random.default_rng(0).integers(0, 255, (5, 7, 9), dtype=np.uint8)
    stack = LabelStack.of(labels)
    assert len(stack) == 5
    assert all((stack[i] == labels[i]).all() for i in range(5))
    large = LabelStack.of([np.ones((512, 512), bool)] * 3)
    assert sum(map(len, large.slices)) < 3 * 512 * 512 / 100


def test_ignored_pixels_are_striped():
    image = np.full((60, 80, 3), 40, np.uint8)
    labels = np.zeros((60, 80), np.int16)
    labels[10:50, 5:40] = -1
    strip = draw_strip(0, image, [labels])
    drawn = np.asarray(Image.open(io.BytesIO(strip.picture)).convert("L")).astype(float)
    scale = strip.height / 60
    panel = drawn[:, (strip.width + GAP) // 2 :]
    inside = panel[round(12 * scale) : round(48 * scale), round(7 * scale) : round(38 * scale)]
    assert 0.1 < (inside > 150).mean() < 0.5
    assert (panel[:, round(42 * scale) :] < 80).all()
