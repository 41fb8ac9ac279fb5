"""Overlays: exact outlines, honest choices, and pictures that hold at any shape and class name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from samadapt.data.types import IGNORED
from samadapt.errors import DataError
from samadapt.evaluation.case_scores import CaseClassScore
from samadapt.evaluation.label_stack import choose_slice
from samadapt.reports import overlays


def score(case, name, dice):
    return CaseClassScore(case, name, {"dice": dice, "iou": dice}, 1, 1, 1)


def test_cases_are_chosen_by_mean_dice_over_classes():
    first = zip("abcde", (0.9, 0.2, 0.5, 0.6, 0.8), strict=True)
    second = zip("abcde", (0.1, 0.9, 0.5, math.nan, 0.9), strict=True)
    rows = [
        *(score(case, "x", dice) for case, dice in first),
        *(score(case, "y", dice) for case, dice in second),
        score("f", "x", math.nan),
    ]
    assert overlays.choose_cases(rows) == {"best": "e", "median": "b", "worst": "c"}
    assert overlays.choose_cases(rows[:2]) == {"best": "a", "worst": "b"}
    assert overlays.choose_cases(rows[:1]) == {"best": "a"}
    assert overlays.choose_cases(rows[-1:]) == {}


def test_the_slice_with_the_most_ground_truth_is_shown():
    truth = np.zeros((4, 5, 6), np.int16)
    assert choose_slice(truth) == 3
    truth[0, 0, 1] = 7
    truth[:2, 0, 4] = 1
    assert choose_slice(truth) == 4


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=7)))
@settings(max_examples=100, deadline=None)
def test_outline_is_every_edge_between_inside_and_outside(mask):
    padded = np.pad(mask, 1).astype(int)
    edges = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    lines = overlays.outline(mask)
    lengths = np.abs(lines[:, 1] - lines[:, 0])
    assert lengths.sum() == edges
    assert (lengths.min(axis=1) == 0).all() if len(lines) else edges == 0
    for (x0, y0), (x1, y1) in lines:
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        if (x0 == x1 and (y1 - y0) % 2 == 1) or (y0 == y1 and (x1 - x0) % 2 == 1):
            row, column = (round(y), x) if x0 == x1 else (y, round(x))
            sides = (
                ((row, math.floor(column)), (row, math.ceil(column)))
                if x0 == x1
                else ((math.floor(row), column), (math.ceil(row), column))
            )
            inside = [
                0 <= r < mask.shape[0] and 0 <= c < mask.shape[1] and bool(mask[int(r), int(c)])
                for r, c in sides
            ]
            assert sorted(inside) == [False, True]


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def has_colour(picture, colour, tolerance=3):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(picture.astype(int) - wanted).max(axis=-1) <= tolerance).any())


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((40, 30), (1, 1)), ((12, 90), (3, 1)), ((90, 12), (1, 1)), ((700, 600), (1, 1))],
)
def test_panels_hold_at_any_shape(tmp_path, shape, spacing):
    image = np.full((*shape, 3), (120, 60, 180), np.uint8)
    truth = np.zeros(shape, int)
    truth[2:-2, 2 : shape[1] // 2] = 1
    path = overlays.draw_overlay(
        image,
        truth,
        truth * 0,
        truth * 2,
        ["grey", "white"],
        path=tmp_path / "new" / "a.png",
        title="case, slice 3",
        scores={
            "zero_shot": {"grey": 0.0, "white": math.nan},
            "adapted": {"grey": 0.1, "white": 0.2},
        },
        boxes=[[2, 2, shape[1] - 2, shape[0] - 2]],
        points=[[3, 3], [5, 5]],
        point_labels=[1, 0],
        spacing=spacing,
    )
    picture = pixels(path)
    first_panel = picture[:, : picture.shape[1] // 4]
    violet = (first_panel == (120, 60, 180)).all(axis=-1)
    rows, columns = violet.any(axis=1), violet.any(axis=0)
    drawn_ratio = rows.sum() / columns.sum()
    assert drawn_ratio == pytest.approx(shape[0] * spacing[0] / (shape[1] * spacing[1]), rel=0.1)
    assert has_colour(picture, overlays.COLOURS[0])
    assert has_colour(picture, overlays.COLOURS[1])
    assert picture.shape[1] > 4 * 2.5 * overlays.DPI


def test_more_classes_than_colours_and_names_that_matplotlib_would_hide(tmp_path):
    count = 24
    truth = np.arange(count + 1).repeat(8).reshape(1, -1).repeat(30, axis=0)
    image = np.zeros((*truth.shape, 3), np.uint8)
    names = [f"_class $x$ {index}" for index in range(count)]
    few = overlays.draw_overlay(image, truth % 2, None, truth % 2, ["x"], path=tmp_path / "1.png")
    many = overlays.draw_overlay(image, truth, None, truth, names, path=tmp_path / "2.png")
    assert pixels(many).shape[0] > pixels(few).shape[0]  # the legend got its rows


def test_labels_of_another_shape_are_refused(tmp_path):
    image = np.zeros((4, 5, 3), np.uint8)
    truth = np.zeros((4, 5), int)
    with pytest.raises(DataError, match=r"adapted must be \(h, w\) = \(4, 5\); got \(5, 4\)"):
        overlays.draw_overlay(image, truth, None, truth.T, ["x"], path=tmp_path / "a.png")


def test_ignored_pixels_are_hatched(tmp_path):
    """White stripes mark only the ignored part; the rest of the page is unchanged."""
    image = np.full((40, 40, 3), 60, np.uint8)
    labels = np.zeros((40, 40), np.int16)
    labels[4:12, 4:12] = 1
    pages = []
    for value in (0, IGNORED):
        labels[20:36, 10:38] = value
        path = tmp_path / f"{value}.png"
        overlays.draw_overlay(image, labels, labels * 0, None, ["a"], path=path)
        pages.append(np.asarray(Image.open(path).convert("RGB")).astype(int))
    changed = np.abs(pages[1] - pages[0]).sum(axis=2) > 0
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    hatched = pages[1][rows[0] : rows[-1], columns[0] : columns[-1]]
    height, width = hatched.shape[:2]
    assert width / height == pytest.approx(28 / 16, rel=0.05)  # one panel: the ground truth's
    white = (hatched > 200).all(axis=2)
    assert 0.03 < white.mean() < 0.5
    assert not white.all(axis=0).any()
    truth = np.stack([labels, np.where(labels > 0, 1, 0)], axis=-1)
    truth[..., 0] = IGNORED
    assert choose_slice(truth) == 1
