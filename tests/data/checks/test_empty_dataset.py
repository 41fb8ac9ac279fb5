"""Data sets of which nothing can be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samadapt.data.checks.survey import check_dataset
from samadapt.data.dataset import open_dataset
from samadapt.errors import DataError


def errors(name: str, root: Path, **options: Any) -> list[Any]:
    return [f for f in check_dataset(name, root, **options) if f.severity == "error"]


def test_a_folder_without_a_readable_case_names_its_endings(tmp_path: Path, tools: Any) -> None:
    for index in range(3):
        tools.write_nifti(tmp_path / "images" / f"{index}.nii.gz", np.ones((3, 3, 3), np.uint8))
    (tmp_path / "images" / "notes.docx").write_text("x", encoding="utf-8")
    (found,) = errors("folder", tmp_path)
    assert found.code == "no_cases"
    assert "3 .nii.gz, 1 .docx" in found.message
    assert ".png" in found.message
    assert "data=nifti (.nii.gz)" in found.fix
    for on_error in ("stop", "skip"):
        with pytest.raises(DataError, match=r"3 \.nii\.gz") as refused:
            open_dataset("folder", tmp_path, on_error=on_error)
        assert "on_error=skip" not in str(refused.value)


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("folder", "nifti", "itk"):
        found = errors(name, tmp_path)
        assert [f.code for f in found] == ["no_cases"]
        assert "the folder holds no file" in found[0].message


def test_a_wrong_layout_also_names_the_endings(tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    for name, code in (("folder", "missing_folder"), ("coco", "missing_label")):
        (found,) = errors(name, tmp_path)
        assert found.code == code
        assert "1 .png" in found.message
    (tmp_path / "a.json").write_text("{}", encoding="utf-8")
    assert "data=labelme (.json)" in errors("folder", tmp_path)[0].fix


def test_empty_masks_are_an_error_that_says_so(make_folder: Callable[..., Path]) -> None:
    root = make_folder(count=4, value=0)
    (found,) = errors("folder", root)
    assert found.code == "no_objects"
    assert found.message == "no mask contains an object: all 4 are empty"
    for on_error in ("stop", "skip"):
        with pytest.raises(DataError, match="no mask contains an object"):
            open_dataset("folder", root, on_error=on_error)


def test_classes_that_no_mask_holds_are_an_error(make_folder: Callable[..., Path]) -> None:
    root = make_folder(count=3, value=2)
    with pytest.raises(DataError, match=r"none of 3 masks holds a value of the classes \(cell=7\)"):
        open_dataset("folder", root, classes={"cell": 7})
    assert "found: 2" in errors("folder", root, classes={"cell": 7})[0].message
