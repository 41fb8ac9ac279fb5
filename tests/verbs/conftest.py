"""Tiny data sets and runs of the random model ``tiny``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samadapt.config import compose
from samadapt.verbs.finetune import FinetuneResult, finetune


def rectangles(rng: np.random.Generator, shape: tuple[int, int], classes: int) -> np.ndarray:
    """Labels with one rectangle a class, left to right."""
    labels = np.zeros(shape, np.uint8)
    width = shape[1] // classes
    for index in range(classes):
        row, column = rng.integers(1, shape[0] - 8), index * width + rng.integers(0, 2)
        labels[row : row + 6, column : column + width - 2] = index + 1
    return labels


@pytest.fixture
def make_pictures(tmp_path: Path) -> Callable[..., Path]:
    """``make_pictures(count, classes)``: images/ and masks/ of 24 x 40 pixels."""

    def make(count: int = 8, classes: int = 1, name: str = "pictures") -> Path:
        root = tmp_path / name
        for part in ("images", "masks"):
            (root / part).mkdir(parents=True)
        for index in range(count):
            rng = np.random.default_rng(index)
            labels = rectangles(rng, (24, 40), classes)
            image = rng.integers(0, 40, (24, 40, 3), dtype=np.uint8)
            image[labels > 0] += (40 * labels[labels > 0])[:, None] % 200
            Image.fromarray(image).save(root / "images" / f"p{index}.png")
            Image.fromarray(labels).save(root / "masks" / f"p{index}.png")
        return root

    return make


@pytest.fixture
def make_scans(tmp_path: Path) -> Callable[..., Path]:
    """``make_scans(count)``: an MSD folder of volumes with two classes and an empty slice."""

    def make(count: int = 5) -> Path:
        root = tmp_path / "scans"
        for part in ("imagesTr", "labelsTr"):
            (root / part).mkdir(parents=True)
        entries = []
        for index in range(count):
            rng = np.random.default_rng(index)
            labels = np.stack([rectangles(rng, (20, 28), 2) for _ in range(4)], axis=-1)
            labels[..., 0] = 0
            image = (rng.uniform(1, 100, labels.shape) + 150 * labels).astype(np.float32)
            name = f"scan_{index}.nii.gz"
            affine = np.diag([1.0, 1.0, 2.0, 1.0])
            nib.save(nib.Nifti1Image(image, affine), root / "imagesTr" / name)
            nib.save(nib.Nifti1Image(labels, affine), root / "labelsTr" / name)
            entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
        content = {
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "front", "2": "back"},
            "training": entries,
        }
        (root / "dataset.json").write_text(json.dumps(content))
        return root

    return make


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of four steps on the CPU, writing below ``tmp_path``."""
    path = tmp_path / "small.yaml"
    path.write_text(
        "model: {name: tiny}\n"
        "data: {name: folder}\n"
        "train: {steps: 4, batch_size: 2, warmup_steps: 1, validate_every: 2, "
        "checkpoint_every: 2}\n"
        "eval: {overlays: 0}\n"
        f"output: {{dir: {tmp_path / 'runs'}}}\n"
        "precision: fp32\n"
        "device: cpu\n"
    )
    return path


@pytest.fixture
def run(recipe: Path) -> Callable[..., FinetuneResult]:
    """``run(root, "key=value", ...)``: what ``finetune`` returned."""

    def start(root: Path, *overrides: str) -> FinetuneResult:
        return finetune(compose(str(recipe), [f"data.root={root}", *overrides]))

    return start
