"""The cost of one more training image, class or prompt, and what a second run computes again.

The model is LiteMedSAM with LoRA of rank 4 in its last two blocks and the whole decoder trained, in
fp32. A step reads stored features, runs the trained blocks, the decoder and the loss, and goes
backward.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import machine
from benchmarks.harness import Call, Fact, Growth, Row
from samadapt.adapters.injection import Injection, inject
from samadapt.config.compose import compose
from samadapt.methods import METHODS
from samadapt.runs.finetune import finetune
from samadapt.sam.model import Sam
from samadapt.sam.types import Prompts
from samadapt.sam.weights.loading import base_hash, load_sam
from samadapt.training.feature_stores import MemoryStore
from samadapt.training.features import Features
from samadapt.training.mask_losses import LossFunction, object_loss, semantic_loss

SHAPE = (192, 256)
"""Height and width of the pictures, in pixels."""


def rows(model: str = "lite_medsam") -> Iterator[Row]:
    """Yield the rows; ``model`` is a name for ``load_sam``."""
    few, many = (1, 2, 4, 8), (1, 2, 4, 8, 16)
    yield Growth("frozen prefix, once", "image", few, partial(prefix, model))
    yield Growth("step, a box an image", "image", few, partial(boxes, model, prompts=1))
    yield Growth("step, one image", "box", many, lambda count: boxes(model, 1, prompts=count))
    yield Growth("step, 4 images without prompt", "class", few, partial(classes, model))
    yield Fact("finetune twice, cache.where=disk", partial(second_run, model))


def prefix(model: str, images: int) -> Call:
    """Build a call that runs the frozen blocks for some new images."""
    pictures = [picture(index)[0] for index in range(images)]
    features = _features(*_model(model))

    def call() -> None:
        features.store = MemoryStore()
        for start in range(0, images, features.batch_size):
            features(pictures[start : start + features.batch_size])

    return call


def boxes(model: str, images: int, *, prompts: int) -> Call:
    """Build a step with some boxes on each of some images."""
    sam, injection = _model(model)
    side = 4 * sam.embedding_size
    generator = torch.Generator().manual_seed(5)
    corners = torch.rand(images, prompts, 2, 2, generator=generator) * sam.image_size
    given = Prompts(boxes=corners.sort(dim=2).values.flatten(2))
    targets = torch.rand(images, prompts, side, side, generator=generator) > 0.5
    return _step(sam, injection, images, given, targets.long(), object_loss(), multimask=False)


def classes(model: str, count: int, *, images: int = 4) -> Call:
    """Build a step without prompts, in which each class has a mask token."""
    sam, injection = _model(model, classes=count)
    side = 4 * sam.embedding_size
    generator = torch.Generator().manual_seed(5)
    targets = torch.randint(0, count + 1, (images, side, side), generator=generator)
    loss = semantic_loss(count)
    return _step(sam, injection, images, Prompts(), targets, loss, multimask=True)


def second_run(model: str, pictures: int = 12) -> dict[str, Any]:
    """Fine-tune twice on the same pictures and return how many features each run computed."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for index in range(pictures):
            for part, values in zip(("images", "masks"), picture(index), strict=True):
                (root / "data" / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(root / "data" / part / f"p{index}.png")
        overrides = [
            f"data.root={json.dumps(str(root / 'data'))}",
            f"output.dir={json.dumps(str(root / 'runs'))}",
            f"model.name={model}",
            "peft.blocks=last:2",
            "cache.where=disk",
            "train.steps=8",  # so that each picture is read
            "train.batch_size=2",
            "eval.overlays=0",
        ]
        found: dict[str, Any] = {"images": pictures}
        for run in ("first", "second"):
            result = finetune(compose("photos", overrides))
            log = (result.run_dir / "log.txt").read_text(encoding="utf-8")
            counted = re.search(r"features: (\d+) computed, (\d+) reused", log)
            if counted is None:
                raise RuntimeError(f"{result.run_dir}/log.txt does not count features")
            found[f"computed by the {run} run"] = int(counted[1])
        return found


def picture(index: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return a noisy picture (h, w, 3) and its mask (h, w): one bright rectangle."""
    rng = np.random.default_rng(index)
    image = rng.integers(0, 60, (*SHAPE, 3), dtype=np.uint8)
    mask = np.zeros(SHAPE, np.uint8)
    row, column = rng.integers(10, SHAPE[0] - 90), rng.integers(10, SHAPE[1] - 110)
    mask[row : row + 80, column : column + 100] = 1
    image[mask > 0] += 150
    return image, mask


def _model(name: str, classes: int | None = None) -> tuple[Sam, Injection]:
    sam = load_sam(name)
    if classes is not None:
        sam.resize_mask_tokens(classes)
    injection = inject(sam, replace(METHODS["lora"](), blocks="last:2"))
    injection.set_training(sam)
    return sam, injection


def _features(sam: Sam, injection: Injection) -> Features:
    return Features(
        sam,
        injection.first_trainable_block,
        base_sha256=base_hash(sam),
        autocast=machine.ours("fp32", "cpu").forward,
        dtype=torch.float32,
        store=MemoryStore(),
    )


def _step(
    sam: Sam,
    injection: Injection,
    images: int,
    prompts: Prompts,
    targets: Tensor,
    loss: LossFunction,
    *,
    multimask: bool,
) -> Call:
    features, way = _features(sam, injection), machine.ours("fp32", "cpu")
    pictures = [picture(index)[0] for index in range(images)]

    def call() -> None:
        for parameter in injection.parameters.values():
            parameter.grad = None
        stored = features(pictures)
        with way.forward():
            embeddings = sam.encode_suffix(stored, injection.first_trainable_block)
            output = sam.decode(embeddings, prompts, multimask=multimask)
        with way.backward():
            loss(output, targets).total.backward()

    return call
