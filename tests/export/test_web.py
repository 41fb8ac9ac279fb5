"""``to=web``: the graphs, the page in Chromium, and its headers."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from samadapt.adapters.record import AdapterRecord, read_record
from samadapt.adapters.store import load_into, save_adapter
from samadapt.errors import AdapterError, RunError
from samadapt.export import export_adapter, web
from samadapt.export.onnx_decoder import PromptAndMaskDecoder
from samadapt.export.web import PAGE, RUNTIME, Web, copy_page, page_values
from samadapt.export.web_decoder import WebDecoder
from samadapt.inference.segmenter import load_adapter
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.embed import to_pixels
from samadapt.sam.geometry import make_frame
from samadapt.sam.types import Preprocessing
from samadapt.sam.weights.loading import load_sam

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SANDBOX = ["--no-sandbox"]  # tests may run as root


@pytest.mark.parametrize("base", ["tiny_sam", "tiny_t_sam"])
def test_the_lighter_decoder_computes_the_same(base, request, unchecked_shapes):
    sam = request.getfixturevalue(base)
    plain, light = PromptAndMaskDecoder(sam).eval(), WebDecoder(sam).eval()
    torch.manual_seed(0)
    given = light.example()
    with torch.no_grad():
        iou, low = light(*given)
        _, wanted_iou, wanted = plain(*given, torch.tensor([64.0, 48.0]))
    assert (low - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (iou - wanted_iou).abs().max() < 1e-4 * max(1, wanted_iou.abs().max())


@pytest.mark.slow
def test_the_folder_is_complete(tiny_sam, save, tmp_path):
    directory, _ = save(tiny_sam)
    done = export_adapter(directory, Web(), tmp_path / "out")
    assert done.difference.logits < 1e-3 * max(1, done.difference.largest)
    for name in ("index.html", "page.mjs", "worker.mjs", "serve.py", "model.json", "README.md"):
        assert name in done.files
    assert "__pycache__" not in done.files
    values = json.loads((tmp_path / "out" / "model.json").read_text(encoding="utf-8"))
    assert (values["image_size"], values["grid"], values["prompts"]) == (64, 8, True)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "python serve.py" in card


def test_the_runtime_is_the_one_of_the_registry(tmp_path, monkeypatch):
    vendored = json.loads((PAGE / RUNTIME / "VENDORED.json").read_text(encoding="utf-8"))
    assert vendored["version"]
    assert (PAGE / RUNTIME / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    for name, digest in vendored["sha256"].items():
        assert hashlib.sha256((PAGE / RUNTIME / name).read_bytes()).hexdigest() == digest
    shutil.copytree(PAGE, tmp_path / "page")
    with (tmp_path / "page" / RUNTIME / "ort.wasm.min.mjs").open("ab") as file:
        file.write(b"\n")
    monkeypatch.setattr(web, "PAGE", tmp_path / "page")
    with pytest.raises(RunError, match=r"ort\.wasm\.min\.mjs: expected sha256"):
        copy_page(tmp_path / "out")


@pytest.mark.slow
def test_what_the_page_cannot_do_is_refused(tiny_sam, save, tmp_path, monkeypatch):
    directory, sam = save(tiny_sam)
    monkeypatch.setattr(web, "MAX_ENCODER_MB", 0.01)
    with pytest.raises(
        AdapterError, match=r"at most 0\.01 MB.*try precision=fp16 or precision=int8"
    ):
        export_adapter(directory, Web(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fresh = load_sam("tiny", tmp_path / "tiny-base.safetensors")
    injection = load_into(directory, fresh)
    prompt = PromptPolicy("mask").to_dict()
    save_adapter(directory, fresh, injection, replace(read_record(directory), prompt=prompt))
    with pytest.raises(AdapterError, match="prompted with a mask, and the page has clicks and box"):
        export_adapter(directory, Web(), tmp_path / "out")
    del sam


@pytest.mark.parametrize(
    ("policy", "points", "boxes"),
    [
        (PromptPolicy("box"), False, False),
        (PromptPolicy("point"), True, True),
        (PromptPolicy("interactive"), None, None),
        (PromptPolicy("mixed", shares={"box": 0.5, "point": 0.5}), None, False),
    ],
)
def test_the_page_takes_the_mask_that_samadapt_takes(policy, points, boxes):
    rule = {"normalization": "mean_std", "resize": "longest", "mean": [0.0], "std": [1.0]}
    record = AdapterRecord(
        "tiny", "0" * 64, 64, method={"name": "lora"}, preprocessing=rule, prompt=policy.to_dict()
    )
    values = page_values(record, 8)
    assert (values["several_for_points"], values["several_for_boxes"]) == (points, boxes)


RUN_NODE = """
import { toInput, toPicture } from "%s";
import { readFileSync, writeFileSync } from "node:fs";
const { width, height, model } = JSON.parse(readFileSync("given.json", "utf8"));
const rgba = new Uint8ClampedArray(readFileSync("rgba.bin"));
writeFileSync("input.bin", Buffer.from(toInput(rgba, width, height, model).buffer));
const file = readFileSync("logits.bin");
const logits = new Float32Array(file.buffer.slice(file.byteOffset, file.byteOffset + file.length));
writeFileSync("plane.bin", Buffer.from(toPicture(logits, width, height, model).buffer));
"""


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.parametrize(
    ("size", "resize", "normalization", "intensity"),
    [
        ((200, 90), "longest", "mean_std", {"kind": "rgb"}),
        ((40, 33), "longest", "min_max", {"kind": "percentile", "low": 0.5, "high": 99.5}),
        ((75, 130), "squash", "min_max", {"kind": "all_percentile", "low": 1.0, "high": 99.8}),
    ],
)
def test_the_page_prepares_pictures_as_samadapt_does(
    tiny_sam, tmp_path, size, resize, normalization, intensity
):
    from samadapt.data.intensity import make_intensity

    width, height = size
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize(size, Image.Resampling.BILINEAR))
    tiny_sam.preprocessing = Preprocessing(normalization, resize)
    rule = make_intensity({"low": 0.0, "high": 255.0} | intensity)
    graded = rule(image)
    wanted = to_pixels(tiny_sam, [graded])[0].numpy()
    logits = rng.normal(size=(32, 32)).astype(np.float32)
    frame = make_frame((height, width), 64, resize)
    plane = tiny_sam.postprocess(torch.from_numpy(logits)[None, None, None], frame)[0, 0, 0].numpy()
    model = {
        "image_size": 64, "grid": 8, "resize": resize, "normalization": normalization,
        "mean": tiny_sam.preprocessing.mean, "std": tiny_sam.preprocessing.std,
        "intensity": rule.to_dict(),
    }  # fmt: skip
    given = {"width": width, "height": height, "model": model}
    (tmp_path / "given.json").write_text(json.dumps(given), encoding="utf-8")
    alpha = np.full((height, width, 1), 255, np.uint8)
    (tmp_path / "rgba.bin").write_bytes(np.concatenate([image, alpha], axis=2).tobytes())
    (tmp_path / "logits.bin").write_bytes(logits.tobytes())
    script = tmp_path / "run.mjs"
    script.write_text(RUN_NODE % (PAGE / "picture.mjs").as_uri(), encoding="utf-8")
    subprocess.run([str(NODE), str(script)], cwd=tmp_path, check=True)
    found = np.fromfile(tmp_path / "input.bin", np.float32).reshape(3, 64, 64)
    # Pillow rounds its weights to fixed point, which may move a value by one grey level.
    step = 1 / 57 if normalization == "mean_std" else 1.01 / max(1, np.ptp(graded) * 0.9)
    assert np.abs(found - wanted).max() <= step + 1e-5
    assert np.abs(found - wanted).mean() < 0.1 * step
    shown = np.fromfile(tmp_path / "plane.bin", np.float32).reshape(height, width)
    np.testing.assert_allclose(shown, plane, atol=1e-4)


def load_serve(folder: Path) -> Any:
    spec = spec_from_file_location("serve_of_the_page", folder / "serve.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    server = load_serve(folder).make_server(folder, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_server_sends_the_headers_that_threads_need(tmp_path):
    copy_page(tmp_path / "out")
    with serving(tmp_path / "out") as address, urlopen(f"{address}/worker.mjs") as answer:
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert answer.headers["Content-Type"].startswith("text/javascript")
    sys.modules.pop("serve_of_the_page", None)


@pytest.fixture
def browser(monkeypatch) -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=SANDBOX)
        yield running
        running.close()


Open = Callable[..., Any]


@contextmanager
def opened(
    browser: Any, address: str, threads: int | None = None
) -> Iterator[tuple[Any, list[str]]]:
    """A loaded page, and what went wrong in it: console errors and requests to other places."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    page.on(
        "request",
        lambda r: None if r.url.startswith((address, "blob:")) else wrong.append(r.url),
    )
    page.goto(address + (f"/?threads={threads}" if threads else "/"))
    page.wait_for_selector("#status[data-state=ready]", timeout=60_000)
    yield page, wrong
    page.close()


