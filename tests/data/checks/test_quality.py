"""Each planted problem of a readable data set is one finding, and statistics are those of numpy."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scan_files import CASES, change, codes, volume, write

from samadapt.data.checks.survey import survey


def test_sound_data_have_no_finding(scans: Path) -> None:
    assert codes(scans) == {}


def turned(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine


def rewrite(root: Path, name: str, affine: np.ndarray) -> None:
    write(root, name, *volume(int(name[1])), affine=affine)


def without_codes(root: Path) -> None:
    for part in ("images", "labels"):
        path = root / part / "c3.nii.gz"
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[252:256] = bytes(4)  # qform_code and sform_code
        path.write_bytes(gzip.compress(bytes(raw)))


def two_grids(root: Path) -> None:
    for part in ("images", "labels"):
        path = root / part / "c3.nii.gz"
        image = nib.load(path)
        other = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
        moved = image.affine.copy()
        moved[0, 3] += 50
        other.set_sform(image.affine, "scanner")
        other.set_qform(moved, "scanner")
        path.unlink()
        nib.save(other, path)


def one_only(root: Path) -> None:
    for index in (0, 1, 2, 4, 5):
        change(root, f"c{index}", lambda v: np.where(v == 2, 1, v).astype(np.uint8), "labels")


def not_in_validation(root: Path) -> None:
    for index in (0, 5):
        change(root, f"c{index}", lambda v: np.where(v == 2, 1, v).astype(np.uint8), "labels")


def speck(values: np.ndarray) -> np.ndarray:
    values[11, 13, 9] = 1
    return values


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda r: change(r, "c2", lambda v: np.clip(v, None, 40)), {}),  # a window does so to CT
        (lambda r: change(r, "c2", lambda v: v + 1100), {"hu_offset": ["c2.nii.gz"]}),
        (lambda r: change(r, "c2", lambda v: v - 400), {"hu_range": ["c2.nii.gz"]}),
        (lambda r: change(r, "c2", lambda v: v * 10), {"hu_range": ["c2.nii.gz"]}),
        (
            lambda r: change(r, "c1", lambda v: np.full_like(v, 2), "labels"),
            {"constant_mask": ["c1.nii.gz"]},
        ),
        (lambda r: change(r, "c1", speck, "labels"), {"tiny_objects": ["c1.nii.gz"]}),
        (
            lambda r: rewrite(r, "c3", np.diag([1, 1, 6, 1])),
            {"anisotropic": ["c3.nii.gz"], "spacing_outlier": ["c3.nii.gz"]},
        ),
        (
            lambda r: rewrite(r, "c3", np.diag([2.5, 2.5, 2.5, 1])),
            {"spacing_outlier": ["c3.nii.gz"]},
        ),
        (lambda r: rewrite(r, "c3", turned(20)), {"oblique": ["c3.nii.gz"]}),
        (lambda r: rewrite(r, "c3", turned(5)), {}),
        (
            lambda r: rewrite(r, "c3", np.diag([-1, 1, 1, 1])),
            {"orientation_differs": ["c3.nii.gz"]},
        ),
        (without_codes, {"no_orientation": ["c3.nii.gz"]}),
        (two_grids, {"two_grids": ["c3.nii.gz"]}),
        (
            lambda r: write(r, "c4", *(np.tile(v, (4, 1, 1)) for v in volume(4))),
            {"size_outlier": ["c4.nii.gz"]},
        ),
        (
            lambda r: change(r, "c4", lambda v: volume(3)[1], "labels"),
            {"same_mask": ["c4.nii.gz"]},
        ),
        (one_only, {"rare_class": ["c3.nii.gz"], "class_missing_in_split": ["scans"]}),
        (not_in_validation, {"class_missing_in_split": ["scans"]}),
    ],
)
def test_one_planted_problem_is_one_finding(
    scans: Path, spoil: Callable[[Path], None], expected: dict[str, list[str]]
) -> None:
    spoil(scans)
    assert codes(scans) == expected


def test_problems_of_other_values_and_of_few_cases(scans: Path) -> None:
    change(scans, "c2", lambda v: np.clip(v, None, 40))
    found = codes(scans, intensity="mri", classes={"one": 1, "two": 2, "three": 3}, max_cases=4)
    assert found == {"saturated": ["c2.nii.gz"], "class_absent": ["scans"], "few_cases": ["scans"]}
    assert "hu_offset" not in codes(scans, intensity=None), "nothing says that it is a CT"


def test_grey_among_colours(make_folder: Callable[..., Path]) -> None:
    root = make_folder(6)
    grey = np.random.default_rng(9).integers(0, 255, (12, 10), dtype=np.uint8)
    Image.fromarray(grey).save(root / "images" / "p3.png")
    found = [finding.code for finding in survey("folder", root).findings]
    assert found.count("mixed_colour") == 1
    assert set(found) == {"mixed_colour", "same_mask"}  # the masks there are alike


def test_statistics_are_those_of_numpy(scans: Path) -> None:
    for index in range(CASES):
        rewrite(scans, f"c{index}", np.diag([0.5, 0.7, 2, 1]))
    rows = survey("nifti", scans, classes={"one": 1, "two": 2})
    images, labels = zip(*(volume(index) for index in range(CASES)), strict=True)
    for number, row in enumerate(rows.classes, start=1):
        masks = [mask == number for mask in labels]
        values = np.concatenate([i[m] for i, m in zip(images, masks, strict=True)]).astype(float)
        assert row["cases"] == CASES
        assert row["voxels"] == len(values)
        assert row["slices"] == sum(int(mask.any((0, 1)).sum()) for mask in masks)
        assert row["ml"] == pytest.approx(len(values) * 0.7e-3, rel=1e-5)
        stated: Any = row["intensity"]
        expected = {"mean": values.mean(), "sd": values.std()}
        expected |= {"min": values.min(), "max": values.max()}
        assert stated == pytest.approx(expected)
        spacing: Any = row["spacing_mm"]
        assert spacing["min"] == pytest.approx((0.7, 0.5, 2))


def test_a_class_of_several_values_and_pictures(make_folder: Callable[..., Path]) -> None:
    root = make_folder(5)
    (row,) = survey("folder", root).classes
    assert (row["cases"], row["slices"], row["voxels"]) == (5, 5, 5 * 16)
    assert (row["ml"], row["spacing_mm"]) == (None, None)
    values = [
        np.asarray(Image.open(root / "images" / f"p{i}.png").convert("RGB"))[3:7, 2:6]
        for i in range(5)
    ]
    stated: Any = row["intensity"]
    assert stated["mean"] == pytest.approx(np.mean(values))
    assert stated["sd"] == pytest.approx(np.std(values))
