"""The page at the root: its files, and what a user does with it in Chromium."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import socket
import time
import tomllib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from oracle import STEP
from PIL import Image
from served import TOKEN, oracle_model, phantom, png

import samadapt.serving
from samadapt.serving.limits import ServingLimits
from samadapt.serving.page import MEDIA, page_files
from samadapt.serving.server import Listener

FOLDER = Path(samadapt.serving.__path__[0]) / "web"


def test_niivue_is_the_released_file():
    about = json.loads((FOLDER / "vendor" / "niivue.json").read_text(encoding="utf-8"))
    content = (FOLDER / "vendor" / "niivue.umd.js").read_bytes()
    assert hashlib.sha256(content).hexdigest() == about["sha256"]
    licence = (FOLDER / "vendor" / about["license_file"]).read_text(encoding="utf-8")
    assert licence.startswith("BSD 2-Clause License")


def test_the_files_of_the_page_travel_with_the_package():
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["samadapt.serving"]
    found = {path for pattern in patterns for path in FOLDER.parent.glob(pattern)}
    assert {FOLDER / name for name in page_files()} <= found


def test_the_page_names_only_files_that_it_has(client_of):
    client, known = client_of(), page_files()
    html = client.get("/").text
    assert not re.search(r"<script>|<style|style=|\son\w+=|https?://", html)
    named = set(re.findall(r'(?:src|href)="page/([^"]+)"', html))
    for name, content in known.items():
        if name.endswith(".js") and "/" not in name:
            text = content.decode("utf-8")
            named |= set(re.findall(r'from "\./([^"]+)"', text))
            named |= set(re.findall(r'"page/([^"]+)"', text))
            assert "innerHTML" not in text
            assert not re.search(r"https?://", text)
    assert {"main.js", "style.css", "volume_view.js", "vendor/niivue.umd.js"} <= named <= set(known)
    for name in named:
        answer = client.get(f"/page/{name}")
        assert answer.content == known[name]
        assert answer.headers["content-type"].startswith(MEDIA[name.rpartition(".")[2]])
        assert "script-src 'self'" in answer.headers["content-security-policy"]
    for name in ("../app.py", "%2e%2e/app.py", "vendor", "", "/etc/passwd", "main.py"):
        assert client.get(f"/page/{name}").status_code in (401, 404), name


def test_answers_do_not_wait_for_acknowledgements():
    """Each request would take 40 ms more, and a click has 200 ms."""
    with Listener().listen() as opened:
        client = socket.create_connection(opened.getsockname())
        accepted, _ = opened.accept()
        with client, accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# What follows needs a browser. It is started once.

slow = pytest.mark.slow
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WAIT = 20_000  # ms, on a busy machine


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on this machine: install your distribution's package")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class UserOfPage:
    """Opens files, clicks on what is seen, and reads what is said."""

    def __init__(self, page, url: str) -> None:
        self.page, self.url = page, url
        self.errors: list[str] = []
        self.foreign: list[str] = []
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._hear)
        page.on("request", self._see)
        page.goto(f"{url}/?token={TOKEN}")
        self.until("document.getElementById('model').options.length > 0")

    def _hear(self, message) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _see(self, request) -> None:
        if not request.url.startswith((f"{self.url}/", "blob:", "data:")):
            self.foreign.append(request.url)

    def open(self, name: str, content: bytes) -> None:
        file = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
        self.page.set_input_files("#file", file)
        self.until(
            f"document.getElementById('file-name').textContent === {name!r}"
            " && document.querySelector('canvas.overlay')"
            " && document.getElementById('progress').hidden"
        )
        self.settle()

    def until(self, expression: str) -> None:
        """Wait until an expression is true. Playwright's own wait needs eval, which is refused."""
        end = time.monotonic() + WAIT / 1000
        while not self.page.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < end, expression
            self.page.wait_for_timeout(20)

    def settle(self) -> None:
        """Wait until the server has answered, and what it said is drawn."""
        self.until("document.getElementById('stage').ariaBusy === 'false'")
        self.page.evaluate(
            "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"
        )

    def shot(self, pane: int = 0) -> np.ndarray:
        content = self.page.locator("canvas.overlay").nth(pane).screenshot()
        return np.asarray(Image.open(BytesIO(content)).convert("RGB")).astype(int)

    def seen(self, grey: int, pane: int = 0) -> np.ndarray:
        """Where the largest part of a grey value is seen, (h, w) in pixels of the screen."""
        from scipy.ndimage import label

        parts, _ = label((abs(self.shot(pane) - grey) < 6).all(axis=2))
        return parts == 1 + np.bincount(parts.ravel())[1:].argmax() if parts.any() else parts > 0

    def place(self, seen: np.ndarray) -> tuple[float, float]:
        """A place on the screen that is well within what is seen."""
        from scipy.ndimage import distance_transform_edt

        depth = distance_transform_edt(seen)
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        box = self.page.locator("canvas.overlay").first.bounding_box()
        return box["x"] + column + 0.5, box["y"] + row + 0.5

    def act(self, do: Callable[[], object], part: str) -> dict:
        """Do something that sends a request, wait until it is shown; return what was sent."""
        with self.page.expect_response(lambda one: part in one.url) as caught:
            do()
        self.settle()
        return caught.value.request.post_data_json or {}

    def save(self, name: str) -> bytes:
        with self.page.expect_download() as caught:
            self.page.select_option("#save", label=name)
        return Path(caught.value.path()).read_bytes()

    def says(self, text: str) -> None:
        self.page.locator("#messages", has_text=text).wait_for()


