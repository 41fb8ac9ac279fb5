"""What a check finds in data that can be read, leaks, and what it says of each class."""

from __future__ import annotations

import gzip
import hashlib
import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samadapt.data import open_dataset
from samadapt.data.checks.survey import survey
from samadapt.errors import ConfigError, DataError

Spoil = Callable[[Path, Any], None]
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
    affine = more.get("affine", np.eye(4))
    for part, values in (("images", image), ("labels", labels)):
        if values is not None:
            (root / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values, affine), root / part / f"{name}.nii.gz")


def change(root: Path, name: str, how: Callable[..., Any], part: str = "images") -> None:
    path = root / part / f"{name}.nii.gz"
    old = nib.load(path)
    nib.save(nib.Nifti1Image(how(np.asarray(old.dataobj)), old.affine), path)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Six sound cases; c0 and c5 are validation."""
    root = tmp_path / "scans"
    for index in range(CASES):
        write(root, f"c{index}", *volume(index))
    return root


def codes(root: Path, **options: Any) -> dict[str, list[str]]:
    """Names of the files found at fault, by code."""
    options = {"intensity": "ct", "classes": {"one": 1, "two": 2}} | options
    found: dict[str, list[str]] = {}
    for finding in survey("nifti", root, **options).findings:
        found.setdefault(finding.code, []).append(Path(finding.file).name)
    return found


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
        (lambda r: write(r, "c4", volume(3)[0]), {"duplicate_image": ["c4.nii.gz"]}),
        (lambda r: write(r, "c4", volume(0)[0]), {"duplicate_leak": ["c4.nii.gz"]}),
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


def test_a_copy_on_the_other_side_is_refused_and_can_be_left_out(scans: Path) -> None:
    """As another file, compressed otherwise, with another type of voxels."""
    values = np.round(volume(0)[0])
    for name, dtype in (("c0", np.float32), ("c4", np.int16)):
        write(scans, name, values.astype(dtype))
    with pytest.raises(
        DataError, match=r"c4\.nii\.gz: holds the same voxels as .*c0\.nii\.gz"
    ) as e:
        open_dataset("nifti", scans, intensity="ct")
    assert "copies are in training and in validation" in str(e.value)
    assert "data.on_error=skip" in str(e.value)
    dataset = open_dataset("nifti", scans, intensity="ct", on_error="skip")
    assert dataset.left_out == ["c4"]
    assert "c4" not in dataset.train + dataset.val
    assert [finding.code for finding in dataset.findings] == ["duplicate_image"]
    write(scans, "c4", volume(3)[0])  # both in training
    dataset = open_dataset("nifti", scans, intensity="ct")
    assert [finding.code for finding in dataset.findings] == ["duplicate_image"]


def test_cases_of_a_patient_stay_together(tmp_path: Path) -> None:
    root = tmp_path / "visits"
    for index in range(9):
        write(root, f"p{index // 3}_{index % 3}", *volume(index % 8 + index // 8))
        change(root, f"p{index // 3}_{index % 3}", lambda v, i=index: v + i)
    alone = open_dataset("nifti", root, intensity="ct")
    assert {name[:2] for name in alone.train} & {name[:2] for name in alone.val}
    grouped = open_dataset("nifti", root, intensity="ct", patient=r"(.+)_\d", val_every=3)
    assert not {name[:2] for name in grouped.train} & {name[:2] for name in grouped.val}
    assert grouped.val == ["p0_0", "p0_1", "p0_2"]
    with pytest.raises(ConfigError, match="in both splits"):
        open_dataset(
            "nifti", root, intensity="ct", patient=r"(.+)_\d", split={"val": ["p0_0", "p1_0"]}
        )
    found = survey("nifti", root, patient=r"(.+)_\d", val_every=3)
    assert found.patients == 3
    assert survey("nifti", root).patients is None
    partly = survey("nifti", root, patient=r"(p[01])_\d")
    assert [finding.code for finding in partly.findings if finding.code == "no_patient"]
    assert partly.patients == 5


@pytest.mark.parametrize("pattern", ["(", "p.+", "(p)(.)"])
def test_a_pattern_that_is_none(scans: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.patient"):
        open_dataset("nifti", scans, intensity="ct", patient=pattern)


def test_a_card_s_split_that_divides_a_patient_is_a_finding(
    scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samadapt.data.checks import survey as check

    card = SimpleNamespace(split={"val": ["c0"]}, classes=None, intensity=None)
    real = check.open_reader
    monkeypatch.setattr(check, "open_reader", lambda *args: (card, real(*args)[1]))
    found = codes(scans, patient="(c)[0-9]")
    assert list(found) == ["bad_split"]
    card.split = {"val": ["c0"], "train": ["nobody"]}
    assert list(codes(scans)) == ["bad_split"]


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


def test_nothing_is_changed(scans: Path) -> None:
    def state() -> dict[Path, tuple[str, int]]:
        return {
            path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in scans.rglob("*")
            if path.is_file()
        }

    before = state()
    codes(scans)
    assert state() == before


@pytest.mark.slow
def test_a_thousand_small_volumes_take_less_than_a_minute(tmp_path: Path) -> None:
    root = tmp_path / "many"
    for index in range(1000):
        image = np.random.default_rng(index).normal(0, 100, (36, 50, 35)).astype(np.float32)
        labels = np.zeros(image.shape, np.uint8)
        labels[8:20, 9 + index % 9 : 40, 5:20], labels[22:30, 9:40, 5 : 20 + index % 11] = 1, 2
        labels[0, 0, index % 35] = 1
        write(root, f"c{index:04d}", image, labels)
    before = resource.getrusage(resource.RUSAGE_SELF)
    found = survey("nifti", root, intensity="mri")
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert found.cases == 1000
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
