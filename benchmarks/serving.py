"""Click to mask through ``samadapt serve``: one client, then several at once for a minute.

    python benchmarks/serving.py [--build lite_medsam] [--clients 8] [--seconds 60] [--page]
                                 [--output FILE]

The server is the command, in a process of its own, with an adapter of random weights: they take the
time of trained ones. A client sends a picture of 512 x 512 pixels and waits until it is encoded.
Then the time from sending a click to having its mask is measured. The first click on an object and
the correcting ones differ, because the latter also send the last mask through the decoder. For the
minute, every client has a picture of its own, clicks, takes clicks back, drops its image and sends
another one. Memory is that of the server's process: after the first fifth of the minute, and at its
end.

With ``--page``, Chromium opens the page of the server, and a user clicks at places of its canvas,
on a new object after every fifth click. The page measures from the click to the drawn mask.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from benchmarks.peers import random_sam  # noqa: E402
from samadapt.adapters.injection import inject  # noqa: E402
from samadapt.adapters.record import AdapterRecord  # noqa: E402
from samadapt.adapters.store import save_adapter  # noqa: E402
from samadapt.data.intensity import make_intensity  # noqa: E402
from samadapt.methods import METHODS  # noqa: E402
from samadapt.prompts.policy import PromptPolicy  # noqa: E402
from samadapt.sam.weights.loading import base_hash  # noqa: E402

SIDE, CLICKS = 512, 40
TOKEN = "a-token-of-the-benchmark"


def save_adapter_of(build: str, folder: Path, *, image_size: int | None = None) -> None:
    """Write an adapter of random weights, and in its folder the base."""
    sam = random_sam(build, image_size)
    weights = {name: value.clone() for name, value in sam.state_dict().items()}
    record = AdapterRecord(
        base=build,
        base_sha256=base_hash(sam),
        checkpoint="base.safetensors",
        image_size=sam.image_size,
        num_masks=sam.build.num_multimask,
        preprocessing=asdict(sam.preprocessing),
        intensity=make_intensity("rgb").to_dict(),
        classes=["object"],
        prompt=PromptPolicy("interactive").to_dict(),
    )
    save_adapter(folder, sam, inject(sam, METHODS["lora"]()), record)
    save_file(weights, folder / "base.safetensors")  # now, as saving an adapter replaces its folder


def picture(seed: int) -> bytes:
    """Return a noisy picture as PNG."""
    values = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    out = BytesIO()
    Image.fromarray(values).save(out, format="png")
    return out.getvalue()


class Client:
    """A user at a picture."""

    def __init__(self, url: str, seed: int) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=120)
        self.rng = np.random.default_rng(seed)
        self.content = picture(seed)
        self.image = ""

    def post(self, path: str, **options: Any) -> Any:
        """Send a request, which must succeed."""
        answer = self.http.post(path, **options)
        answer.raise_for_status()
        return answer.json()

    def send(self) -> float:
        """Send the picture and wait until it is encoded; return the seconds."""
        begun = time.perf_counter()
        found = self.post("/api/images", params={"name": "a.png"}, content=self.content)
        self.image = f"/api/images/{found['image']}"
        while True:
            state = self.http.get(self.image).json()["encoded"]
            if all(one["slices"] == one["of"] for one in state.values()):
                return time.perf_counter() - begun
            time.sleep(0.01)

    def begin(self) -> str:
        """Begin an object."""
        number = self.post(f"{self.image}/objects", json={})["object"]
        return f"{self.image}/objects/{number}"

    def click(self, one: str) -> float:
        """Click, and return the seconds until the mask is there."""
        body = {"kind": "points", "points": [(self.rng.random(2) * SIDE).tolist()]}
        begun = time.perf_counter()
        mask = self.post(f"{one}/prompts", json=body)["mask"]
        if sum(mask["counts"]) != SIDE * SIDE:
            raise ValueError("the mask is not whole")
        return time.perf_counter() - begun

    def drop(self) -> None:
        """Drop the image."""
        self.http.delete(self.image).raise_for_status()


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile in ms."""
    ms = [1000 * one for one in seconds]
    p95 = statistics.quantiles(ms, n=20)[-1]
    return {"n": len(ms), "p50_ms": round(statistics.median(ms), 1), "p95_ms": round(p95, 1)}


