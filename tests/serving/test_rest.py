"""The plain interface: encode once, prompt many times, several adapters, files."""

from __future__ import annotations

import base64
import gzip
from io import BytesIO

import nibabel as nib
import numpy as np
import pytest
from oracle import STEP
from PIL import Image
from served import oracle_model, phantom, png, scan
from starlette.testclient import TestClient

from samadapt.serving.limits import ServingLimits
from samadapt.serving.masks_out import from_run_lengths


def mask_of(answer: dict) -> np.ndarray:
    return from_run_lengths(answer["mask"]["size"], answer["mask"]["counts"])


def nifti(values: np.ndarray, affine: np.ndarray) -> bytes:
    return nib.Nifti1Image(values, affine).to_bytes()


def put(client: TestClient, content: bytes, name: str) -> str:
    answer = client.post("/api/images", params={"name": name}, content=content)
    assert answer.status_code == 201, answer.text
    return f"/api/images/{answer.json()['image']}"


def begin(client: TestClient, image: str, **body: object) -> str:
    answer = client.post(f"{image}/objects", json=body)
    assert answer.status_code == 201, answer.text
    return f"{image}/objects/{answer.json()['object']}"


@pytest.fixture
def picture(client_of):
    client = client_of()
    return client, put(client, png(phantom()), "cells.png")


def test_every_kind_of_prompt_gives_the_mask_of_the_picture(picture):
    client, image = picture
    corners = [[9, 5.5], [15, 5.5], [15, 8.5], [9, 8.5]]
    for prompt, value in (
        ({"kind": "points", "points": [[4, 2]]}, STEP),
        ({"kind": "box", "box": [10, 6, 14, 8]}, 2 * STEP),
        ({"kind": "scribble", "points": [[3, 2], [6, 2.5], [8, 3]]}, STEP),
        ({"kind": "lasso", "points": corners}, 2 * STEP),
    ):
        answer = client.post(f"{begin(client, image)}/prompts", json=prompt)
        assert answer.status_code == 200, answer.text
        assert np.array_equal(mask_of(answer.json()), phantom() == value), prompt
        assert isinstance(answer.json()["predicted_iou"], float)


def test_an_image_is_encoded_once_for_all_prompts(make_state, client_of):
    model = oracle_model()
    client = client_of(make_state(model))
    image = put(client, png(phantom()), "cells.png")
    for point in ([4, 2], [12, 7], [3, 3]):
        prompt = {"kind": "points", "points": [point]}
        assert client.post(f"{begin(client, image)}/prompts", json=prompt).status_code == 200
    assert len(model.sam.seen) == 1
    assert client.get(image).json()["encoded"] == {"oracle": {"slices": 1, "of": 1}}


def test_adapters_stand_side_by_side_on_one_image(make_state, client_of):
    state = make_state(oracle_model("one"), oracle_model("two", kind="semantic"))
    client = client_of(state)
    listed = client.get("/api/adapters").json()
    assert [(one["name"], one["takes_prompts"], one["finds_classes"]) for one in listed] == [
        ("one", True, False),
        ("two", False, True),
    ]
    image = put(client, png(phantom()), "cells.png")
    refused = client.post(f"{image}/objects", json={"adapter": "two"})
    assert refused.status_code == 422
    assert "takes no prompts" in refused.json()["detail"]
    found = client.post(f"{image}/classes", json={"adapter": "two"}).json()
    for one, value in zip(found["slices"], (STEP, 2 * STEP), strict=True):
        assert np.array_equal(mask_of(one), phantom() == value)
    assert client.post(f"{image}/classes", json={}).status_code == 422
    unknown = client.post(f"{image}/objects", json={"adapter": "on"})
    assert "did you mean 'one'?" in unknown.json()["detail"]


