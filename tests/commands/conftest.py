"""Adapters of the random model ``tiny``, which needs no file of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samadapt.adapters.injection import inject
from samadapt.adapters.store import AdapterRecord, save_adapter
from samadapt.data.intensity import make_intensity
from samadapt.methods import METHODS
from samadapt.prompts.policy import Kind, PromptPolicy
from samadapt.sam.weights.loading import base_hash, load_sam


@pytest.fixture
def adapter_at() -> Callable[..., Path]:
    """``adapter_at(folder, kind, intensity, **record)``: save an adapter that was not trained."""

    def save(
        folder: Path,
        kind: Kind = "box",
        intensity: str = "rgb",
        *,
        image_size: int | None = None,
        method: str = "lora",
        base: str = "tiny",
        **entries: Any,
    ) -> Path:
        sam = load_sam(base, image_size=image_size)
        record = AdapterRecord(
            base=base,
            base_sha256=base_hash(sam),
            image_size=sam.image_size,
            preprocessing=asdict(sam.preprocessing),
            intensity=make_intensity(intensity).to_dict(),
            prompt=PromptPolicy(kind).to_dict(),
            **entries,
        )
        if record.class_tokens:
            sam.add_class_tokens(record.class_tokens)
        save_adapter(folder, sam, inject(sam, METHODS[method]()), record)
        return folder

    return save


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of two noisy pictures, a.png and b.png, of 20 x 30 pixels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        values = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{name}.png")
    return folder