@pytest.fixture
def user_of(chromium, listening) -> Iterator[Callable[..., UserOfPage]]:
    """``user_of(state)``: a user of the page; a complaint of the browser fails the test."""
    users: list[UserOfPage] = []
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)

    def make(state=None) -> UserOfPage:
        users.append(UserOfPage(context.new_page(), listening(state)))
        return users[-1]

    yield make
    context.close()
    for user in users:
        assert user.errors == []
        assert user.foreign == []


@slow
def test_a_picture_is_clicked_boxed_undone_compared_saved_and_accepted(
    user_of, make_state, tmp_path
):
    corrections = tmp_path / "corrections"
    corrections.mkdir()
    models = (oracle_model("one"), oracle_model("two"))
    user = user_of(make_state(*models, corrections=corrections))
    user.open("cells.png", png(phantom()))
    mouse, keyboard = user.page.mouse, user.page.keyboard
    first, second = user.seen(STEP), user.seen(2 * STEP)
    assert first.sum() / second.sum() == pytest.approx(23 / 8, rel=0.03)

    sent = user.act(lambda: mouse.click(*user.place(first)), "/prompts")
    assert (sent["kind"], sent["inside"]) == ("points", True)
    assert (user.seen(STEP) & first).sum() < 0.001 * first.sum()  # the mask covers it
    assert user.page.locator("figcaption").inner_text().startswith("one, predicted IoU")

    keyboard.down("Shift")
    sent = user.act(lambda: mouse.click(*user.place(second)), "/prompts")
    keyboard.up("Shift")
    assert sent["inside"] is False
    user.act(lambda: keyboard.press("u"), "/masks")
    assert len(user.page.evaluate("performance.getEntriesByName('click-to-mask')")) == 2

    keyboard.press("n")
    user.page.get_by_label("Class of Object 2").select_option("b")
    keyboard.press("b")
    rows, columns = np.nonzero(second)
    box = user.page.locator("canvas.overlay").bounding_box()
    corners = [
        (box["x"] + columns.min(), box["y"] + rows.min()),
        (box["x"] + columns.max() + 1, box["y"] + rows.max() + 1),
    ]

    def draw() -> None:
        mouse.move(*corners[0])
        mouse.down()
        mouse.move(*corners[1], steps=3)
        mouse.up()

    sent = user.act(draw, "/prompts")
    assert sent["box"] == pytest.approx([10, 6, 14, 8], abs=0.05)

    saved = np.asarray(Image.open(BytesIO(user.save("PNG of labels"))))
    assert np.array_equal(saved, phantom() // STEP)
    coco = json.loads(user.save("COCO"))
    assert [one["category_id"] for one in coco["annotations"]] == [1, 2]

    user.act(lambda: user.page.click("#compare"), "/prompts")
    user.page.locator("figure").nth(1).wait_for()
    user.until("document.querySelectorAll('.facts')[1].innerText.includes('two')")
    user.settle()
    assert user.seen(STEP, pane=1).sum() < 50  # it has the mask of the second model

    user.act(lambda: user.page.click("#accept"), "/accept")
    user.says("cells.png is in the folder of corrections")
    accepted = np.asarray(Image.open(corrections / "cells.png"))
    assert np.array_equal(accepted, saved)


@slow
def test_the_page_works_by_keyboard(user_of):
    user = user_of()
    user.open("cells.png", png(phantom()))
    keyboard = user.page.keyboard
    for key in ["ArrowLeft"] * 4 + ["ArrowUp"] * 2:  # from the middle, (7.5, 4.5)
        keyboard.press(key)
    sent = user.act(lambda: keyboard.press("Space"), "/prompts")
    assert sent["points"] == [[3.5, 2.5]]
    sent = user.act(lambda: keyboard.press("Shift+Space"), "/prompts")
    assert sent["inside"] is False
    user.act(lambda: keyboard.press("Control+z"), "/masks")
    keyboard.press("r")
    user.page.locator(".facts", has_text="no mask yet").wait_for()
    keyboard.press("?")
    assert "Carry the object through the volume" in user.page.inner_text("#help-dialog")
    keyboard.press("Escape")
    keyboard.press("Enter")
    user.says("There is no mask yet")


RAS, LPS = np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0])
TURN = np.array([[0.8, 0.6, 0, 3], [0, 0, 1, -5], [0.6, -0.8, 0, 7], [0, 0, 0, 1.0]])


