"""Images and a model for the tests of the server: each object has a colour of its own."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from oracle import STEP, Oracle
from PIL import Image

from samadapt.adapters.record import AdapterRecord
from samadapt.inference.bundle import make_bundle
from samadapt.serving.served_models import ServedModel
from samadapt.training.precision import choose_precision

TOKEN = "a-token-of-the-tests"
PLACE = "http://127.0.0.1:1527"


def oracle_model(name: str = "oracle", kind: str = "interactive", **entries: Any) -> ServedModel:
    """Return a model that answers with the region of the prompted colour."""
    sam = Oracle(2)
    record = AdapterRecord(
        base="oracle",
        base_sha256="",
        image_size=sam.image_size,
        intensity={"kind": "window", "low": 0.0, "high": 255.0},
        classes=["a", "b"],
        prompt={"kind": kind},
        **entries,
    )
    bundle = make_bundle(sam, record, keeps_encoder=False)
    return ServedModel(name, bundle, choose_precision("fp32", sam.device))


def phantom() -> np.ndarray:
    """Return a picture (9, 15) with objects of the values 85 and 170, none of them symmetric."""
    picture = np.zeros((9, 15), np.uint8)
    picture[1:4, 2:9], picture[4, 2:4] = STEP, STEP
    picture[6:8, 10:14] = 2 * STEP
    return picture


def scan() -> np.ndarray:
    """Return an array (z, y, x) = (7, 9, 15): one object on slices 1 to 4, one on slice 6."""
    values = np.zeros((7, 9, 15), np.int16)
    values[1:5] = np.where(phantom() == STEP, STEP, 0)
    values[3, 1] = 0  # no slice is like the next
    values[6] = np.where(phantom() == 2 * STEP, 2 * STEP, 0)
    return values


def png(values: np.ndarray) -> bytes:
    out = BytesIO()
    Image.fromarray(values).save(out, format="png")
    return out.getvalue()
