"""Small data sets made on the spot, and the real ones where they are present."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series
from PIL import Image


def write_nifti(path: Path, values: Any, affine: Any = None, **header: Any) -> Path:
    """Write an array as NIfTI with an affine (default: 1 mm, RAS)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values)
    affine = np.eye(4) if affine is None else affine
    image = nib.Nifti1Image(values, affine, dtype=values.dtype)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def volume_pair(
    seed: int, shape: tuple[int, int, int] = (8, 9, 6)
) -> tuple[np.ndarray, np.ndarray]:
    """Return random float32 intensities and uint8 labels 0..2, two empty slices at the top."""
    generator = np.random.default_rng(seed)
    image = generator.uniform(1, 1000, shape).astype(np.float32)
    labels = generator.integers(0, 3, shape).astype(np.uint8)
    labels[:, :, -2:] = 0
    return image, labels


@pytest.fixture
def tools() -> SimpleNamespace:
    """Return the helpers above; test modules cannot import this file."""
    return SimpleNamespace(write_nifti=write_nifti, volume_pair=volume_pair)


@pytest.fixture
def make_msd(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes an MSD folder of some cases."""

    def make(count: int = 6, **declared: Any) -> Path:
        root = tmp_path / "msd"
        entries = []
        for index in range(count):
            name = f"case_{index:02d}.nii.gz"
            image, labels = volume_pair(index)
            write_nifti(root / "imagesTr" / name, image)
            write_nifti(root / "labelsTr" / name, labels)
            entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
        content = {
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "one", "2": "two"},
            "training": entries,
            **declared,
        }
        (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
        return root

    return make


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes an images/ + masks/ folder of colour pictures."""

    def make(count: int = 6, value: int = 255) -> Path:
        root = tmp_path / "folder"
        for part in ("images", "masks"):
            (root / part).mkdir(parents=True)
        for index in range(count):
            generator = np.random.default_rng(index)
            image = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            mask = np.zeros((12, 10), dtype=np.uint8)
            mask[3:7, 2:6] = value
            Image.fromarray(image).save(root / "images" / f"p{index}.png")
            Image.fromarray(mask).save(root / "masks" / f"p{index}.png")
        return root

    return make


@pytest.fixture
def make_series() -> Callable[..., list[Path]]:
    """Return ``dicom_files.write_series``, which writes a DICOM series; skip without pydicom."""
    pytest.importorskip("pydicom")
    return write_series
