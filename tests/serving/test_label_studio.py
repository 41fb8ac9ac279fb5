"""Label Studio's ML backend: drawings become brush labels, images come from one origin."""

from __future__ import annotations

import base64
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from oracle import STEP
from served import phantom, png

from samadapt.errors import ConfigError
from samadapt.serving.label_studio_files import LabelStudioFiles
from samadapt.serving.label_studio_rle import brush_runs
from samadapt.serving.refused import RefusedError

CONFIG = """
<View>
  <!-- a comment -->
  <Image name="img" value="$photo"/>
  <BrushLabels name="brush" toName="img"><Label value="cell"/></BrushLabels>
  <KeyPointLabels name="point" toName="img" smart="true"><Label value="cell"/></KeyPointLabels>
</View>
"""


def decoded(runs: list[int]) -> np.ndarray:
    """Decode a stream by its published layout; see ``label_studio_rle.py``."""
    bits, at = "".join(f"{byte:08b}" for byte in runs), 0

    def read(size: int) -> int:
        nonlocal at
        at += size
        return int(bits[at - size : at], 2)

    count, size = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        is_run, length = read(1), read(sizes[read(2)]) + 1
        values += [read(size)] * length if is_run else [read(size) for _ in range(length)]
    assert len(bits) - at < 8
    return np.array(values, np.uint8)


@pytest.mark.parametrize("shape", [(9, 15), (1, 1), (3, 70_000)])
def test_brush_runs_are_decoded_to_the_mask_in_four_channels(shape):
    rng = np.random.default_rng(0)
    mask = rng.random(shape) < 0.3
    if shape[1] > 100:  # runs that are longer than the longest length
        mask[:, 100:-1] = False
    found = decoded(brush_runs(mask)).reshape(*shape, 4)
    assert np.array_equal(found, np.where(mask, 255, 0)[..., None].repeat(4, -1))


def point(x: float, y: float, **more: object) -> dict:
    value = {"x": x, "y": y, "width": 0.3, "keypointlabels": ["cell"]}
    return {"type": "keypointlabels", "value": value, "is_positive": True, **more}


def task(*drawn: dict, photo: str | None = None) -> dict:
    inline = "data:image/png;base64," + base64.b64encode(png(phantom())).decode()
    return {
        "tasks": [{"id": 1, "data": {"photo": photo or inline}}],
        "label_config": CONFIG,
        "project": "7.1700000000",
        "params": {"login": None, "password": None, "context": {"result": list(drawn)}},
    }


def mask_of(answer: dict) -> np.ndarray:
    (result,) = answer["results"][0]["result"]
    assert (result["from_name"], result["to_name"]) == ("brush", "img")
    assert (result["original_width"], result["original_height"]) == (15, 9)
    assert result["value"]["brushlabels"] == ["cell"]
    return decoded(result["value"]["rle"]).reshape(9, 15, 4)[..., 0] == 255


def test_key_points_and_rectangles_become_brush_labels(client_of):
    client = client_of()
    answer = client.post("/label-studio/predict", json=task(point(100 * 4 / 15, 100 * 2 / 9)))
    assert np.array_equal(mask_of(answer.json()), phantom() == STEP)
    sides = {"x": 10 / 0.15, "y": 6 / 0.09, "width": 4 / 0.15, "height": 2 / 0.09}
    box = {"type": "rectanglelabels", "value": sides | {"rectanglelabels": ["cell"]}}
    answer = client.post("/label-studio/predict", json=task(box))
    assert np.array_equal(mask_of(answer.json()), phantom() == 2 * STEP)


def test_the_backend_answers_what_label_studio_asks_when_it_connects(client_of):
    client = client_of()
    for path in ("/label-studio/health", "/label-studio/", "/label-studio"):
        assert client.get(path).json()["status"] == "UP"
    body = {"project": "7.17", "schema": CONFIG, "hostname": "http://x", "access_token": "y"}
    answer = client.post("/label-studio/setup", json=body).json()
    assert answer == {"model_version": "samadapt oracle"}
    body = {"action": "ANNOTATION_CREATED", "project": {"id": 7}}
    assert client.post("/label-studio/webhook", json=body).status_code == 201
    assert client.post("/label-studio/predict", json=task()).json()["results"] == [
        {"result": [], "score": 0.0}
    ]
    body = {"schema": '<View><Image name="i" value="$a"/></View>'}
    refused = client.post("/label-studio/setup", json=body)
    assert refused.status_code == 422
    assert "BrushLabels" in refused.json()["detail"]


@pytest.fixture
def studio():
    """Stand in for Label Studio: (address, headers of the requests that came)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, dict(self.headers)))
            if self.path == "/moved.png":
                self.send_response(302)
                self.send_header("Location", "/data/a.png")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png(phantom()))

        def log_message(self, *given):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_images_are_fetched_from_the_one_origin_with_its_key(studio, client_of, make_state):
    origin, asked = studio
    client = client_of(make_state(label_studio=LabelStudioFiles(origin, "the-key")))
    drawn = point(100 * 4 / 15, 100 * 2 / 9)
    for photo in ("/data/a.png", f"{origin}/data/a.png"):
        answer = client.post("/label-studio/predict", json=task(drawn, photo=photo))
        assert np.array_equal(mask_of(answer.json()), phantom() == STEP)
    assert [path for path, _ in asked] == ["/data/a.png"] * 2
    assert asked[0][1]["Authorization"] == "Token the-key"


@pytest.mark.parametrize(
    "photo", ["http://localhost:1/a.png", "//evil.example/a.png", "file:///etc/passwd", "s3://b/a"]
)
def test_images_elsewhere_are_refused(photo, studio):
    origin, asked = studio
    with pytest.raises(RefusedError, match="not at the address") as caught:
        LabelStudioFiles(origin, "the-key").fetch(photo, 1000)
    assert caught.value.status == 403
    assert not asked


def test_redirects_and_large_images_are_refused(studio, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    files = LabelStudioFiles(studio[0])
    assert files.fetch("/a.png", 1000) == png(phantom())
    with pytest.raises(RefusedError, match="status 302"):
        files.fetch("/moved.png", 1000)
    with pytest.raises(RefusedError, match="more than 10 bytes"):
        files.fetch("/a.png", 10)


def test_an_address_that_is_none_is_refused_at_the_start():
    for wrong in ("localhost:8080", "ftp://x", "http://"):
        with pytest.raises(ConfigError, match="label_studio: expected an address"):
            LabelStudioFiles(wrong)
