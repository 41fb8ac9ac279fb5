"""NRRD and MetaImage against nibabel and SimpleITK, and each fault as one finding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from samadapt.data import check_dataset, open_dataset, read_image, write_prediction
from samadapt.data.formats.shared.volume_slices import to_source
from samadapt.errors import DataError

sitk = pytest.importorskip("SimpleITK")

ENDINGS = ("nrrd", "nhdr", "mha", "mhd")
VALUES = np.random.default_rng(0).integers(-900, 900, (4, 5, 6)).astype(np.int16)


def _image(values: np.ndarray, turned: bool = True) -> sitk.Image:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.7, 1.1, 3.3))
    image.SetOrigin((-12.5, 7.25, 40.0))
    c, s = float(np.cos(0.2)), float(np.sin(0.2))
    first = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    second = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]) @ np.diag([1, -1, -1])
    if turned:
        image.SetDirection((first @ second).ravel().tolist())
    return image


def _pair(folder: Path, ending: str, count: int = 3, masks: str = "masks") -> Path:
    for part in ("images", masks):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        values = VALUES + index
        sitk.WriteImage(_image(values), str(folder / "images" / f"c{index}.{ending}"))
        mask = _image((values > 300).astype(np.uint8))
        sitk.WriteImage(mask, str(folder / masks / f"c{index}.{ending}"))
    return folder


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_same_image_as_nifti(tmp_path: Path, ending: str) -> None:
    """The affine equals that of the same image in NIfTI; the prediction has ITK's grid."""
    image = _image(VALUES)
    sitk.WriteImage(image, str(tmp_path / f"a.{ending}"))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    volume, nifti = read_image(tmp_path / f"a.{ending}"), read_image(tmp_path / "a.nii.gz")
    assert volume.source is not None
    affine = nib.load(tmp_path / "a.nii.gz").affine
    np.testing.assert_allclose(volume.source.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(volume.image, nifti.image)
    np.testing.assert_allclose(volume.spacing_mm, nifti.spacing_mm, rtol=1e-6)
    for name in ("out.nrrd", "out.mha", "out.nii.gz"):
        write_prediction((volume.image > 0).astype(np.uint8), volume, tmp_path / name)
        back = sitk.ReadImage(str(tmp_path / name))
        exact = 1e-12 if not name.endswith("gz") else 1e-6
        for what in ("GetDirection", "GetOrigin", "GetSpacing"):
            found, expected = getattr(back, what)(), getattr(image, what)()
            np.testing.assert_allclose(found, expected, rtol=exact, atol=exact)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(back), VALUES > 0)
    with pytest.raises(DataError, match="mhd"):
        write_prediction(np.zeros(volume.shape), volume, tmp_path / "out.mhd")
    with pytest.raises(DataError, match=r"out\.nrrd.*shape"):
        write_prediction(np.zeros((2, 2, 2)), volume, tmp_path / "out.nrrd")


@pytest.mark.parametrize("ending", ENDINGS)
def test_layouts(tmp_path: Path, ending: str) -> None:
    root = _pair(tmp_path, ending)
    assert check_dataset("itk", root) == []
    dataset = open_dataset("itk", root, intensity="mri", classes=["bright"])
    assert [case.name for case in dataset.cases] == ["c0", "c1", "c2"]
    volume = dataset.reader.read(dataset.case("c1"))
    assert volume.source is not None
    np.testing.assert_array_equal(to_source(volume.labels, volume.source).T, VALUES + 1 > 300)


def test_decathlon_and_slicer_names(tmp_path: Path) -> None:
    _pair(tmp_path, "nrrd", masks="labelsTr")
    (tmp_path / "images").rename(tmp_path / "imagesTr")
    declared = {"labels": {"background": 0, "bright": 1}, "channel_names": {"0": "CT"}}
    (tmp_path / "dataset.json").write_text(
        json.dumps({**declared, "file_ending": ".nrrd"}), encoding="utf-8"
    )
    dataset = open_dataset("nrrd", tmp_path)
    assert (dataset.classes, dataset.intensity.kind) == (["bright"], "window")
    (finding,) = check_dataset("nifti", tmp_path)
    assert finding.code == "file_ending"
    other = _pair(tmp_path / "other", "nrrd")
    (other / "masks" / "c1.nrrd").rename(other / "masks" / "c1.seg.nrrd")
    assert check_dataset("itk", other) == []


def test_channels_and_two_axes(tmp_path: Path) -> None:
    both = np.stack([VALUES, VALUES + 1], axis=-1)
    sitk.WriteImage(sitk.GetImageFromArray(both, isVector=True), str(tmp_path / "v.nrrd"))
    with pytest.raises(DataError, match=r"v\.nrrd.*2 channels.*data\.channel=0\.\.1"):
        read_image(tmp_path / "v.nrrd")
    second = read_image(tmp_path / "v.nrrd", channel=1)
    assert second.source is not None
    np.testing.assert_array_equal(to_source(second.image, second.source).T, VALUES + 1)
    joined = sitk.JoinSeries([_image(VALUES), _image(VALUES + 2)])
    sitk.WriteImage(joined, str(tmp_path / "t.mha"))
    (tmp_path / "dataset.json").write_text(
        json.dumps({"modality": {"0": "T1", "1": "T2"}}), encoding="utf-8"
    )
    later = read_image(tmp_path / "t.mha", channel="T2")
    assert later.source is not None
    np.testing.assert_array_equal(to_source(later.image, later.source).T, VALUES + 2)
    flat = sitk.GetImageFromArray(VALUES[0])
    flat.SetSpacing((0.5, 2.0))
    sitk.WriteImage(flat, str(tmp_path / "f.mha"))
    volume = read_image(tmp_path / "f.mha")
    assert volume.shape == (5, 6, 1)
    np.testing.assert_array_equal(volume.image[:, :, 0], VALUES[0])
    write_prediction((volume.image > 0).astype(np.uint8), volume, tmp_path / "g.mha")
    back = sitk.ReadImage(str(tmp_path / "g.mha"))
    assert (back.GetSpacing(), back.GetSize()) == (flat.GetSpacing(), flat.GetSize())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), VALUES[0] > 0)


