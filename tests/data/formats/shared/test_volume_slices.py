"""Slices are upright, and a prediction returns exactly to the grid of the source."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from samadapt.data import check_dataset, open_dataset, read_image, write_prediction
from samadapt.data.findings import FindingError
from samadapt.data.formats.shared.volume_slices import to_slices
from samadapt.data.formats.shared.volume_values import finite_image
from samadapt.errors import DataError

ORIENTATIONS = [
    np.array(list(zip(order, signs, strict=True)), dtype=float)
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]
SPACING = np.diag([1.5, 2.0, 3.0, 1.0])


def oblique(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = [12.5, -30.25, 7.0]
    return turn @ SPACING


def save_oriented(path: Path, values: np.ndarray, affine: np.ndarray, ornt: np.ndarray) -> None:
    """Save the same anatomy with its axes permuted and flipped."""
    stored = apply_orientation(values, ornt)
    image = nib.Nifti1Image(stored, affine @ inv_ornt_aff(ornt, values.shape))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 2)
    nib.save(image, path)


@pytest.mark.parametrize("degrees", [0, 20])
@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal", "auto"])
def test_all_48_orientations_come_back_exactly(tmp_path: Path, axis: str, degrees: float) -> None:
    values = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    seen = []
    assert len(ORIENTATIONS) == 48
    for index, ornt in enumerate(ORIENTATIONS):
        path, out = tmp_path / f"{index}.nii", tmp_path / f"out_{index}.nii.gz"
        save_oriented(path, values, oblique(degrees), ornt)
        volume = read_image(path, axis=axis)
        write_prediction(volume.image.astype(np.int16), volume, out)
        before, after = nib.load(path), nib.load(out)
        np.testing.assert_array_equal(np.asarray(before.dataobj), np.asarray(after.dataobj))
        np.testing.assert_array_equal(before.affine, after.affine)
        for form in ("sform", "qform"):
            first, second = (getattr(image, f"get_{form}")(coded=True) for image in (before, after))
            np.testing.assert_array_equal(first[0], second[0])
            assert first[1] == second[1]
        seen.append(volume)
    for volume in seen[1:]:  # the anatomy is the same, and so are the slices
        np.testing.assert_array_equal(volume.image, seen[0].image)
        np.testing.assert_allclose(volume.spacing_mm, seen[0].spacing_mm, rtol=1e-6)


def test_slices_are_upright(tmp_path: Path) -> None:
    values = np.zeros((4, 5, 6), dtype=np.float32)
    values[3, 4, 5] = 1  # right, anterior, superior
    save_oriented(tmp_path / "a.nii", values, SPACING, ORIENTATIONS[0])
    expected = {  # (h, w, d) and the place of the corner voxel: radiological convention
        "axial": ((5, 4, 6), (0, 0, 5), (2.0, 1.5, 3.0)),
        "coronal": ((6, 4, 5), (0, 0, 4), (3.0, 1.5, 2.0)),
        "sagittal": ((6, 5, 4), (0, 0, 3), (3.0, 2.0, 1.5)),
    }
    for axis, (shape, corner, spacing) in expected.items():
        volume = read_image(tmp_path / "a.nii", axis=axis)
        assert volume.shape == shape
        assert volume.image[corner] == 1
        assert volume.spacing_mm == pytest.approx(spacing)


@pytest.mark.parametrize(
    ("spacing", "shape", "axis"),
    [
        ((1, 1, 1), (4, 5, 6), 2),
        ((3, 1, 1), (4, 5, 6), 0),
        ((1, 2.5, 1), (4, 5, 6), 1),
        ((1, 2.5, 2.5), (4, 5, 6), 2),
        ((1, 1, 1), (4, 1, 6), 1),
    ],
)
def test_auto_axis_is_the_one_with_the_largest_spacing(
    tmp_path: Path, spacing: tuple[float, ...], shape: tuple[int, ...], axis: int
) -> None:
    image = nib.Nifti1Image(np.ones(shape, dtype=np.float32), np.diag([*spacing, 1]))
    nib.save(image, tmp_path / "a.nii")
    source = read_image(tmp_path / "a.nii").source
    assert source is not None
    assert source.axis == axis


def test_free_text_of_the_header_is_not_copied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((3, 3, 3), dtype=np.float32), np.eye(4))
    image.header["descrip"] = b"MUSTERMANN"
    image.header["db_name"] = b"MUSTERMANN"
    image.header["aux_file"] = b"MUSTERMANN"
    image.header["data_type"] = b"MUSTERMANN"
    image.header["intent_name"] = b"MUSTERMANN"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"MUSTERMANN"))
    nib.save(image, tmp_path / "a.nii")
    volume = read_image(tmp_path / "a.nii")
    write_prediction(np.ones((3, 3, 3), dtype=np.int16), volume, tmp_path / "out.nii")
    assert b"MUSTERMANN" in (tmp_path / "a.nii").read_bytes()
    assert b"MUSTERMANN" not in (tmp_path / "out.nii").read_bytes()


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (4, 5, 6, 1), (4, 5, 6, 3)])
def test_other_numbers_of_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).integers(0, 4, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([-1, 2, 3, 1])), tmp_path / "a.nii")
    volume = read_image(tmp_path / "a.nii", channel=1 if shape[-1] == 3 else None)
    write_prediction(volume.image, volume, tmp_path / "out.nii")
    after = nib.load(tmp_path / "out.nii")
    expected = values[..., 1] if shape[-1] == 3 else values.reshape(shape[:3])
    np.testing.assert_array_equal(np.asarray(after.dataobj), expected)
    np.testing.assert_array_equal(after.affine, np.diag([-1, 2, 3, 1]))


@pytest.mark.parametrize("dtype", [">u2", "<u2", ">i2", "u1", "i1", "?", ">f4"])
def test_small_integers_keep_their_values_in_any_byte_order(tmp_path: Path, dtype: str) -> None:
    kind = np.dtype(dtype)
    values = np.zeros((2, 3, 4), kind)
    low, high = (0, 1) if kind.kind in "bf" else (np.iinfo(kind).min, np.iinfo(kind).max)
    values.flat[:2] = low, high
    found = finite_image(tmp_path / "a.nii", values)
    np.testing.assert_array_equal(found.astype(np.float64), values.astype(np.float64))
    assert found.dtype.isnative
    assert found.dtype.itemsize <= 4


def test_slope_nifti2_and_many_classes(tmp_path: Path) -> None:
    image = nib.Nifti2Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(2.0, -5.0)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_image(tmp_path / "a.nii.gz")
    source = np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj)
    assert sorted(volume.image.ravel()) == pytest.approx(sorted(source.ravel()))
    write_prediction(np.full(volume.shape, 300), volume, tmp_path / "out.nii.gz")
    after = nib.load(tmp_path / "out.nii.gz")
    assert isinstance(after, nib.Nifti2Image)
    assert (np.asarray(after.dataobj) == 300).all()


def test_refusals_name_the_file(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((3, 4, 5), np.float32), np.eye(4)), tmp_path / "a.nii")
    volume = read_image(tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"out\.nii.*\(4, 3, 5\)"):
        write_prediction(np.ones((3, 4, 5)), volume, tmp_path / "out.nii")
    with pytest.raises(DataError, match=r"out\.png"):
        write_prediction(np.ones((4, 3, 5)), volume, tmp_path / "out.png")
    with pytest.raises(DataError, match=r"a\.xyz.*readable"):
        read_image(tmp_path / "a.xyz")
    with pytest.raises(FindingError, match=r"none\.nii.*no such file"):
        read_image(tmp_path / "none.nii")


@pytest.mark.parametrize("flips", [(1,), (0, 1), (2,), (0, 1, 2)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_a_mask_of_the_same_voxels_in_another_order_is_read(
    tmp_path: Path, flips: tuple[int, ...], order: tuple[int, ...]
) -> None:
    """A DICOM converter may mirror axes; the mask must still cover the same voxels."""
    rng = np.random.default_rng(3)
    affine = oblique(10.0) @ np.diag([1.0, 2.0, 3.0, 1.0])
    image = nib.Nifti1Image(rng.normal(size=(5, 6, 7)).astype(np.float32), affine)
    labels = nib.Nifti1Image((image.get_fdata() > 0).astype(np.uint8), affine)
    way = np.array([[order.index(axis), -1 if axis in flips else 1] for axis in range(3)])
    for folder, content in (("images", image), ("labels", labels.as_reoriented(way))):
        (tmp_path / folder).mkdir()
        nib.save(content, tmp_path / folder / "a.nii.gz")
    assert check_dataset("nifti", tmp_path) == []
    dataset = open_dataset("nifti", tmp_path, intensity="mri", axis="axial")
    expected = to_slices(
        np.asarray(labels.dataobj), read_image(tmp_path / "images" / "a.nii.gz", "axial").source
    )
    np.testing.assert_array_equal(dataset.volume_labels("a"), expected)


@pytest.mark.parametrize(
    ("unit", "factor"), [("mm", 1), ("unknown", 1), ("micron", 1e-3), ("meter", 1e3)]
)
def test_spacing_is_mm_whatever_the_unit_of_the_header(
    tmp_path: Path, unit: str, factor: float
) -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), SPACING)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "scan.nii")
    volume = read_image(tmp_path / "scan.nii")
    assert volume.spacing_mm == pytest.approx((2.0 * factor, 1.5 * factor, 3.0 * factor))
    write_prediction(np.zeros(volume.shape, np.uint8), volume, tmp_path / "out.nii")
    written = nib.load(tmp_path / "out.nii")
    np.testing.assert_array_equal(written.affine, image.affine)
    assert written.header.get_xyzt_units()[0] == unit
