"""Several clients at once: no error, nothing mixed up, and no memory that stays."""

from __future__ import annotations

import gc
import threading
import time
from collections import deque

import httpx
import numpy as np
import psutil
import pytest
from oracle import STEP
from served import TOKEN, oracle_model, phantom, png

from samadapt.serving.masks_out import from_run_lengths

SECONDS, GROWTH_MB = 20, 50


@pytest.mark.slow
def test_eight_clients_get_their_own_masks_and_memory_stays_flat(listening, make_state):
    model = oracle_model()
    model.sam.seen = deque(maxlen=0)  # the stand-in would keep every picture
    state = make_state(model)
    url, end = listening(state), time.monotonic() + SECONDS
    errors: list[str] = []
    done = [0] * 8

    def work(number: int) -> None:
        picture = np.roll(phantom(), number, axis=1)
        content, value = png(picture), STEP if number % 2 else 2 * STEP
        row, column = np.argwhere(picture == value)[0]
        prompt = {"kind": "points", "points": [[column + 0.5, row + 0.5]]}
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            while time.monotonic() < end:
                image = client.post("/api/images", params={"name": "a.png"}, content=content)
                place = f"/api/images/{image.json()['image']}"
                client.post(f"{place}/objects", json={})
                mask = client.post(f"{place}/objects/1/prompts", json=prompt).json()["mask"]
                if not np.array_equal(from_run_lengths(**mask), picture == value):
                    errors.append(f"client {number} has the wrong mask")
                client.delete(place).raise_for_status()
                done[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(SECONDS / 3)
    gc.collect()
    early = psutil.Process().memory_info().rss
    for thread in threads:
        thread.join()
    gc.collect()
    late = psutil.Process().memory_info().rss
    assert not errors
    assert min(done) > 0
    assert len(state.sessions) == 0
    assert late - early < GROWTH_MB * 2**20
