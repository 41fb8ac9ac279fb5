"""The clicks of the NoC protocol, beside a clicker written from its published rules."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from samadapt.prompts.clicker import Clicker

CLICKS = 20


def depths(part):
    """Return the distance of each pixel to the nearest one outside, on a mask padded by one."""
    padded = np.pad(part, 1)
    outside = np.argwhere(~padded)
    found = np.zeros(padded.shape)
    if part.any():
        found[padded] = cdist(np.argwhere(padded), outside).min(1)
    return found[1:-1, 1:-1]


class PublishedClicker:
    """The rules of RITM, as they are written down: whole images and no shortcut."""

    def __init__(self, truth):
        self.inside, self.known = truth == 1, truth != -1
        self.not_clicked = np.ones(truth.shape, bool)

    def click(self, found):
        missed = depths(self.inside & ~found & self.known) * self.not_clicked
        exceeding = depths(~self.inside & found & self.known) * self.not_clicked
        positive = missed.max() > exceeding.max()
        chosen = missed if positive else exceeding
        rows, columns = np.where(chosen == chosen.max())
        self.not_clicked[rows[0], columns[0]] = False
        return rows[0], columns[0], int(positive)


def blobs(rng, shape, share):
    """Return smooth random regions that take about a share of the image."""
    field = gaussian_filter(rng.normal(size=shape), rng.uniform(0.5, 3))
    return field > np.quantile(field, 1 - share)


def test_sequences_are_those_of_the_published_rules_on_200_masks():
    """The model is imitated by the truth with errors that change from click to click."""
    negative = 0
    for number in range(200):
        rng = np.random.default_rng(number)
        shape = tuple(rng.integers(6, 21, 2))
        truth = blobs(rng, shape, rng.uniform(0.1, 0.6)).astype(np.int8)
        if number % 4 == 0:
            truth[blobs(rng, shape, 0.1)] = -1  # pixels that are ignored
        published, mine = PublishedClicker(truth), Clicker(truth == 1, truth != -1)
        found = np.zeros(shape, bool)
        for _ in range(CLICKS):
            row, column, label = published.click(found)
            point, mine_label = mine.click(found)
            assert (point, mine_label) == ((column + 0.5, row + 0.5), label)
            negative += not label
            found = (truth == 1) ^ blobs(rng, shape, rng.uniform(0, 0.4))
    assert CLICKS * 20 < negative < CLICKS * 180


def test_a_pixel_is_clicked_once():
    """A model that does not listen gets another click each time, from the deepest outwards."""
    truth = np.zeros((9, 9), bool)
    truth[2:7, 2:7] = True
    user, nothing = Clicker(truth, np.ones_like(truth)), np.zeros_like(truth)
    clicks = [user.click(nothing) for _ in range(10)]
    assert clicks[0] == ((4.5, 4.5), 1)
    assert len({point for point, _ in clicks}) == 10
    assert [label for _, label in clicks] == [1] * 10
    assert {point for point, _ in clicks[1:9]} == {
        (x + 0.5, y + 0.5) for x in (3, 4, 5) for y in (3, 4, 5) if (x, y) != (4, 4)
    }


def test_when_every_wrong_pixel_was_clicked_the_first_pixel_is_next():
    truth = np.zeros((4, 5), bool)
    truth[2, 3] = True
    user, nothing = Clicker(truth, np.ones_like(truth)), np.zeros_like(truth)
    assert user.click(nothing) == ((3.5, 2.5), 1)
    assert [user.click(nothing) for _ in range(2)] == [((0.5, 0.5), 0)] * 2
