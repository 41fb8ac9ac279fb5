"""Attacks on the server: each is refused, none is an error of the server, and nothing leaks."""

from __future__ import annotations

import gzip
import json
import random
import socket
import struct
import tempfile
import time
import zlib
from pathlib import Path

import blosc2
import nibabel as nib
import numpy as np
import pytest
import tifffile
from served import PLACE, TOKEN, phantom, png
from starlette.testclient import TestClient

from samadapt.serving.app import make_app
from samadapt.serving.guard import HEADERS
from samadapt.serving.limits import ServingLimits
from samadapt.serving.packed_arrays import pack

SMALL = ServingLimits(upload_bytes=200_000, json_bytes=100_000, voxels=10_000, chunk_seconds=0.3)


@pytest.fixture
def client(client_of, make_state, tmp_path):
    return client_of(make_state(limits=SMALL, corrections=tmp_path / "accepted"))


def refused(answer, status, text=""):
    assert answer.status_code == status, answer.text
    assert text in answer.json()["detail"]
    assert all(answer.headers[name] == value for name, value in HEADERS.items())
    said = answer.text + str(answer.headers)
    assert TOKEN not in said
    assert tempfile.gettempdir() not in said
    assert "Traceback" not in said


def upload(client, content, name="a.png", **options):
    return client.post("/api/images", params={"name": name}, content=content, **options)


@pytest.mark.parametrize("given", ["", "Bearer ", "Bearer wrong", "Basic eDp5", "Bearer ü"])
def test_a_wrong_token_is_refused_everywhere(given, client):
    del client.headers["Authorization"]
    headers = {"Authorization": given.encode()}
    for method, path in (("GET", "/"), ("POST", "/claim"), ("GET", "/healthz"), ("GET", "/no")):
        refused(client.request(method, path, headers=headers), 401, "token")
    refused(client.get("/token/wrong/healthz"), 401)
    refused(client.get("/?token=wrong"), 401)
    refused(client.get("/", headers={"Cookie": "samadapt_token=wrong"}), 401)


def test_the_token_may_come_in_a_header_a_path_or_a_cookie(client):
    assert client.get("/healthz").json() == {"ok": True}
    del client.headers["Authorization"]
    assert client.get(f"/token/{TOKEN}/healthz").json() == {"ok": True}
    answer = client.get(f"/?token={TOKEN}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=strict"} <= set(answer.headers["set-cookie"].split("; "))
    assert client.get("/healthz").json() == {"ok": True}


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:1527"},
        {"Host": "10.0.0.1:1527"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
def test_other_names_and_origins_are_refused_with_the_right_token(headers, client):
    refused(client.get("/healthz", headers=headers), 403)
    refused(client.post("/claim", headers=headers), 403)


def test_on_all_addresses_numbers_are_accepted_and_other_names_are_not(make_state):
    app = make_app(make_state(), TOKEN, {"this-machine"}, any_address=True)
    with TestClient(app, base_url="http://this-machine:1527") as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        for host in ("this-machine", "192.168.7.9:1527", "[::1]:1527", "10.0.0.1"):
            assert client.get("/healthz", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "10.0.0.1.evil.example", "0x7f.1.evil"):
            refused(client.get("/healthz", headers={"Host": host}), 403)


def test_our_own_page_is_no_other_origin(client):
    headers = {"Origin": PLACE, "Sec-Fetch-Site": "same-origin"}
    assert client.post("/claim", headers=headers).status_code == 200


def test_large_bodies_are_refused_before_they_are_read(client):
    refused(upload(client, b"x" * 300_000), 413, "200,000 bytes")

    def parts():
        for _ in range(30):
            yield b"x" * 10_000

    refused(upload(client, parts()), 413, "200,000 bytes")
    refused(client.post("/api/batch", content=b" " * 150_000), 413)
    refused(upload(client, b"", headers={"Content-Length": "9" * 30}), 413)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_bombs_are_refused_by_what_their_headers_declare(client):
    size = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    lines = zlib.compress(bytes(50_000))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    refused(upload(client, bomb), 413, "at most 10,000")
    volume = gzip.compress(nib.Nifti1Image(np.zeros((64, 64, 64), np.uint8), np.eye(4)).to_bytes())
    assert len(volume) < 2000
    refused(upload(client, volume, "a.nii.gz"), 413, "at most 10,000")
    lease = {"X-Lease-Token": client.post("/claim").json()["lease_token"]}
    bomb = pack(np.zeros((1, 100, 100, 100), np.float32))
    assert len(bomb) < 2000
    refused(client.post("/set_image", content=bomb, headers=lease), 413, "at most 10,000")
    # A frame that unpacks to more than the header says.
    frame = blosc2.compress2(bytes(1_000_000), typesize=1)
    head = struct.pack("<4s4B", b"NNIA", 1, 1, 4, 5) + b"uint8" + struct.pack("<4q", 1, 1, 10, 10)
    lie = head + struct.pack("<IQQ", 1, 100, len(frame)) + frame
    refused(client.post("/set_image", content=lie, headers=lease), 400, "declared size")


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "..", "a.png/..", "", ".png", "x" * 5000, "a\0.nii.x"],
)
def test_a_name_that_is_no_picture_is_refused(name, client):
    refused(upload(client, png(phantom()), name), 415)


