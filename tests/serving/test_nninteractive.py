"""The official client of nnInteractive drives the server."""

from __future__ import annotations

import gc
import threading
import time

import httpx
import numpy as np
import pytest
from oracle import STEP
from served import TOKEN, oracle_model, scan

from samadapt.serving.limits import ServingLimits

remote = pytest.importorskip("nnInteractive.inference.remote")
pytestmark = pytest.mark.slow


@pytest.fixture
def connect(listening):
    """``connect(url, image)``: a client that has sent its image."""
    opened = []

    def make(url=None, image=None):
        session = remote.nnInteractiveRemoteInferenceSession(url or listening(), TOKEN)
        opened.append(session)
        image = scan() if image is None else image
        session.set_image(image[None], {"spacing": [2.0, 1.0, 1.0]})
        session.set_target_buffer(np.zeros(image.shape, np.uint8))
        return session

    yield make
    for session in opened:
        session.close()


def test_a_point_is_answered_in_its_slice_and_carried_through_the_volume(connect):
    session = connect()
    assert session.original_image_shape == (1, 7, 9, 15)
    box = session.add_point_interaction((2, 2, 4), include_interaction=True)
    assert np.array_equal(session.target_buffer, scan() == STEP)
    assert box == [[1, 5], [1, 5], [2, 9]]
    session.reset_interactions()
    session.add_point_interaction((6, 6, 11), include_interaction=True)
    assert np.array_equal(session.target_buffer, scan() == 2 * STEP)


def test_undo_takes_interactions_back_one_by_one(connect):
    session = connect()
    session.add_point_interaction((2, 2, 4), include_interaction=True)
    first = session.target_buffer.copy()
    session.add_point_interaction((6, 6, 11), include_interaction=True)
    assert session.target_buffer.sum() > first.sum()
    assert session.undo()
    assert np.array_equal(session.target_buffer, first)
    assert session.undo()
    assert not session.target_buffer.any()
    assert not session.undo()


def test_a_box_bounds_the_object_if_it_spans_slices(connect):
    session = connect()
    session.add_bbox_interaction([[2, 5], [1, 5], [2, 9]], include_interaction=True)
    expected = (scan() == STEP) & (np.arange(7) >= 2)[:, None, None]
    assert np.array_equal(session.target_buffer, expected)
    session.reset_interactions()
    session.add_bbox_interaction([[2, 3], [1, 5], [2, 9]], include_interaction=True)
    assert np.array_equal(session.target_buffer, scan() == STEP)


def test_a_box_in_another_plane_is_a_click_in_its_centre(connect):
    session = connect()
    session.add_bbox_interaction([[1, 5], [1, 5], [4, 5]], include_interaction=True)
    assert np.array_equal(session.target_buffer, scan() == STEP)


def test_scribbles_and_lassos_are_answered_whole_or_as_a_part_of_the_image(connect):
    session = connect()
    drawn = np.zeros((7, 9, 15), np.uint8)
    drawn[2, 2, 3:8] = 1
    session.add_scribble_interaction(drawn, include_interaction=True)
    assert np.array_equal(session.target_buffer, scan() == STEP)
    session.reset_interactions()
    part = np.ones((1, 1, 5), np.uint8)
    sides = [[2, 3], [2, 3], [3, 8]]
    session.add_scribble_interaction(part, include_interaction=True, interaction_bbox=sides)
    assert np.array_equal(session.target_buffer, scan() == STEP)
    session.reset_interactions()
    outline = np.zeros((7, 9, 15), np.uint8)
    outline[6, 5:9, 9:15] = 1
    outline[6, 6:8, 10:14] = 0
    session.add_lasso_interaction(outline, include_interaction=True)
    assert np.array_equal(session.target_buffer, scan() == 2 * STEP)


def test_an_initial_segmentation_stays_where_nobody_prompts(connect):
    session = connect()
    rough = np.zeros((7, 9, 15), np.uint8)
    rough[1:4, 2:4, 4:6] = 1
    session.add_initial_seg_interaction(rough)
    assert np.array_equal(session.target_buffer, rough)
    session.add_point_interaction((2, 2, 4), include_interaction=True)
    expected = rough.astype(bool)
    expected[2] = scan()[2] == STEP
    assert np.array_equal(session.target_buffer, expected)
    session.undo()
    assert np.array_equal(session.target_buffer, rough)
    session.add_initial_seg_interaction(rough, run_prediction=True)
    expected = (scan() == STEP) & rough.any((1, 2))[:, None, None]
    assert np.array_equal(session.target_buffer, expected)


def test_interactions_without_an_answer_are_answered_together(connect):
    session = connect()
    session.add_point_interaction((2, 2, 4), include_interaction=True, run_prediction=False)
    assert not session.target_buffer.any()
    assert session._predict() == [[1, 5], [1, 5], [2, 9]]
    assert np.array_equal(session.target_buffer, scan() == STEP)
    assert session._predict() is None


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_an_adapter_sees_its_own_slices_of_the_array(axis, connect, listening, make_state):
    url = listening(make_state(oracle_model(axis=axis)))
    values = np.zeros((15, 15, 15), np.uint8)
    values[3:9, 2:6, 7:14], values[3:5, 2, 7:9] = STEP, 0
    session = connect(url, values)
    session.add_point_interaction((6, 4, 10), include_interaction=True)
    assert np.array_equal(session.target_buffer, values == STEP)


