"""Six sound CT volumes with two classes, and what a check finds in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from samadapt.data.checks.survey import survey

CASES = 6


def volume(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise around 0 HU, and two boxes of two classes that move with the case."""
    image = np.random.default_rng(index).normal(0, 100, (12, 14, 10)).astype(np.float32)
    image[0, 0] = -1000
    labels = np.zeros(image.shape, np.uint8)
    labels[2:5, 2 + index : 6 + index, 2:6] = 1
    labels[6:10, 2:6, 3 : 5 + index % 3] = 2
    return image, labels


def write(root: Path, name: str, image: Any = None, labels: Any = None, **more: Any) -> None:
    """Write the image, the labels or both of a case, with an affine (default: 1 mm, RAS)."""
    affine = more.get("affine", np.eye(4))
    for part, values in (("images", image), ("labels", labels)):
        if values is not None:
            (root / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values, affine), root / part / f"{name}.nii.gz")


def change(root: Path, name: str, how: Callable[..., Any], part: str = "images") -> None:
    """Replace the voxels of a file by what a function makes of them."""
    path = root / part / f"{name}.nii.gz"
    old = nib.load(path)
    nib.save(nib.Nifti1Image(how(np.asarray(old.dataobj)), old.affine), path)


def write_scans(root: Path) -> Path:
    """Write the six cases, c0 to c5; c0 and c5 are validation."""
    for index in range(CASES):
        write(root, f"c{index}", *volume(index))
    return root


def codes(root: Path, **options: Any) -> dict[str, list[str]]:
    """Return the names of the files with a finding, by code."""
    options = {"intensity": "ct", "classes": {"one": 1, "two": 2}} | options
    found: dict[str, list[str]] = {}
    for finding in survey("nifti", root, **options).findings:
        found.setdefault(finding.code, []).append(Path(finding.file).name)
    return found
