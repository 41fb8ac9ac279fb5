"""DICOM is recognised by its first bytes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from dicom_files import set_tags
from PIL import Image

from samadapt.data import check_dataset, open_dataset, read_image
from samadapt.data.formats.dicom.signature import begins_with_elements, is_dicom

pydicom = pytest.importorskip("pydicom")

Make = Callable[..., list[Path]]
PLANES = np.random.default_rng(0).integers(0, 2000, (4, 8, 10)).astype(np.uint16)


def strip(path: Path, implicit: bool, little: bool = True, **changes: object) -> None:
    """Write a file again without preamble and file meta information."""
    data = pydicom.dcmread(path)
    set_tags(data, changes)
    del data.file_meta
    if not little:
        data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
    bare = pydicom.Dataset(data)
    bare.save_as(path, implicit_vr=implicit, little_endian=little)


@pytest.mark.parametrize(
    ("implicit", "little"), [(True, True), (False, True), (False, False)], ids=str
)
def test_files_without_preamble(
    tmp_path: Path, make_series: Make, implicit: bool, little: bool
) -> None:
    paths = make_series(tmp_path / "in" / "s", PLANES)
    before = read_image(tmp_path / "in" / "s").image
    for path in paths:
        strip(path, implicit, little)
        path = path.rename(path.with_suffix(""))
        assert path.read_bytes()[128:132] != b"DICM"
        assert is_dicom(path)
    np.testing.assert_array_equal(read_image(tmp_path / "in" / "s").image, before)
    codes = {f.code for f in check_dataset("dicom", tmp_path / "in")}
    assert codes == {"missing_label"}


def test_what_acr_nema_left_out(tmp_path: Path, make_series: Make) -> None:
    """ACR-NEMA has no SOP classes, UIDs and photometric interpretation, and an old position tag."""
    paths = make_series(tmp_path / "s", PLANES)
    before = read_image(tmp_path / "s")
    for path in paths:
        data = pydicom.dcmread(path)
        gone = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"]
        gone += ["PhotometricInterpretation", "SamplesPerPixel", "FrameOfReferenceUID"]
        gone += ["ImagePositionPatient", "ImageOrientationPatient"]
        old = {"RecognitionCode": "ACR-NEMA 2.0", "ImagePosition": data.ImagePositionPatient}
        old["ImageOrientation"] = data.ImageOrientationPatient
        strip(path, implicit=True, **old, **dict.fromkeys(gone))
    after = read_image(tmp_path / "s")
    np.testing.assert_array_equal(after.image, before.image)
    assert after.source is not None
    assert before.source is not None
    np.testing.assert_allclose(after.source.affine, before.source.affine)


def _others() -> dict[str, bytes]:
    picture, array = BytesIO(), BytesIO()
    Image.fromarray(PLANES[0].astype(np.uint8)).save(picture, "PNG")
    np.save(array, PLANES)
    return {
        "text": b"Rows: 8\nColumns: 10\n" * 30,
        "json": json.dumps({"a": [1, 2, 3] * 90}).encode(),
        "png": picture.getvalue(),
        "npy": array.getvalue(),
        "gzip": gzip.compress(bytes(range(256)) * 20),
        "zeros": bytes(4096),
        "short": b"\x08\x00\x05\x00",
        "numbers": np.arange(8, 900, dtype="<u4").tobytes(),
        "words": np.arange(8, 900, dtype="<u2").tobytes(),
        "nothing": b"",
        "utf16": "\x08 not DICOM".encode("utf-16-le") * 40,
        "repeated": b"\x08\x00\x10\x00CS\x02\x00AB" * 60,
    }


@pytest.mark.parametrize("kind", _others())
def test_what_is_no_dicom(tmp_path: Path, make_series: Make, kind: str) -> None:
    content = _others()[kind]
    assert not begins_with_elements(content[:4096])
    make_series(tmp_path / "s", PLANES)
    (tmp_path / "s" / "other").write_bytes(content)
    (tmp_path / "s" / "0.dcm").write_bytes(content)
    assert not is_dicom(tmp_path / "s" / "0.dcm")
    codes = {Path(f.file).name: f.code for f in check_dataset("dicom", tmp_path)}
    assert codes["other"] == "other_file"
    assert codes["0.dcm"] == ("empty_file" if kind == "nothing" else "not_dicom")


def test_random_bytes_are_no_dicom() -> None:
    rng = np.random.default_rng(0)
    starts = [b"\x08\x00", b"\x02\x00", b"\x00\x08", b""]
    assert not [n for n in range(20000) if begins_with_elements(starts[n % 4] + rng.bytes(400))]


def test_case_25(tmp_path: Path, make_series: Make) -> None:
    from samadapt.data import write_prediction

    paths = make_series(tmp_path / "p1", PLANES)
    volume = read_image(tmp_path / "p1")
    mask = (volume.image > 0).astype(np.uint8)
    write_prediction(mask, volume, tmp_path / "labels" / "p1.nii.gz")
    for path in paths:
        strip(path, implicit=True)
    np.testing.assert_array_equal(open_dataset("dicom", tmp_path).volume_labels("p1"), mask)