def state(page: Any, name: str) -> None:
    page.wait_for_selector(f"#status[data-state={name}]", timeout=60_000)


def saved_mask(page: Any, path: Path) -> np.ndarray:
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(path)
    return np.asarray(Image.open(path).convert("L"))


def click(page: Any, x: float, y: float, size: tuple[int, int], *, shift: bool = False) -> None:
    """Click at a pixel of the picture, and wait for the mask."""
    box = page.locator("#picture").bounding_box()
    page.evaluate("document.getElementById('status').dataset.state = ''")
    if shift:
        page.keyboard.down("Shift")
    page.mouse.click(box["x"] + x * box["width"] / size[0], box["y"] + y * box["height"] / size[1])
    if shift:
        page.keyboard.up("Shift")
    state(page, "answered")


def iou(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one > 0, other > 0
    assert one.any()
    assert not one.all()
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.slow
def test_click_shift_click_box_undo_and_save_in_chromium(tiny_sam, save, tmp_path, browser):
    directory, _ = save(tiny_sam)
    fresh = load_sam("tiny", tmp_path / "tiny-base.safetensors")
    injection = load_into(directory, fresh)
    mixed = PromptPolicy("mixed", shares={"box": 0.5, "point": 0.5}).to_dict()
    save_adapter(directory, fresh, injection, replace(read_record(directory), prompt=mixed))
    export_adapter(directory, Web(), tmp_path / "out")
    size = (200, 180)
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 10, 3), dtype=np.uint8))
    coarse.resize(size, Image.Resampling.BILINEAR).save(tmp_path / "cell.png")
    ours = load_adapter(directory)
    with serving(tmp_path / "out") as address, opened(browser, address) as (page, wrong):
        assert "Threads: " in page.text_content("#threads")
        page.set_input_files("#file", tmp_path / "cell.png")
        state(page, "encoded")
        click(page, 70, 95, size)
        first = saved_mask(page, tmp_path / "first.png")
        image = tmp_path / "cell.png"
        assert iou(first, ours.segment(image, points=[[70, 95]])) > 0.97
        click(page, 120, 40, size, shift=True)
        second = saved_mask(page, tmp_path / "second.png")
        wanted = ours.segment(image, points=[[70, 95], [120, 40]], point_labels=[1, 0])
        assert iou(second, wanted) > 0.95
        page.evaluate("document.getElementById('status').dataset.state = ''")
        page.keyboard.press("u")
        state(page, "answered")
        assert (saved_mask(page, tmp_path / "undone.png") == first).all()
        bounds = page.locator("#picture").bounding_box()
        unit = bounds["width"] / size[0]
        page.evaluate("document.getElementById('status').dataset.state = ''")
        page.mouse.move(bounds["x"] + 20 * unit, bounds["y"] + 30 * unit)
        page.mouse.down()
        page.mouse.move(bounds["x"] + 90 * unit, bounds["y"] + 90 * unit)
        page.mouse.move(bounds["x"] + 120 * unit, bounds["y"] + 160 * unit)
        page.mouse.up()
        state(page, "answered")
        boxed = saved_mask(page, tmp_path / "boxed.png")
        assert iou(boxed, ours.segment(image, boxes=[[20, 30, 120, 160]])) > 0.95
        page.keyboard.press("c")
        state(page, "encoded")
        assert page.is_disabled("#save")
        (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
        page.set_input_files("#file", tmp_path / "text.png")
        state(page, "error")
        assert "text.png: expected a picture" in page.text_content("#status")
        assert wrong == []


@pytest.mark.slow
def test_classes_without_a_prompt_in_chromium(tiny_sam, save, tmp_path, browser):
    directory, _ = save(tiny_sam)
    fresh = load_sam("tiny", tmp_path / "tiny-base.safetensors")
    injection = load_into(directory, fresh)
    prompt = PromptPolicy("semantic").to_dict()
    record = replace(read_record(directory), prompt=prompt, classes=["cell", "wall", "pore"])
    save_adapter(directory, fresh, injection, record)
    export_adapter(directory, Web(), tmp_path / "out")
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 10, 3), dtype=np.uint8))
    coarse.resize((200, 180), Image.Resampling.BILINEAR).save(tmp_path / "cell.png")
    with serving(tmp_path / "out") as address, opened(browser, address) as (page, wrong):
        page.set_input_files("#file", tmp_path / "cell.png")
        state(page, "encoded")
        page.click("#classes")
        state(page, "answered")
        found = saved_mask(page, tmp_path / "classes.png")
        assert wrong == []
    wanted = load_adapter(directory).segment(tmp_path / "cell.png")
    assert len(np.unique(wanted)) > 2
    assert (found == wanted).mean() > 0.97


@pytest.mark.slow
def test_one_thread_without_the_headers(tiny_sam, save, tmp_path, browser, monkeypatch):
    directory, _ = save(tiny_sam)
    export_adapter(directory, Web(), tmp_path / "out")
    module = load_serve(tmp_path / "out")
    monkeypatch.setattr(module, "HEADERS", {})
    server = module.make_server(tmp_path / "out", 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        with opened(browser, address) as (page, wrong):
            assert "One thread: the server sends no COOP" in page.text_content("#threads")
            assert wrong == []
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
