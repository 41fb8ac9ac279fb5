"""An object in a volume: its box, and clicks that are carried to the next prompted slice."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from samadapt.inference.corrected_object import CorrectedObject
from samadapt.prompts.volume_clicker import VolumeBox

BOX = VolumeBox(2, 9, 5, np.array([1, 2, 6, 7], np.float32))


@dataclass
class Walks:
    """Stands in for ``Propagation``: finds everything, and marks it by the number of the walk."""

    threshold: float = 0.0
    calls: list = field(default_factory=list)
    stops: dict = field(default_factory=dict)
    empty: bool = False
    predicted_iou: dict = field(default_factory=dict)

    def __call__(self, prompts, up, down):
        ((index, given),), number = prompts.items(), len(self.calls) + 1
        self.predicted_iou[index] = [0.9]
        self.calls.append((index, given, up[0].limit, down[0].limit))
        last = self.stops.get(number, up[0].limit)
        reached = [index] if self.empty else range(down[0].limit, last + 1)
        for place in reached:
            yield place, {1: torch.full((1, 4, 4), -1.0 if self.empty else float(number))}


@pytest.fixture
def walks():
    return Walks()


@pytest.fixture
def corrected(walks):
    return CorrectedObject(lambda: walks, BOX)


def owners(corrected):
    """Return which walk each slice's mask comes from."""
    return {place: int(one[0, 0, 0]) for place, one in sorted(corrected.logits.items())}


def test_the_box_prompts_its_middle_slice_and_bounds_the_object(corrected, walks):
    ((index, prompts, high, low),) = walks.calls
    assert (index, low, high) == (5, 2, 9)
    assert prompts.boxes.tolist() == [[1, 2, 6, 7]]
    assert prompts.points is None
    assert owners(corrected) == dict.fromkeys(range(2, 10), 1)


def test_a_click_is_carried_to_the_next_prompted_slice(corrected, walks):
    corrected.click((8, 3, 4), 0)
    index, prompts, high, low = walks.calls[1]
    assert (index, low, high) == (8, 6, 9)
    assert prompts.boxes is None
    assert prompts.points.tolist() == [[[4.5, 3.5]]]  # (x, y)
    assert prompts.point_labels.tolist() == [[0]]
    assert prompts.mask_logits.shape == (1, 1, 4, 4)
    assert (prompts.mask_logits == 1).all()  # what the first walk left there
    corrected.click((7, 1, 1), 1)
    assert owners(corrected) == {2: 1, 3: 1, 4: 1, 5: 1, 6: 3, 7: 3, 8: 2, 9: 2}
    assert (walks.calls[2][1].mask_logits == 2).all()


def test_further_clicks_on_a_slice_keep_the_earlier_ones_and_the_box(corrected, walks):
    corrected.click((5, 3, 4), 1)
    corrected.click((5, 0, 2), 0)
    index, prompts, high, low = walks.calls[2]
    assert (index, low, high) == (5, 2, 9)
    assert prompts.boxes.tolist() == [[1, 2, 6, 7]]
    assert prompts.points.tolist() == [[[4.5, 3.5], [2.5, 0.5]]]
    assert prompts.point_labels.tolist() == [[1, 0]]
    assert (prompts.mask_logits == 2).all()


def test_where_a_corrected_mask_vanishes_the_old_one_goes(corrected, walks):
    walks.stops[2] = 7
    corrected.click((6, 3, 4), 1)
    assert owners(corrected) == {2: 1, 3: 1, 4: 1, 5: 1, 6: 2, 7: 2}


def test_a_click_that_empties_its_slice_leaves_the_others(corrected, walks):
    walks.empty = True
    corrected.click((7, 3, 4), 0)
    assert owners(corrected) == {2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: -1, 8: 1, 9: 1}


def test_a_slice_that_has_no_mask_gets_the_clicks_alone(corrected, walks):
    walks.stops[1] = 0
    del corrected.logits[9]
    corrected.click((9, 3, 4), 1)
    assert walks.calls[1][1].mask_logits is None