Spoil = Callable[[Path, Path], None]


def _replace(path: Path, before: bytes, after: bytes) -> None:
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after))


def _mask(values: np.ndarray, root: Path, **geometry: tuple[float, ...]) -> None:
    image = _image(values)
    if geometry:
        image.SetOrigin(geometry["origin"])
    sitk.WriteImage(image, str(root / "masks" / "c1.nrrd"))


IMAGE, MASK = "images/c1.nrrd", "masks/c1.nrrd"
NAN = np.full(VALUES.shape, np.nan, np.float32)
FAULTS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "empty": ("empty_file", IMAGE, lambda r: (r / IMAGE).write_bytes(b"")),
    "text": ("bad_header", IMAGE, lambda r: (r / IMAGE).write_bytes(b"<html>" * 9)),
    "header_cut": (
        "bad_header",
        IMAGE,
        lambda r: (r / IMAGE).write_bytes((r / IMAGE).read_bytes()[:90]),
    ),
    "voxels_cut": (
        "truncated_file",
        IMAGE,
        lambda r: (r / IMAGE).write_bytes((r / IMAGE).read_bytes()[:-40]),
    ),
    "huge": ("too_large", IMAGE, lambda r: _replace(r / IMAGE, b": 6 5 4", b": 60000 50000 40")),
    "promises_too_much": (
        "truncated_file",
        IMAGE,
        lambda r: _replace(r / IMAGE, b": 6 5 4", b": 600 500 40"),
    ),
    "no_sizes": ("bad_header", IMAGE, lambda r: _replace(r / IMAGE, b"sizes: 6 5 4\n", b"")),
    "type": ("unsupported_dtype", IMAGE, lambda r: _complex(r / IMAGE)),
    "nan": ("non_finite_voxels", IMAGE, lambda r: sitk.WriteImage(_image(NAN), str(r / IMAGE))),
    "fractions": ("non_integer_labels", MASK, lambda r: _mask(VALUES * np.float32(0.3), r)),
    "shape": ("shape_mismatch", MASK, lambda r: _mask((VALUES[:3] > 0).astype(np.uint8), r)),
    "grid": (
        "grid_mismatch",
        MASK,
        lambda r: _mask((VALUES > 0).astype(np.uint8), r, origin=(0.0, 0.0, 0.0)),
    ),
    "no_mask": ("missing_label", IMAGE, lambda r: (r / MASK).unlink()),
    "no_image": ("missing_image", MASK, lambda r: (r / IMAGE).unlink()),
}


def _complex(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(VALUES.astype(np.complex64)), str(path))


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_finding(tmp_path: Path, fault: str) -> None:
    root = _pair(tmp_path, "nrrd")
    code, file, spoil = FAULTS[fault]
    spoil(root)
    (finding,) = check_dataset("itk", root)
    assert (finding.code, finding.file) == (code, str(root / file))
    left = open_dataset("itk", root, on_error="skip", intensity="mri").left_out
    assert left == ["c1"]


def _respace(root: Path, first: str) -> None:
    path = root / "images" / "c1.mhd"
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = [f"ElementSpacing = {first} 1 1" if "Spacing" in line else line for line in lines]
    path.write_text("\n".join(changed) + "\n", encoding="utf-8")


MHD_FAULTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no_data_file": ("missing_file", lambda r: (r / "images/c1.raw").unlink()),
    "data_cut": (
        "truncated_file",
        lambda r: (r / "images/c1.raw").write_bytes((r / "images/c1.raw").read_bytes()[:-2]),
    ),
    "zero_spacing": (
        "bad_spacing",
        lambda r: _respace(r, "0"),
    ),
    "negative_spacing": (
        "bad_spacing",
        lambda r: _respace(r, "-1"),
    ),
    "nan_spacing": (
        "bad_spacing",
        lambda r: _respace(r, "nan"),
    ),
    "type": (
        "bad_header",
        lambda r: _replace(r / "images/c1.mhd", b"MET_SHORT", b"MET_OTHER"),
    ),
    "huge": (
        "too_large",
        lambda r: _replace(r / "images/c1.mhd", b"DimSize = 6 5", b"DimSize = 60000 50000"),
    ),
    "empty": ("empty_file", lambda r: (r / "images/c1.mhd").write_bytes(b"")),
}


@pytest.mark.parametrize("fault", MHD_FAULTS)
def test_each_fault_of_metaimage_is_one_finding(tmp_path: Path, fault: str) -> None:
    root = _pair(tmp_path, "mhd")
    code, spoil = MHD_FAULTS[fault]
    spoil(root)
    (finding,) = check_dataset("itk", root)
    assert (finding.code, finding.file) == (code, str(root / "images" / "c1.mhd"))