def test_a_picture_is_an_array_of_one_slice(connect):
    session = connect(image=scan()[2:3])
    session.add_point_interaction((0, 2, 4), include_interaction=True)
    assert np.array_equal(session.target_buffer[0], scan()[2] == STEP)


def test_two_clients_do_not_see_each_other(connect, listening):
    url = listening()
    one, other = connect(url), connect(url)
    one.add_point_interaction((2, 2, 4), include_interaction=True)
    other.add_point_interaction((6, 6, 11), include_interaction=True)
    assert np.array_equal(one.target_buffer, scan() == STEP)
    assert np.array_equal(other.target_buffer, scan() == 2 * STEP)
    one.close()
    other.add_point_interaction((2, 2, 4), include_interaction=True)
    assert (other.target_buffer > 0).sum() == (scan() > 0).sum()


# A client that was refused leaves its socket open.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_full_server_says_so_until_a_client_leaves(connect, listening, make_state):
    url = listening(make_state(limits=ServingLimits(sessions=1)))
    first = connect(url)
    with pytest.raises(remote.ServerAtCapacityError, match="1 sessions"):
        connect(url)
    answer = httpx.post(f"{url}/claim", headers={"Authorization": f"Bearer {TOKEN}"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    first.close()
    connect(url).add_point_interaction((2, 2, 4), include_interaction=True)
    gc.collect()


def test_a_lease_ends_without_actions_although_the_client_lives(connect, listening, make_state):
    state = make_state(limits=ServingLimits(idle_seconds=0.4))
    session = connect(listening(state))
    assert 0 < session.lease_status()["remaining_seconds"] <= 0.4
    until = time.monotonic() + 10
    while len(state.sessions) and time.monotonic() < until:
        time.sleep(0.05)
        if len(state.sessions):
            session._http.get("/capabilities")
    with pytest.raises(remote.SessionExpiredError, match="expired"):
        session.add_point_interaction((2, 2, 4), include_interaction=True)
    with pytest.raises(remote.SessionExpiredError):
        session.heartbeat()


def test_a_client_that_is_silent_loses_its_session(client_of, make_state):
    client = client_of(make_state(limits=ServingLimits(liveness_seconds=0.2)))
    lease = {"X-Lease-Token": client.post("/claim").json()["lease_token"]}
    assert client.post("/heartbeat", headers=lease).status_code == 200
    time.sleep(0.3)
    assert client.post("/heartbeat", headers=lease).status_code == 410


def test_the_client_learns_what_the_model_does(connect, listening, make_state):
    session = connect()
    assert session.supported_interactions == dict.fromkeys(
        ["points", "bbox2d", "bbox3d", "scribble", "lasso"], True
    )
    assert session.supports_undo
    assert session.supports_initial_label
    assert session.ping()
    session.set_do_autozoom(False)
    url = listening(make_state(oracle_model(kind="semantic")))
    session = connect(url)
    assert not any(session.supported_interactions.values())
    with pytest.raises(httpx.HTTPStatusError) as caught:
        session.add_point_interaction((2, 2, 4), include_interaction=True)
    assert caught.value.response.status_code == 400
    assert "without prompts" in caught.value.response.json()["detail"]


def test_an_interaction_whose_client_did_not_wait_is_taken_back(connect, make_state, listening):
    state = make_state()
    session = connect(listening(state))
    waits, go = threading.Event(), threading.Event()

    def busy():
        waits.set()
        go.wait(10)

    state.worker.call(busy)
    assert waits.wait(5)
    session._http.timeout = httpx.Timeout(0.2)
    with pytest.raises(httpx.ReadTimeout):
        session.add_point_interaction((2, 2, 4), include_interaction=True)
    go.set()
    session._http.timeout = httpx.Timeout(20)
    session.add_point_interaction((6, 6, 11), include_interaction=True)
    assert np.array_equal(session.target_buffer, scan() == 2 * STEP)


def test_mistakes_are_answered_with_400_and_change_nothing(connect):
    session = connect()
    session.add_point_interaction((2, 2, 4), include_interaction=True)
    before = session.target_buffer.copy()
    for do in (
        lambda: session.add_point_interaction((7, 0, 0), include_interaction=True),
        lambda: session.add_point_interaction((0, 0), include_interaction=True),
        lambda: session.add_bbox_interaction([[9, 10], [0, 1], [0, 1]], include_interaction=True),
        lambda: session.add_scribble_interaction(np.zeros((7, 9, 15), np.uint8), True),
        lambda: session.add_scribble_interaction(np.ones((7, 9, 14), np.uint8), True),
        lambda: session.set_target_buffer(np.zeros((7, 9, 16), np.uint8)),
        lambda: session.set_image(np.zeros((2, 7, 9, 15), np.float32)),
    ):
        with pytest.raises(httpx.HTTPStatusError) as caught:
            do()
        assert caught.value.response.status_code == 400, caught.value.response.text
    session.target_buffer = before.copy()
    session.add_point_interaction((2, 2, 5), include_interaction=True)
    assert np.array_equal(session.target_buffer, before)
