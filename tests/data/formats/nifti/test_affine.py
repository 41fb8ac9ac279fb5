"""Headers that state two voxel sizes, and very small voxels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from samadapt.data import check_dataset, open_dataset, read_image, write_prediction
from samadapt.data.findings import FindingError
from samadapt.data.formats.nifti.affine import is_singular
from samadapt.errors import ConfigError

SHAPE = (6, 7, 5)


def conflicting(path: Path, affine: Any, pixdim: Any, values: Any = None) -> Path:
    """Write a NIfTI file with other voxel sizes in its sform than in its pixdim."""
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) if values is None else values
    image = nib.Nifti1Image(values, np.eye(4))
    image.header.set_sform(affine, code=1)
    image.header.set_qform(None, code=0)
    image.header["pixdim"][1:4] = pixdim
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header_and(values, image.header))
    return path


def header_and(values: Any, header: Any) -> bytes:
    """Return the bytes of a file; nibabel would make the header consistent."""
    header = header.copy()
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header.binaryblock + b"\0" * 4 + np.asarray(values).tobytes(order="F")


def test_a_contradiction_is_refused_with_both_values_and_the_key(tmp_path: Path) -> None:
    path = conflicting(tmp_path / "a.nii", np.eye(4), [1, 1, 10])
    with pytest.raises(FindingError) as caught:
        read_image(path)
    finding = caught.value.finding
    assert finding.code == "spacing_conflict"
    assert "1 x 1 x 1" in finding.message
    assert "1 x 1 x 10" in finding.message
    assert "data.spacing=affine" in finding.fix
    assert "data.spacing=pixdim" in finding.fix


@pytest.mark.parametrize(("choice", "depth"), [("affine", 1.0), ("pixdim", 10.0)])
def test_the_key_chooses_and_the_prediction_agrees_with_itself(
    tmp_path: Path, choice: str, depth: float
) -> None:
    affine = np.array([[0, -1, 0, 4], [1, 0, 0, -7], [0, 0, 1, 2], [0, 0, 0, 1.0]])
    path = conflicting(tmp_path / "a.nii", affine, [1, 1, 10])
    volume = read_image(path, axis="axial", spacing=choice)
    assert volume.spacing_mm == (1, 1, depth)
    write_prediction(np.ones(volume.shape, np.uint8), volume, tmp_path / "out.nii")
    again = read_image(tmp_path / "out.nii", axis="axial")  # the written header is consistent
    assert again.spacing_mm == (1, 1, depth)
    expected = affine @ np.diag([1, 1, depth, 1])
    np.testing.assert_allclose(nib.load(tmp_path / "out.nii").affine, expected)


def test_a_mask_is_compared_too(tmp_path: Path) -> None:
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    for name in "ab":
        (tmp_path / "images").mkdir(exist_ok=True)
        image = nib.Nifti1Image(values + ord(name), np.eye(4))
        nib.save(image, tmp_path / "images" / f"{name}.nii")
        mask = (values > 50).astype(np.uint8)
        pixdim = [1, 1, 1] if name == "a" else [1, 3, 1]
        conflicting(tmp_path / "labels" / f"{name}.nii", np.eye(4), pixdim, mask)
    (finding,) = check_dataset("nifti", tmp_path)
    assert finding.code == "spacing_conflict"
    assert finding.file == str(tmp_path / "labels" / "b.nii")
    dataset = open_dataset("nifti", tmp_path, intensity="mri", spacing="affine")
    assert [case.spacing_mm for case in dataset.cases] == [(1, 1, 1)] * 2
    assert {f.code for f in check_dataset("nifti", tmp_path, spacing="pixdim")} == {"grid_mismatch"}
    with pytest.raises(ConfigError, match=r"data\.spacing.*'sform'"):
        open_dataset("nifti", tmp_path, spacing="sform")


@pytest.mark.parametrize(
    ("affine", "pixdim"),
    [
        (np.diag([0.48828125, 0.48828125, 3, 1]), [0.49, 0.49, 3.0]),
        (np.array([[1, 0, 0, 0], [0, 1, 0.5, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]]), [1, 1, 2]),
        (np.array([[1, 0, 0, 0], [0, 1, 0.5, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]]), [1, 1, 4.25**0.5]),
    ],
)
def test_rounding_and_a_tilted_gantry_are_no_contradiction(
    tmp_path: Path, affine: Any, pixdim: Any
) -> None:
    volume = read_image(conflicting(tmp_path / "a.nii", affine, pixdim))
    lengths = sorted(np.linalg.norm(affine[:3, :3], axis=0))
    assert sorted(volume.spacing_mm or ()) == pytest.approx(lengths)


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e-4, 1e5])
@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_spacing_of_any_unit_is_read_and_written(tmp_path: Path, size: float, ending: str) -> None:
    affine = np.diag([-2 * size, -size, 5 * size, 1.0])
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    path = tmp_path / f"a.{ending}"
    if ending == "nii.gz":
        nib.save(nib.Nifti1Image(values, affine), path)
    else:
        sitk = pytest.importorskip("SimpleITK")
        image = sitk.GetImageFromArray(values.T)
        image.SetSpacing((2 * size, size, 5 * size))
        sitk.WriteImage(image, str(path))
    volume = read_image(path)
    assert volume.spacing_mm == pytest.approx((size, 2 * size, 5 * size))
    out = tmp_path / f"out.{ending}"
    write_prediction((volume.image > 9).astype(np.uint8), volume, out)
    assert read_image(out).spacing_mm == pytest.approx(volume.spacing_mm)
    assert read_image(out).source.affine == pytest.approx(affine, abs=size * 1e-5)


def test_singular_is_relative() -> None:
    assert not is_singular(np.diag([1e-12, 1e-12, 1e-12, 1]))
    assert is_singular(np.diag([1.0, 1.0, 0.0, 1]))
    flat = np.eye(4)
    flat[:3, 2] = [0, 1, 1e-9]
    assert is_singular(flat)
    assert is_singular(flat * [1e6, 1e6, 1e6, 1])
    assert is_singular(np.full((4, 4), np.nan))


def test_a_matrix_without_an_inverse_is_refused(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, 2] = affine[:3, 1]
    with pytest.raises(FindingError, match="cannot be inverted"):
        read_image(conflicting(tmp_path / "a.nii", affine, [1, 1, 1]))