def test_no_name_leads_out_of_the_folder(client, tmp_path):
    names = ("../../a.png", "..\\b.png", "/srv/c.png", "C:d.png", "%2e%2e/e.png", "\0f.png")
    for name in names:
        answer = upload(client, png(phantom()), name)
        assert answer.status_code == 201, answer.text
        image = f"/api/images/{answer.json()['image']}"
        client.post(f"{image}/objects", json={})
        answer = client.post(f"{image}/accept", json={})
        assert answer.status_code == 200, answer.text
        client.delete(image)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == len(names)
    assert {path.parent for path in written} == {tmp_path / "accepted"}


OME = """<?xml version="1.0"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">
<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="15" SizeY="9" SizeZ="1" SizeC="1"
SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData IFD="0" PlaneCount="1">
<UUID FileName="{name}">urn:uuid:00000000-0000-0000-0000-000000000001</UUID></TiffData></Pixels>
</Image></OME>"""


@pytest.mark.parametrize("place", ["{folder}/secret.tif", "../secret.tif", "/etc/passwd"])
def test_a_file_cannot_refer_to_other_files_of_the_machine(place, client, tmp_path):
    tifffile.imwrite(tmp_path / "secret.tif", np.full((9, 15), 170, np.uint8), metadata=None)
    text = OME.format(name=place.format(folder=tmp_path))
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, np.full((9, 15), 85, np.uint8), description=text, metadata=None)
    refused(upload(client, path.read_bytes(), "a.tif"), 422, "a.tif: ")


def test_paths_of_the_machine_are_not_served(client):
    for path in ("/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/style.css/../x"):
        refused(client.get(path), 404)


def test_a_session_cannot_be_guessed_or_taken(client):
    image = upload(client, png(phantom())).json()["image"]
    assert len(image) >= 32
    for other in ("0", image[:-1], image + "0", image.swapcase()):
        refused(client.get(f"/api/images/{other}"), 410)
        refused(client.post("/heartbeat", headers={"X-Lease-Token": other}), 410)


def test_addresses_elsewhere_are_never_opened(client, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **options: asked.append(given))
    monkeypatch.setattr(socket.socket, "connect", lambda self, place: asked.append(place))
    body = {"b64img": "AAAA", "bbox": [0, 0, 2, 2]}
    for url in ("http://evil.example/a.pth", "file:///etc/passwd", "/etc/passwd"):
        refused(client.post("/sam/", json=body | {"checkpoint_url": url}), 403, "downloads nothing")
    refused(client.post("/sam/weights/", json={"url": "http://evil.example"}), 403)
    config = '<View><Image name="i" value="$image"/><BrushLabels name="b" toName="i"/></View>'
    drawn = {"type": "keypointlabels", "value": {"x": 1, "y": 1}}
    for url in ("http://evil.example/a.png", "file:///etc/passwd", "/etc/passwd"):
        task = {"tasks": [{"data": {"image": url}}], "label_config": config}
        task["params"] = {"context": {"result": [drawn]}}
        refused(client.post("/label-studio/predict", json=task), 403)
    assert not asked


def test_xml_that_grows_is_refused(client):
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><View>&b;</View>'
    refused(client.post("/label-studio/setup", json={"schema": bomb}), 422, "declarations")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 50_000,
        b'{"a":' * 9_000,
        b'{"kind":"points","points":[[1e999,1]]}',
        b'{"kind":"points","points":[[NaN,1]]}',
        b'{"kind":"box","box":[' + b"9" * 5000 + b",0,0,0]}",
        b'{"kind":"points","slice":' + b"9" * 300 + b"}",
        b'{"kind":"mask","mask":{"size":[100000,100000],"counts":[10000000000]}}',
        b"\xff\xfe\x00",
        b"null",
    ],
)
def test_json_that_is_deep_huge_or_broken_is_refused(body, client):
    image = f"/api/images/{upload(client, png(phantom())).json()['image']}"
    client.post(f"{image}/objects", json={})
    answer = client.post(f"{image}/objects/1/prompts", content=body)
    assert answer.status_code in (400, 422)
    refused(answer, answer.status_code)