@slow
@pytest.mark.parametrize("affine", [RAS, LPS, TURN], ids=["RAS", "LPS", "oblique"])
def test_a_volume_lands_where_it_is_seen(affine, user_of, make_state):
    values = np.zeros((15, 15, 7), np.uint8)
    values[3:9, 2:6, 1:5], values[3:5, 2, :], values[12, 13, :] = STEP, 0, 2 * STEP
    user = user_of(make_state(oracle_model(axis="axial")))
    content = gzip.compress(nib.Nifti1Image(values, affine).to_bytes(), mtime=0)
    user.open("scan.nii.gz", content)
    if affine is TURN:  # its slices lie across the file's axis j, and the last is its first
        user.page.keyboard.press("End")
        for _ in range(3):
            user.page.keyboard.press("PageDown")
        user.settle()
    before = user.seen(STEP)
    user.page.keyboard.press("c")
    sent = user.act(lambda: user.page.mouse.click(*user.place(before)), "/prompts")
    # The mask covers what was seen, apart from the borders and the mark of the click.
    shown = user.shot()
    blue = (shown[..., 2] > shown[..., 0] + 30) & (shown[..., 2] > shown[..., 1])
    assert (blue & before).sum() > 0.95 * before.sum()
    assert (blue & ~before).sum() < 0.05 * before.sum()
    user.act(lambda: user.page.keyboard.press("v"), "/masks")
    user.until("document.getElementById('progress').hidden")
    slices = user.page.locator("#slice").input_value()
    user.page.keyboard.press("PageUp")
    assert int(user.page.locator("#slice").input_value()) == int(slices) + 1 == sent["slice"] + 1
    user.settle()
    assert user.page.locator("#slice-name").inner_text().startswith(f"{sent['slice'] + 2} / ")
    user.page.keyboard.press("l")  # all planes: NiiVue's drawing is made, and the browser is silent
    user.settle()
    saved = nib.Nifti1Image.from_bytes(gzip.decompress(user.save("NIfTI")))
    assert np.array_equal(np.asarray(saved.dataobj), values == STEP)
    assert np.allclose(saved.affine, affine)


@slow
def test_refusals_are_said_and_an_expired_image_is_sent_again(user_of, make_state):
    state = make_state(limits=ServingLimits(sessions=1, voxels=1000))
    user = user_of(state)
    refused = []
    user.page.on("response", lambda one: refused.append(one.status) if one.status > 399 else None)
    file = {"name": "large.png", "mimeType": "", "buffer": png(np.zeros((40, 40), np.uint8))}
    user.page.set_input_files("#file", file)
    user.says("at most 1,000 are accepted")
    user.page.set_input_files("#file", file | {"name": "notes.txt", "buffer": b"x"})
    user.says("expected a file that ends in")
    user.page.set_input_files("#file", file | {"name": "broken.nii", "buffer": b"x"})
    user.says("broken.nii")

    taken = state.sessions.claim(heartbeats=False)
    user.page.set_input_files("#file", file | {"name": "cells.png", "buffer": png(phantom())})
    user.says("the server is full")
    state.sessions.release(taken.token)
    user.page.get_by_role("button", name="Try again").click()
    user.page.locator("canvas.overlay").wait_for()
    user.settle()
    first = user.place(user.seen(STEP))
    user.act(lambda: user.page.mouse.click(*first), "/prompts")
    second = user.place(user.seen(2 * STEP))

    state.sessions.close_all()
    user.act(lambda: user.page.mouse.click(*second), "/prompts")
    user.says("dropped the image")
    user.act(lambda: user.page.get_by_role("button", name="Send it again").click(), "/prompts")
    user.page.locator(".facts", has_text="23 pixels").wait_for()
    assert refused == [413, 415, 422, 503, 410]

    user.page.context.clear_cookies()
    user.act(lambda: user.page.keyboard.press("u"), "/undo")
    user.says("Open the address that `samadapt serve` printed last")
    # Chromium itself writes a line for each of these answers.
    user.errors = [text for text in user.errors if "Failed to load resource" not in text]
