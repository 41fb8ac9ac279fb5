"""An object: what a prompt changes, how far it is carried, and what undo keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracle import STEP
from served import oracle_model, scan

from samadapt.data.types import Volume
from samadapt.errors import DataError, PromptError
from samadapt.serving import served_object
from samadapt.serving.prompting import SlicePrompt, click
from samadapt.serving.refused import RefusedError
from samadapt.serving.served_image import ServedImage
from samadapt.serving.served_object import Change, ServedObject


@pytest.fixture
def view():
    model = oracle_model()
    volume = Volume(np.moveaxis(scan().astype(np.float32), 0, -1))
    image = ServedImage("scan", {model.name: volume})
    yield image.seen_by(model)
    image.close()


def ended(job):
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def at(view, index, x, y, *, inside=True):
    return click(view.shape, index, np.array([[x, y]], dtype=float), inside=inside)


def test_a_prompt_changes_its_slice_and_is_then_carried(view):
    one = ServedObject(view)
    change = ended(one.prompt([at(view, 2, 4.5, 2.5)], carry=False))
    assert change == Change((2,), ((1, 5), (2, 9), (2, 3)))
    assert np.array_equal(one.slices[:, :, 2] == 1, scan()[2] == STEP)
    assert ended(one.carry()).slices == (1, 3, 4)
    assert set(one.predicted_iou) == {2}


def test_the_nearer_of_two_prompted_slices_leads(view):
    one = ServedObject(view)
    ended(one.prompt([at(view, 2, 4.5, 2.5)]))
    change = ended(one.prompt([at(view, 6, 11.5, 6.5)]))
    assert change.slices == (6,)
    assert one.slices[:, :, 1:5].any((0, 1)).all()


def test_a_click_into_the_background_where_nothing_is_changes_nothing(view):
    one = ServedObject(view)
    change = ended(one.prompt([at(view, 3, 0.5, 0.5, inside=False)]))
    assert change == Change((), None)
    # It does not keep the object from being carried there.
    assert ended(one.prompt([at(view, 2, 4.5, 2.5)])).slices == (1, 2, 3, 4)
    assert ended(one.carry()) == Change((), None)


def test_an_abandoned_prompt_leaves_no_trace(view):
    one = ServedObject(view)
    ended(one.prompt([at(view, 2, 4.5, 2.5)], carry=False))
    before = one.slices.copy()
    job = one.prompt([at(view, 3, 4.5, 3.5)])
    next(job)
    job.close()
    assert np.array_equal(one.slices, before)
    assert set(one._object.prompts) == {2}
    assert ended(one.carry()).slices == (1, 3, 4)


def test_undo_keeps_a_bounded_number_of_steps_and_bytes(view, monkeypatch):
    monkeypatch.setattr(served_object, "UNDO_STEPS", 3)
    one = ServedObject(view)
    for _ in range(5):
        ended(one.prompt([at(view, 2, 4.5, 2.5)], carry=False))
    assert [one.undo() is not None for _ in range(4)] == [True, True, True, False]
    monkeypatch.setattr(served_object, "UNDO_BYTES", 0)
    one = ServedObject(view)
    for index in (1, 2):
        ended(one.prompt([at(view, index, 4.5, 2.5)], carry=False))
    assert one.undo() is not None
    assert one.undo() is None


def test_a_slice_has_a_bounded_number_of_points(view):
    one = ServedObject(view)
    points = np.tile([[4.5, 2.5]], (served_object.POINTS, 1))
    one.add([SlicePrompt(2, points=points)])
    with pytest.raises(PromptError, match="at most 64 points"):
        one.add([at(view, 2, 4.5, 2.5)])


def test_a_closed_image_computes_nothing_more(view):
    one = ServedObject(view)
    view._image.close()
    with pytest.raises(RefusedError, match="has ended"):
        ended(one.prompt([at(view, 2, 4.5, 2.5)]))


def test_an_image_of_one_slice_is_refused_by_a_model_of_stacks():
    model = oracle_model()
    model = replace(model, bundle=replace(model.bundle, stack=4))
    image = ServedImage("one", {model.name: Volume(np.zeros((9, 15, 1), np.float32))})
    with pytest.raises(DataError, match="4 neighbouring slices"):
        image.seen_by(model)
