"""Click to mask in a browser: the page of ``samadapt export to=web`` in Chromium.

    python benchmarks/web_clicks.py [--build lite_medsam] [--sides 256,168,84] [--output FILE]

The adapter has random weights, which take the time of trained ones. A box is drawn on a picture
that is encoded already, and the page measures from the release of the mouse to the drawn mask. The
grid of a side of 256 pixels has 64 x 64 cells. Beside it stands the least time: the products of the
decoder, counted by torch, at the rate of large products in the same WebAssembly runtime. Needs the
extras ``onnx`` and ``test``, and Chromium.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import torch  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks.peers import random_sam  # noqa: E402
from benchmarks.serving import save_adapter_of  # noqa: E402
from samadapt.export import export_adapter  # noqa: E402
from samadapt.export.web import Web  # noqa: E402
from samadapt.sam.types import Prompts  # noqa: E402

WIDTH, HEIGHT, CLICKS, WARM = 640, 480, 25, 3
ROWS, INNER, COLUMNS = 4096, 256, 256
PRODUCT = """async (threads) => {
  const ort = await import('/onnxruntime-web/ort.wasm.min.mjs');
  ort.env.wasm.numThreads = threads;
  const session = await ort.InferenceSession.create('product.onnx');
  const x = new ort.Tensor('float32', new Float32Array(ROWS * INNER).fill(0.5), [1, ROWS, INNER]);
  const times = [];
  for (let i = 0; i < 30; i++) {
    const began = performance.now();
    await session.run({x});
    times.push(performance.now() - began);
  }
  return times.sort((a, b) => a - b)[15];
}""".replace("ROWS", str(ROWS)).replace("INNER", str(INNER))


def write_picture(path: Path) -> None:
    """Write a picture of a bright ellipse on a soft background."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 90, (9, 12, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)).copy()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels[((x - 250) / 120) ** 2 + ((y - 230) / 90) ** 2 < 1] += 120
    Image.fromarray(pixels).save(path)


def write_product(path: Path) -> None:
    """Write a graph of one large product."""
    weight = np.random.default_rng(0).normal(size=(INNER, COLUMNS)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, ROWS, INNER])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, ROWS, COLUMNS])],
        [numpy_helper.from_array(weight, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)


def decoder_flops(build: str, side: int) -> int:
    """Return the operations of decoding one box, as torch counts them."""
    sam = random_sam(build, side)
    with torch.no_grad():
        embeddings = sam.encode(torch.zeros(1, 3, side, side))
        prompts = Prompts(boxes=torch.tensor([[[4.0, 4.0, side / 2, side / 2]]]))
        with FlopCounterMode(display=False) as counter:
            sam.decode(embeddings, prompts, multimask=False)
    return int(counter.get_total_flops())


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve an exported folder with its own ``serve.py``; yield the address."""
    spec = importlib.util.spec_from_file_location("exported_serve", folder / "serve.py")
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{folder}/serve.py cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.make_server(folder, 0)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def clicks(page: Any, picture: Path) -> list[float]:
    """Open a picture and draw boxes on it; return the milliseconds of each answer."""
    page.wait_for_selector("#status[data-state=ready]", timeout=120_000)
    page.set_input_files("#file", picture)
    page.wait_for_selector("#status[data-state=encoded]", timeout=120_000)
    shown, found = page.locator("#picture").bounding_box(), []
    scale = shown["width"] / WIDTH
    for number in range(WARM + CLICKS):
        page.evaluate("document.getElementById('status').dataset.state = ''")
        x, y = shown["x"] + (130 + number) * scale, shown["y"] + 140 * scale
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 100 * scale, y + 100 * scale)
        page.mouse.move(x + 240 * scale, y + 180 * scale)
        page.mouse.up()
        page.wait_for_selector("#status[data-state=answered]", timeout=60_000)
        found.append(float(page.get_attribute("#status", "data-milliseconds")))
    return found[WARM:]


def measure(browser: Any, build: str, side: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row with one thread and with two."""
    picture, page_folder = folder / "picture.png", folder / f"page-{side}"
    write_picture(picture)
    save_adapter_of(build, folder / f"adapter-{side}", image_size=side)
    export_adapter(folder / f"adapter-{side}", Web(), page_folder)
    write_product(page_folder / "product.onnx")
    flops = decoder_flops(build, side)
    with served(page_folder) as address:
        for threads in (1, 2):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(f"{address}/?threads={threads}")
            times = clicks(page, picture)
            rate = 2.0 * ROWS * INNER * COLUMNS / page.evaluate(PRODUCT, threads) * 1e3
            page.close()
            yield {
                "build": build,
                "side": side,
                "threads": threads,
                "median_ms": round(statistics.median(times), 1),
                "range_ms": [round(min(times), 1), round(max(times), 1)],
                "decoder_gflop": round(flops / 1e9, 2),
                "product_gflop_s": round(rate / 1e9, 1),
                "least_ms": round(1e3 * flops / rate, 1),
            }


def main() -> None:
    """Measure, print, and write the rows."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--build", default="lite_medsam")
    parser.add_argument("--sides", default="256,168,84")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        sys.exit("Chromium was not found; install chromium or google-chrome")
    flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    rows = []
    with sync_playwright() as started, tempfile.TemporaryDirectory() as folder:
        browser = started.chromium.launch(executable_path=path, args=flags)
        for side in map(int, asked.sides.split(",")):
            for row in measure(browser, asked.build, side, Path(folder)):
                rows.append(row)
                print(json.dumps(row), flush=True)
        browser.close()
    if asked.output is not None:
        asked.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
