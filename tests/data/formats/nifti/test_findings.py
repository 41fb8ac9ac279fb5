"""Each fault of a NIfTI file is one finding that names the file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from samadapt.data import check_dataset, open_dataset
from samadapt.errors import ConfigError, DataError

Spoil = Callable[[Path, Any], None]
IMAGE, LABEL = "imagesTr/case_02.nii.gz", "labelsTr/case_02.nii.gz"


def _patch(path: Path, offset: int, content: bytes) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[offset : offset + len(content)] = content
    path.write_bytes(gzip.compress(bytes(raw)))


def _empty(root: Path, tools: Any) -> None:
    (root / IMAGE).write_bytes(b"")


def _truncated(root: Path, tools: Any) -> None:
    content = (root / IMAGE).read_bytes()
    (root / IMAGE).write_bytes(content[: len(content) // 2])


def _last_bytes_gone(root: Path, tools: Any) -> None:
    (root / LABEL).write_bytes((root / LABEL).read_bytes()[:-5])


def _flipped_bit(root: Path, tools: Any) -> None:
    content = bytearray((root / IMAGE).read_bytes())
    content[-3] ^= 255
    (root / IMAGE).write_bytes(content)


def _short_voxels(root: Path, tools: Any) -> None:
    raw = gzip.decompress((root / IMAGE).read_bytes())
    (root / IMAGE).write_bytes(gzip.compress(raw[:-100]))


def _not_gzip(root: Path, tools: Any) -> None:
    (root / IMAGE).write_bytes(b"<html>not found</html>")


def _not_nifti(root: Path, tools: Any) -> None:
    (root / IMAGE).write_bytes(gzip.compress(b"hello" * 200))


def _complex(root: Path, tools: Any) -> None:
    tools.write_nifti(root / IMAGE, tools.volume_pair(2)[0].astype(np.complex64))


def _rgb(root: Path, tools: Any) -> None:
    dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    tools.write_nifti(root / IMAGE, np.zeros((8, 9, 6), dtype=dtype))


def _fractions(root: Path, tools: Any) -> None:
    tools.write_nifti(root / LABEL, tools.volume_pair(2)[1].astype(np.float32) * 0.7)


def _nan_labels(root: Path, tools: Any) -> None:
    tools.write_nifti(root / LABEL, np.full((8, 9, 6), np.nan, dtype=np.float32))


def _nan(root: Path, tools: Any) -> None:
    image = tools.volume_pair(2)[0]
    image[3, 3, 3] = np.nan
    tools.write_nifti(root / IMAGE, image)


def _infinite(root: Path, tools: Any) -> None:
    image = tools.volume_pair(2)[0]
    image[3, 3, 3] = np.inf
    tools.write_nifti(root / IMAGE, image)


def _zero_spacing(root: Path, tools: Any) -> None:
    _patch(root / IMAGE, 76 + 4 * 2, np.float32(0).tobytes())


def _negative_spacing(root: Path, tools: Any) -> None:
    _patch(root / LABEL, 76 + 4 * 3, np.float32(-1).tobytes())


def _flat_affine(root: Path, tools: Any) -> None:
    _patch(root / IMAGE, 280, np.zeros(12, np.float32).tobytes())  # srow_x, srow_y, srow_z


def _value_outside(root: Path, tools: Any) -> None:
    labels = tools.volume_pair(2)[1]
    labels[0, 0, 0] = 9
    tools.write_nifti(root / LABEL, labels)


def _negative_value(root: Path, tools: Any) -> None:
    tools.write_nifti(root / LABEL, tools.volume_pair(2)[1].astype(np.int16) - 1)


def _no_label(root: Path, tools: Any) -> None:
    (root / LABEL).unlink()


def _no_image(root: Path, tools: Any) -> None:
    (root / IMAGE).unlink()


def _shapes(root: Path, tools: Any) -> None:
    tools.write_nifti(root / LABEL, tools.volume_pair(2, (8, 9, 5))[1])


def _affines(root: Path, tools: Any) -> None:
    affine = np.eye(4)
    affine[0, 3] = 4
    tools.write_nifti(root / LABEL, tools.volume_pair(2)[1], affine)


def _four_axes(root: Path, tools: Any) -> None:
    tools.write_nifti(root / IMAGE, np.stack([tools.volume_pair(2)[0]] * 2, axis=3))


def _five_axes(root: Path, tools: Any) -> None:
    tools.write_nifti(root / IMAGE, np.ones((8, 9, 6, 2, 2), np.float32))


def _constant(root: Path, tools: Any) -> None:
    tools.write_nifti(root / IMAGE, np.full((8, 9, 6), 7, np.float32))


def _double(root: Path, tools: Any) -> None:
    tools.write_nifti(root / "imagesTr/case_02.nii", tools.volume_pair(2)[0])


FAULTS: list[tuple[Spoil, str, str]] = [
    (_empty, "empty_file", IMAGE),
    (_truncated, "truncated_file", IMAGE),
    (_last_bytes_gone, "truncated_file", LABEL),
    (_flipped_bit, "truncated_file", IMAGE),
    (_short_voxels, "truncated_file", IMAGE),
    (_not_gzip, "not_nifti", IMAGE),
    (_not_nifti, "not_nifti", IMAGE),
    (_complex, "unsupported_dtype", IMAGE),
    (_rgb, "unsupported_dtype", IMAGE),
    (_fractions, "non_integer_labels", LABEL),
    (_nan_labels, "non_integer_labels", LABEL),
    (_nan, "non_finite_voxels", IMAGE),
    (_infinite, "non_finite_voxels", IMAGE),
    (_zero_spacing, "bad_spacing", IMAGE),
    (_negative_spacing, "bad_spacing", LABEL),
    (_flat_affine, "bad_spacing", IMAGE),
    (_value_outside, "label_value", LABEL),
    (_negative_value, "label_value", LABEL),
    (_no_label, "missing_label", IMAGE),
    (_no_image, "missing_image", LABEL),
    (_shapes, "shape_mismatch", LABEL),
    (_affines, "grid_mismatch", LABEL),
    (_four_axes, "channel_choice", IMAGE),
    (_five_axes, "bad_shape", IMAGE),
    (_constant, "constant_image", IMAGE),
    (_double, "duplicate_case", IMAGE),
]


@pytest.mark.parametrize(("spoil", "code", "file"), FAULTS, ids=[f[0].__name__ for f in FAULTS])
def test_each_fault_is_one_finding(
    make_msd: Callable[..., Path], tools: Any, spoil: Spoil, code: str, file: str
) -> None:
    root = make_msd(4, training=[])
    assert check_dataset("nifti", root) == []
    spoil(root, tools)
    findings = check_dataset("nifti", root)
    assert [(finding.code, finding.severity) for finding in findings] == [(code, "error")]
    assert findings[0].file == str(root / file)
    assert findings[0].message
    assert findings[0].fix
    with pytest.raises(DataError, match=rf"(?s)1 error .*{code}.*on_error=skip"):
        open_dataset("nifti", root)
    dataset = open_dataset("nifti", root, on_error="skip")
    assert dataset.left_out == ["case_02"]
    assert [case.name for case in dataset.cases] == ["case_00", "case_01", "case_03"]


def test_grid_findings_name_both_files(make_msd: Callable[..., Path], tools: Any) -> None:
    root = make_msd(2)
    tools.write_nifti(
        root / "labelsTr/case_01.nii.gz", tools.volume_pair(1)[1], np.diag([1, 1, 2, 1])
    )
    (finding,) = check_dataset("nifti", root)
    assert finding.code == "grid_mismatch"
    assert str(root / "labelsTr/case_01.nii.gz") == finding.file
    assert str(root / "imagesTr/case_01.nii.gz") in finding.message


def test_an_empty_mask_is_a_warning_and_kept(make_msd: Callable[..., Path], tools: Any) -> None:
    root = make_msd(3)
    tools.write_nifti(root / "labelsTr/case_01.nii.gz", np.zeros((8, 9, 6), np.uint8))
    dataset = open_dataset("nifti", root)
    assert [(f.code, f.severity) for f in dataset.findings] == [("no_foreground", "warning")]
    assert len(dataset.cases) == 3


def test_all_faults_are_listed_at_once(make_msd: Callable[..., Path]) -> None:
    root = make_msd(25)
    for path in (root / "imagesTr").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_dataset("nifti", root, on_error="skip")
    assert "25 errors" in str(caught.value)
    assert str(caught.value).count("empty_file") == 20
    assert "and 5 more" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{broken", "broken_dataset_json"),
        ("[1]", "broken_dataset_json"),
        ("{}", "bad_dataset_json"),
        ('{"labels": {"one": "1"}}', "bad_dataset_json"),
        ('{"labels": {"0": "b", "1": "one", "2": "two"}, "training": [3]}', "bad_dataset_json"),
        ('{"labels": {"one": 1}, "file_ending": ".mha"}', "file_ending"),
        (None, "missing_dataset_json"),
    ],
)
def test_dataset_json(make_msd: Callable[..., Path], content: str | None, code: str) -> None:
    root = make_msd(1)
    (root / "dataset.json").unlink()
    if content is not None:
        (root / "dataset.json").write_text(content, encoding="utf-8")
    findings = check_dataset("nifti", root)
    assert [(f.code, f.file) for f in findings] == [(code, str(root / "dataset.json"))]


def test_listed_files_that_are_absent(make_msd: Callable[..., Path]) -> None:
    root = make_msd(2)
    content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    content["training"].append({"image": "imagesTr/x.nii.gz", "label": "labelsTr/x.nii.gz"})
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    codes = {(f.code, f.file) for f in check_dataset("nifti", root)}
    assert ("missing_file", str(root / "imagesTr/x.nii.gz")) in codes


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    assert [f.code for f in check_dataset("nifti", tmp_path / "none")] == ["missing_folder"]
    assert [f.code for f in check_dataset("nifti", tmp_path)] == ["missing_folder"]
    assert [f.code for f in check_dataset("nifti")] == ["missing_folder"]
    (tmp_path / "images").mkdir()
    assert [f.code for f in check_dataset("nifti", tmp_path)] == ["no_cases"]
    (tmp_path / "images" / "notes.txt").write_text("x", encoding="utf-8")
    assert [f.code for f in check_dataset("nifti", tmp_path)] == ["no_cases", "other_file"]
    with pytest.raises(DataError, match="no usable case"):
        open_dataset("nifti", tmp_path)


def test_hidden_files_are_no_cases(make_msd: Callable[..., Path]) -> None:
    root = make_msd(2)
    (root / "imagesTr" / "._case_00.nii.gz").write_bytes(b"resource fork")
    assert check_dataset("nifti", root) == []


def test_a_file_that_breaks_later_names_itself(make_msd: Callable[..., Path]) -> None:
    root = make_msd(2)
    dataset = open_dataset("nifti", root)
    (root / "imagesTr/case_01.nii.gz").write_bytes(b"")
    dataset.scanned.keep_only([], dataset.intensity)  # as if memory had held none of the volumes
    with pytest.raises(DataError, match=r"case_01\.nii\.gz.*empty"):
        dataset.sample(dataset.slices("train")[0])


def test_an_unforeseen_exception_is_a_finding(
    make_msd: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise MemoryError

    root = make_msd(1)
    monkeypatch.setattr("samadapt.data.formats.nifti.reader.load_nifti", explode)
    (finding,) = check_dataset("nifti", root)
    assert finding.code == "unreadable_image"
    assert finding.file == str(root / "imagesTr/case_00.nii.gz")


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'nifti'"):
        open_dataset("niftii", tmp_path)
    with pytest.raises(ConfigError, match=r"on_error"):
        open_dataset("nifti", tmp_path, on_error="ignore")
    with pytest.raises(ConfigError, match=r"did you mean 'coronal'"):
        open_dataset("nifti", tmp_path, axis="coronall")


def test_sform_and_qform_alone_are_one_grid(make_msd: Callable[..., Path], tools: Any) -> None:
    root = make_msd(1)
    image = nib.Nifti1Image(tools.volume_pair(0)[1], None)
    image.set_qform(np.eye(4), 1)
    nib.save(image, root / "labelsTr/case_00.nii.gz")
    assert check_dataset("nifti", root) == []
