"""Broken files of every format give a finding that names the file, and no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from samadapt.cli import main

pytest.importorskip("pydicom")
pytest.importorskip("pycocotools")

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, 4000, dtype=np.uint8).tobytes()


def _png() -> bytes:
    from io import BytesIO

    stream = BytesIO()
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "one_byte": lambda content: content[:1],
    "text": lambda content: b"the scanner was switched off\n" * 9,
    "web_page": lambda content: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "half": lambda content: content[: len(content) // 2],
    "noise": lambda content: NOISE[: max(400, len(content))],
    "zeros": lambda content: bytes(len(content)),
    "no_head": lambda content: bytes(200) + content[200:],
    "another_format": lambda content: _png(),
}
"""Ways to damage the bytes of a file so that no format can read it."""


def _pair(root: Path, save: Callable[[Path, np.ndarray], Any], ending: str) -> None:
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for index in range(3):
        values = np.random.default_rng(index).integers(1, 250, (16, 12), dtype=np.uint8)
        save(root / "images" / f"p{index}{ending}", values)
        Image.fromarray((values > 99).astype(np.uint8)).save(root / "masks" / f"p{index}.png")


def _nifti(root: Path) -> Path:
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for index in range(3):
        values = np.random.default_rng(index).normal(100, 20, (12, 10, 6)).astype(np.float32)
        for part, array in (("images", values), ("labels", (values > 100).astype(np.uint8))):
            nib.save(nib.Nifti1Image(array, np.eye(4)), root / part / f"v{index}.nii.gz")
    return root / "images" / "v1.nii.gz"


def _nifti_plain(root: Path) -> Path:
    _nifti(root)
    for path in sorted(root.glob("*/*.nii.gz")):
        nib.save(nib.load(path), path.with_suffix(""))
        path.unlink()
    return root / "labels" / "v1.nii"


def _pictures(root: Path) -> Path:
    _pair(root, lambda path, values: Image.fromarray(values).save(path), ".png")
    return root / "images" / "p1.png"


def _masks(root: Path) -> Path:
    _pictures(root)
    return root / "masks" / "p1.png"


def _annotations(root: Path) -> Path:
    _pictures(root)
    (root / "annotations").mkdir()
    path = root / "annotations" / "p1.json"
    path.write_text(json.dumps({"boxes": [[1, 1, 9, 9]]}), encoding="utf-8")
    return path


def _tiff(root: Path) -> Path:
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for index in range(3):
        values = np.random.default_rng(index).integers(1, 250, (5, 16, 12), dtype=np.uint16)
        tifffile.imwrite(root / "images" / f"p{index}.tif", values)
        tifffile.imwrite(root / "masks" / f"p{index}.tif", (values > 99).astype(np.uint8))
    return root / "images" / "p1.tif"


def _coco(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    content["categories"].append({"id": 1, "name": "cell"})
    for index in range(3):
        values = np.random.default_rng(index).integers(1, 250, (16, 12), dtype=np.uint8)
        Image.fromarray(values).save(root / "images" / f"p{index}.png")
        entry = {"id": index, "file_name": f"p{index}.png", "height": 16, "width": 12}
        content["images"].append(entry)
        corners = [[1, 1, 9, 1, 9, 9, 1, 9]]
        mark = {"id": index, "image_id": index, "category_id": 1, "segmentation": corners}
        content["annotations"].append(mark)
    path = root / "annotations.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _npz(root: Path) -> Path:
    root.mkdir()
    for index in range(3):
        values = np.random.default_rng(index).integers(1, 250, (5, 16, 12), dtype=np.uint8)
        np.savez(root / f"CT_{index}.npz", imgs=values, gts=(values > 99).astype(np.uint8))
    return root / "CT_1.npz"


FORMATS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "nifti_gz": ("nifti", _nifti),
    "nifti_label": ("nifti", _nifti_plain),
    "png": ("folder", _pictures),
    "mask": ("folder", _masks),
    "boxes": ("folder", _annotations),
    "tiff": ("tiff", _tiff),
    "coco": ("coco", _coco),
    "npz": ("medsam_npz", _npz),
}
CASES = [
    (name, fault)
    for name in (*FORMATS, "dicom")
    for fault in FAULTS
    if (name, fault) not in {("png", "another_format"), ("mask", "another_format")}
]


def test_there_are_sixty_of_them() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize(("name", "fault"), CASES)
def test_a_malformed_file_is_named(
    name: str,
    fault: str,
    tmp_path: Path,
    make_series: Callable[..., list[Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "data"
    if name == "dicom":
        reader = name
        planes = np.random.default_rng(0).integers(0, 900, (5, 8, 10)).astype(np.uint16)
        path = make_series(root / "series", planes)[2]
    else:
        reader, make = FORMATS[name]
        path = make(root)
    sound = _findings(reader, root, capsys)
    assert not [one for one in sound if one["severity"] == "error" and "label" not in one["code"]]
    path.write_bytes(FAULTS[fault](path.read_bytes()))
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    found = [one for one in _findings(reader, root, capsys) if one not in sound]
    named = [one for one in found if str(path) in one["file"] or path.name in one["message"]]
    assert named, found
    assert any(one["severity"] == "error" for one in named)
    assert all(one["code"] and one["message"] and one["fix"] for one in found)
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before


def _findings(reader: str, root: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    code = main(["check", f"data={reader}", f"data.root={root}", "--json"])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    report: dict[str, Any] = json.loads(said.out)
    assert code == (2 if report["errors"] else 0)
    findings: list[dict[str, str]] = report["findings"]
    return findings
