"""QuPath's SAM API: prompts on a picture, answered as GeoJSON."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from oracle import STEP
from served import oracle_model, phantom, png
from skimage.draw import polygon2mask

from samadapt.serving import qupath
from samadapt.version import __version__


@pytest.fixture
def state(make_state):
    return make_state(oracle_model("one"), oracle_model("two"), oracle_model("no", "semantic"))


def picture() -> str:
    return base64.b64encode(png(phantom())).decode()


def mask_of(feature: dict) -> np.ndarray:
    """Fill the outer ring of a polygon; the centre of a pixel is half a pixel from its corner."""
    assert feature["geometry"]["type"] == "Polygon"
    ring = np.array(feature["geometry"]["coordinates"][0])
    assert np.array_equal(ring[0], ring[-1])
    return polygon2mask(phantom().shape, ring[:, ::-1] - 0.5)


@pytest.mark.parametrize(
    ("prompt", "value"),
    [
        ({"bbox": [10, 6, 14, 8]}, 2 * STEP),
        ({"point_coords": [[4, 2], [12, 7]], "point_labels": [1, 0]}, STEP),
        ({"bbox": [2, 1, 9, 4], "point_coords": [[4, 2]], "point_labels": [1]}, STEP),
    ],
)
def test_a_prompt_gives_the_outline_of_the_object(prompt, value, client_of, state):
    body = {"type": "vit_h", "b64img": picture(), "multimask_output": False, **prompt}
    (feature,) = client_of(state).post("/sam/", json=body).json()
    assert np.array_equal(mask_of(feature), phantom() == value)
    assert feature["properties"]["sam_model"] == "one"
    assert isinstance(feature["properties"]["quality"], float)


def test_the_adapters_stand_in_the_place_of_weights(client_of, state):
    client = client_of(state)
    listed = client.get("/sam/weights/", params={"type": "vit_l"}).json()
    assert listed == [
        {"type": "vit_l", "name": "one", "url": "samadapt:one"},
        {"type": "vit_l", "name": "two", "url": "samadapt:two"},
    ]
    body = {"b64img": picture(), "bbox": [2, 1, 9, 4], "checkpoint_url": listed[1]["url"]}
    (feature,) = client.post("/sam/", json=body).json()
    assert feature["properties"]["sam_model"] == "two"
    assert client.post("/sam/", json=body | {"checkpoint_url": "samadapt:x"}).status_code == 422
    assert client.get("/sam/version/").text == __version__
    assert client.get("/sam/progress/").json() == {"message": None, "percent": -1}


def test_the_same_picture_is_encoded_once(client_of, state):
    client = client_of(state)
    for prompt in ({"bbox": [2, 1, 9, 4]}, {"point_coords": [[12, 7]]}):
        assert client.post("/sam/", json={"b64img": picture(), **prompt}).status_code == 200
    assert len(state.models.first.sam.seen) == 1


def test_everything_is_found_with_the_given_grid(client_of, state, monkeypatch):
    asked = []

    def found(view, points_per_side, min_area):
        asked.append((view.model.name, points_per_side, min_area))
        return [(phantom() == STEP, 0.9), (phantom() == 2 * STEP, 0.8)]

    monkeypatch.setattr(qupath, "find_everything", found)
    body = {"b64img": picture(), "points_per_side": 8, "min_mask_region_area": 5}
    features = client_of(state).post("/sam/automask/", json=body).json()
    assert asked == [("one", 8, 5)]
    assert np.array_equal(mask_of(features[1]), phantom() == 2 * STEP)
    assert [one["properties"]["quality"] for one in features] == [0.9, 0.8]


def test_a_request_without_a_prompt_or_a_picture_is_refused(client_of, state):
    client = client_of(state)
    for body, text in (
        ({"b64img": picture()}, "bbox or point_coords"),
        ({"b64img": "!", "bbox": [0, 0, 1, 1]}, "base64"),
        ({"b64img": "AAAA", "bbox": [0, 0, 1, 1]}, "picture.png"),
        ({"b64img": picture(), "point_coords": [[1, 1]], "point_labels": [1, 0]}, "point_labels"),
    ):
        answer = client.post("/sam/", json=body)
        assert answer.status_code == 422
        assert text in answer.json()["detail"]