def alone(url: str) -> dict[str, Any]:
    """Measure one client."""
    client = Client(url, 0)
    encode = client.send()
    client.click(client.begin())
    first, correcting = [], []
    for _ in range(CLICKS // 4):
        one = client.begin()
        first.append(client.click(one))
        correcting += [client.click(one) for _ in range(3)]
    client.drop()
    rows = {"first_click": quantiles(first), "correcting_click": quantiles(correcting)}
    return {"encode_s": round(encode, 2), **rows}


def in_page(url: str, folder: Path) -> dict[str, Any]:
    """Measure one user of the page."""
    from playwright.sync_api import sync_playwright

    (folder / "picture.png").write_bytes(picture(0))
    rng, measured = np.random.default_rng(0), "performance.getEntriesByName('click-to-mask')"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{url}/?token={TOKEN}")
        page.set_input_files("#file", folder / "picture.png")
        shown = page.locator("canvas.overlay").bounding_box()
        while page.evaluate("!document.getElementById('progress').hidden"):
            time.sleep(0.2)
        for number in range(CLICKS + 1):
            if number % 5 == 0:
                page.keyboard.press("n")
            x, y = rng.uniform(0.3, 0.7, 2)
            page.mouse.click(shown["x"] + x * shown["width"], shown["y"] + y * shown["height"])
            while page.evaluate(f"{measured}.length") <= number:
                time.sleep(0.3)  # asking more often would take time from what is measured
        times = page.evaluate(f"{measured}.map((one) => one.duration / 1000)")
        browser.close()
    return quantiles(times[1:])


def together(url: str, clients: int, seconds: float, server: psutil.Process) -> dict[str, Any]:
    """Measure several clients at once."""
    end = time.monotonic() + seconds
    times: list[float] = []
    errors: list[str] = []

    def work(seed: int) -> None:
        client = Client(url, seed)
        try:
            while time.monotonic() < end:
                client.send()
                one = client.begin()
                for _ in range(5):
                    times.append(client.click(one))
                client.post(f"{one}/undo")
                client.drop()
        except (httpx.HTTPError, ValueError, KeyError) as error:
            errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(seed + 1,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 5)
    early = server.memory_info().rss
    for thread in threads:
        thread.join()
    late = server.memory_info().rss
    return {
        "clients": clients,
        "seconds": seconds,
        "errors": errors,
        **quantiles(times),
        "memory_early_mb": round(early / 2**20),
        "memory_late_mb": round(late / 2**20),
    }


def main() -> None:
    """Measure, print and append the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--build", default="lite_medsam")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--page", action="store_true", help="also the page, in Chromium")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_adapter_of(asked.build, Path(folder))
        command = [sys.executable, "-m", "samadapt", "serve", f"adapter={folder}", "port=0"]
        # A session more than clients: one that is dropped makes room for the next.
        command += [f"sessions={asked.clients + 1}", f"token={TOKEN}"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        try:
            url, said = None, ""
            while url is None:
                line = server.stderr.readline()
                said += line
                if not line:
                    sys.exit(f"the server did not start: {said}")
                url = re.search(r"open (http://[^/]+)/", line)
            found = {"build": asked.build, "processors": os.cpu_count(), **alone(url[1])}
            if asked.page:
                found["page"] = in_page(url[1], Path(folder))
            process = psutil.Process(server.pid)
            found["together"] = together(url[1], asked.clients, asked.seconds, process)
        finally:
            server.terminate()
            server.wait()
    print(json.dumps(found, indent=2))
    if asked.output is not None:
        asked.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
