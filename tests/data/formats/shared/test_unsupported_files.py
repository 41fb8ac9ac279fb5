"""Names that lie about their content, and files of kinds that are not read."""

from __future__ import annotations

import bz2
import gzip
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from samadapt.data import check_dataset, read_image
from samadapt.data.findings import FindingError
from samadapt.errors import DataError

VALUES = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_the_content_decides_about_gzip(tmp_path: Path, layers: int, name: str, kind: Any) -> None:
    content = kind(VALUES, np.eye(4)).to_bytes()
    for _ in range(layers):
        content = gzip.compress(content)
    (tmp_path / name).write_bytes(content)
    volume = read_image(tmp_path / name)
    np.testing.assert_array_equal(volume.image, VALUES[::-1, ::-1].transpose(1, 0, 2))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (bz2.compress(b"x" * 400), "bzip2"),
        (b"NRRD0004\n" + b"x" * 400, "data=itk"),
        (b"\0" * 128 + b"DICM" + b"\0" * 400, "DICOM file"),
        (b"version https://git-lfs.github.com/spec/v1\noid secret\n", "git lfs pull"),
        (b"<!DOCTYPE html><title>secret</title>" + b" " * 400, "web page"),
        (b"secret text" * 90, "its content is not"),
        (gzip.compress(b"secret text" * 90, mtime=0), "its content is not"),
    ],
)
def test_other_content_is_named_and_not_quoted(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(FindingError, match=what) as caught:
        read_image(tmp_path / "a.nii.gz")
    assert caught.value.finding.code == "not_nifti"
    assert "secret" not in str(caught.value)


def test_an_archive_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.nii.gz", "w") as archive:
        archive.writestr("a.nii", nib.Nifti1Image(VALUES, np.eye(4)).to_bytes())
    with pytest.raises(FindingError, match=r"zip archive.*unpack it"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("kind", [nib.Spm2AnalyzeImage, nib.AnalyzeImage, nib.Nifti1Pair])
def test_pairs_of_files_say_how_to_convert_them(tmp_path: Path, kind: Any, tools: Any) -> None:
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        values = VALUES if part == "images" else (VALUES > 30).astype(np.int16)
        nib.save(kind(values, np.eye(4)), str(tmp_path / part / "a.img"))
    findings = check_dataset("nifti", tmp_path)
    assert [(f.code, f.severity) for f in findings] == [("not_read", "error")] * 2
    assert "nib.save(nib.load('a.img'), 'a.nii.gz')" in findings[0].fix
    for name in ("a.img", "a.hdr"):
        with pytest.raises(DataError, match=r"Analyze.*convert it"):
            read_image(tmp_path / "images" / name)
    pair = {"image": "images/*.img", "label": "labels/*.img"}
    assert {f.code for f in check_dataset("nifti", tmp_path, **pair)} == {"not_read"}
    # the command of the message makes files that are read
    for part in ("images", "labels"):
        loaded = nib.load(tmp_path / part / "a.img")
        nib.save(loaded, tmp_path / part / "a.nii.gz")
    assert {f.code for f in check_dataset("nifti", tmp_path)} <= {"other_file"}


def test_a_header_alone_under_another_name(tmp_path: Path) -> None:
    header = nib.Nifti1Pair(VALUES, np.eye(4)).header.binaryblock
    (tmp_path / "a.nii").write_bytes(header + b"\0" * 100)
    with pytest.raises(FindingError, match="header of a NIfTI pair"):
        read_image(tmp_path / "a.nii")
    analyze = nib.Spm2AnalyzeImage(VALUES, np.eye(4)).header.binaryblock
    (tmp_path / "a.nii").write_bytes(analyze + b"\0" * 100)
    with pytest.raises(FindingError, match=r"Analyze 7\.5 header"):
        read_image(tmp_path / "a.nii")


def test_freesurfer_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.mgz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"FreeSurfer.*convert"):
        read_image(tmp_path / "a.mgz")