def test_a_slow_client_is_cut_off_while_others_are_answered(listening, make_state):
    url = listening(make_state(limits=SMALL))
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as slow:
        head = f"POST /api/images?name=a.png HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        head += f"Authorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n\r\nab"
        slow.sendall(head.encode())
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", port)) as other:
            line = f"GET /token/{TOKEN}/healthz HTTP/1.0\r\nHost: localhost\r\n\r\n"
            other.sendall(line.encode())
            assert other.recv(1000).startswith(b"HTTP/1.1 200")
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - begun < 5


def test_temporary_files_are_gone_after_a_request(client):
    def left():
        return {path.name for path in Path(tempfile.gettempdir()).glob("samadapt-*")}

    before = left()
    upload(client, b"no picture")
    image = f"/api/images/{upload(client, png(phantom())).json()['image']}"
    client.post(f"{image}/objects", json={})
    assert client.get(f"{image}/labels", params={"format": "png"}).status_code == 200
    assert left() <= before


VALUES = [None, True, -1, 0, 1e300, 2**70, "", "x", "é" * 500, [], [[]], {}, [1, 2], {"a": 1}]


def mutated(rng: random.Random, body: dict) -> bytes:
    """Return a body with one or two values replaced, or with bytes replaced."""
    body = json.loads(json.dumps(body))
    for _ in range(rng.randint(0, 2)):
        if body:
            body[rng.choice(list(body))] = rng.choice(VALUES)
    content = bytearray(json.dumps(body).encode())
    if rng.random() < 0.3:
        for _ in range(rng.randint(1, 5)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def test_no_request_is_an_error_of_the_server(client):
    """200 requests with values and bytes that no client sends."""
    rng = random.Random(21)
    lease = client.post("/claim").json()["lease_token"]
    headers = {"X-Lease-Token": lease}
    values = np.pad(phantom(), 1)[None, None]
    client.post("/set_image", content=pack(values), headers=headers)
    image = f"/api/images/{upload(client, png(phantom())).json()['image']}"
    client.post(f"{image}/objects", json={})
    point = {"coordinates": [0, 3, 5], "include_interaction": True, "run_prediction": True}
    box = {"bbox_coords": [[0, 1], [1, 5], [2, 9]], "include_interaction": True}
    prompt = {"kind": "points", "points": [[4, 2]], "slice": 0, "box": [1, 1, 5, 5], "carry": True}
    runs = {"kind": "mask", "mask": {"size": [9, 15], "counts": [20, 3, 112]}}
    sam = {"b64img": "iVBORw0KGgo=", "bbox": [0, 0, 5, 5], "point_coords": [[1, 1]]}
    studio = {"tasks": [{"data": {}}], "params": {"context": {"result": [{}]}}, "label_config": "<"}
    bodies = {
        "/add_point_interaction": point,
        "/add_bbox_interaction": box,
        "/set_target_buffer": {"shape": [1, 11, 17], "dtype": "uint8"},
        f"{image}/objects/1/prompts": prompt,
        f"{image}/objects/1/prompts?": runs,
        f"{image}/objects": {"adapter": "oracle", "label": "a"},
        f"{image}/accept": {"objects": [1]},
        "/api/batch": {"adapter": None, "pictures": [{"name": "a.png", "data": "AAAA"}]},
        "/sam/": sam,
        "/sam/automask/": sam,
        "/label-studio/predict": studio,
        "/label-studio/setup": {"schema": "<View/>"},
        "/label-studio/webhook": {"action": "x"},
    }
    packed = pack(values[0])
    for _ in range(150):
        path = rng.choice(list(bodies))
        answer = client.post(path, content=mutated(rng, bodies[path]), headers=headers)
        assert answer.status_code < 500, (path, answer.request.content, answer.text)
    for _ in range(50):
        path = rng.choice(["/set_image", "/add_scribble_interaction", "/add_lasso_interaction"])
        content = bytearray(packed)
        for _ in range(rng.randint(0, 4)):
            # Not the compressed bytes, whose faults blosc2 answers for.
            content[rng.randrange(50)] = rng.randrange(256)
        meta = mutated(rng, {"include_interaction": True, "interaction_bbox": None})
        meta = meta.decode("latin-1").encode("ascii", "replace")
        about = headers | {"X-Meta": meta.replace(b"\r", b"").replace(b"\n", b"")}
        answer = client.post(path, content=bytes(content), headers=about)
        assert answer.status_code < 500, (path, bytes(content), answer.text)
    assert client.post("/heartbeat", headers=headers).status_code == 200