def test_a_prompt_stays_in_its_slice_until_it_is_carried_and_undo_goes_back(client_of):
    client = client_of()
    # (z, y, x) as a NIfTI file in LPS: the transpose, with x and y reversed in RAS.
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    image = put(client, nifti(scan().T, affine), "scan.nii")
    one = begin(client, image, label="b")
    prompt = {"kind": "points", "points": [[4.5, 2.5]], "slice": 2}
    answer = client.post(f"{one}/prompts", json=prompt).json()
    assert answer["changed_slices"] == [2]
    assert np.array_equal(mask_of(answer), scan()[2] == STEP)
    assert client.post(f"{one}/carry").json()["changed_slices"] == [1, 3, 4]
    for index in range(7):
        mask = mask_of(client.get(f"{one}/mask", params={"slice": index}).json())
        assert np.array_equal(mask, scan()[index] == STEP)
    assert client.post(f"{one}/undo").json()["changed_slices"] == [1, 3, 4]
    assert client.post(f"{one}/undo").json()["changed_slices"] == [2]
    assert client.post(f"{one}/undo").status_code == 409


RAS, LPS = np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0])
TURN = np.array([[0.8, 0.6, 0, 3], [0, 0, 1, -5], [0.6, -0.8, 0, 7], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("affine", [RAS, LPS, TURN], ids=["RAS", "LPS", "oblique"])
def test_the_file_of_labels_lies_on_the_grid_of_the_source(affine, client_of, make_state):
    values = np.zeros((15, 15, 7), np.uint8)
    values[3:9, 2:6, 1:5], values[3:5, 2, 1], values[12, 13, 3] = STEP, 0, 2 * STEP
    client = client_of(make_state(oracle_model(axis="axial")))
    content = nifti(values, affine)
    image = put(client, content, "scan.nii")
    # Where the object is in the slices of the model is read off the pictures that it sees.
    count = client.get(image).json()["encoded"]["oracle"]["of"]
    pictures = [client.get(f"{image}/slices/{index}").content for index in range(count)]
    shown = np.stack([np.array(Image.open(BytesIO(one)).convert("L")) for one in pictures])
    index, row, column = (int(side) for side in np.argwhere(shown == STEP)[-1])
    one = begin(client, image, label="b")
    prompt = {"kind": "points", "points": [[column + 0.5, row + 0.5]], "slice": index}
    prompt["carry"] = True
    assert client.post(f"{one}/prompts", json=prompt).status_code == 200
    answer = client.get(f"{image}/labels", params={"format": "nii.gz"})
    saved = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    assert np.array_equal(np.asarray(saved.dataobj), 2 * (values == STEP))
    assert np.allclose(saved.affine, affine)
    assert client.get(f"{image}/labels", params={"format": "png"}).status_code == 422


def test_labels_of_a_picture_are_saved_and_accepted(tmp_path, make_state, client_of):
    client = client_of(make_state(corrections=tmp_path / "accepted"))
    image = put(client, png(phantom()), "../../etc/cells.png")
    for point, label in (([4, 2], "a"), ([12, 7], "b")):
        prompt = {"kind": "points", "points": [point]}
        client.post(f"{begin(client, image, label=label)}/prompts", json=prompt)
    saved = client.get(f"{image}/labels", params={"format": "png"})
    assert np.array_equal(np.array(Image.open(BytesIO(saved.content))), phantom() // STEP)
    coco = client.get(f"{image}/labels", params={"format": "json"}).json()
    assert [one["category_id"] for one in coco["annotations"]] == [1, 2]
    assert coco["images"][0]["file_name"] == "cells.png"
    assert client.post(f"{image}/accept", json={}).json() == {"file": "cells.png"}
    written = list(tmp_path.rglob("*.png"))
    assert written == [tmp_path / "accepted" / "cells.png"]
    assert written[0].read_bytes() == saved.content
    assert client.post(f"{image}/accept", json={"objects": [7]}).status_code == 404


def test_a_mask_that_is_sent_is_corrected_by_the_next_prompt(picture):
    client, image = picture
    one = begin(client, image)
    rough = {"size": [9, 15], "counts": [20, 3, 112]}
    answer = client.post(f"{one}/prompts", json={"kind": "mask", "mask": rough}).json()
    assert answer["mask"] == rough
    answer = client.post(f"{one}/prompts", json={"kind": "points", "points": [[4, 2]]}).json()
    assert np.array_equal(mask_of(answer), phantom() == STEP)
    client.post(f"{one}/undo")
    assert client.get(f"{one}/mask").json()["mask"] == rough


def test_a_batch_reports_what_fails_beside_what_does_not(client_of, make_state):
    client = client_of(make_state(oracle_model(), oracle_model("finds", kind="semantic")))
    data = base64.b64encode(png(phantom())).decode()
    body = {
        "pictures": [
            {"name": "a.png", "data": data, "points": [[4, 2], [12, 7]]},
            {"name": "b.png", "data": "AAAA", "points": [[1, 1]]},
            {"name": "c.png", "data": data, "boxes": [[10, 6, 14, 8]]},
            {"name": "d.png", "data": data},
        ]
    }
    rows = client.post("/api/batch", json=body).json()["pictures"]
    masks = [mask_of(one) for one in rows[0]["objects"]]
    assert np.array_equal(masks[0], phantom() == STEP)
    assert np.array_equal(masks[1], phantom() == 2 * STEP)
    assert rows[1]["error"].startswith("b.png: ")
    assert np.array_equal(mask_of(rows[2]["objects"][0]), phantom() == 2 * STEP)
    assert "needs one" in rows[3]["error"]
    body = {"adapter": "finds", "pictures": body["pictures"][3:]}
    (row,) = client.post("/api/batch", json=body).json()["pictures"]
    assert [one["class"] for one in row["slices"]] == ["a", "b"]


def test_an_image_ends_when_it_is_dropped_or_nobody_uses_it(client_of, make_state):
    client = client_of(make_state(limits=ServingLimits(sessions=2)))
    first, second = (put(client, png(phantom()), "cells.png") for _ in range(2))
    full = client.post("/api/images", params={"name": "c.png"}, content=png(phantom()))
    assert full.status_code == 503
    one = begin(client, first)
    assert client.delete(one).status_code == 200
    assert client.get(f"{one}/mask").status_code == 404
    assert client.delete(first).status_code == 200
    assert client.get(first).status_code == 410
    assert client.get(second).json()["remaining_seconds"] > 500
    put(client, png(phantom()), "cells.png")


def test_mistakes_name_the_key_and_what_was_expected(picture):
    client, image = picture
    one = begin(client, image)
    for body, text in (
        ({"kind": "points", "points": [[99, 1]]}, "width 15 and height 9"),
        ({"kind": "box"}, "box: expected"),
        ({"kind": "box", "box": [4, 4, 2, 2]}, "x0 < x1"),
        ({"kind": "lasso", "points": [[1, 1]]}, "at least three"),
        ({"kind": "points", "slice": 1, "points": [[1, 1]]}, "slice must be 0 to 0"),
        ({"kind": "mask", "mask": {"size": [9, 15], "counts": [3]}}, "add up to"),
        ({"kind": "circle"}, "kind: Input should be 'points'"),
        ({"kind": "points", "pionts": []}, "pionts: Extra inputs"),
    ):
        answer = client.post(f"{one}/prompts", json=body)
        assert answer.status_code == 422, body
        assert text in answer.json()["detail"], answer.text
    assert client.post("/api/images", params={"name": "a.exe"}, content=b"x").status_code == 415
    broken = client.post("/api/images", params={"name": "a.png"}, content=b"no picture")
    assert broken.status_code == 422
    assert broken.json()["detail"].startswith("a.png: ")
    wrong = client.post(f"{image}/objects", json={"label": "c"})
    assert wrong.json()["detail"] == "label: expected one of a, b"


def test_the_description_lists_every_address_and_what_it_takes(client_of):
    client = client_of()
    found = client.get("/api/openapi.json").json()
    assert found["openapi"] == "3.1.0"
    assert set(found["paths"]) == {
        route.path.replace(":int", "")
        for route in client.app._app.routes
        if route.path.startswith("/api/") and route.path not in ("/api/docs", "/api/openapi.json")
    }
    schema = found["components"]["schemas"]["Prompt"]
    assert set(schema["properties"]["kind"]["enum"]) == {
        *("points", "box", "scribble", "lasso", "mask")
    }
    page = client.get("/api/docs").text
    assert all(path in page for path in found["paths"])
    assert "<script" not in page
