"""What ``predict`` does with folders of DICOM files."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from dicom_files import PLACE, write_series
from PIL import Image

from samadapt.errors import DataError
from samadapt.inference.files import is_folder_of_images, list_folder
from samadapt.inference.segmenter import Segmenter

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")
AXIAL, CORONAL = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1)


def write(folder, truth, prefix="", turn=AXIAL, placed=True, **tags):
    """Write planes (d, rows, columns) of class ids as a series whose grey values are ids x 85."""
    gone = {} if placed else dict.fromkeys((*PLACE, "SliceThickness"))
    return write_series(
        folder,
        (truth * 85).astype(np.uint16),
        turn,
        origin=(0, 0, 0),
        spacing=(1.0, 1.0, 3.0),
        names=[f"{prefix}{number}" for number in range(len(truth))],
        **{"RescaleIntercept": 0, **gone, **tags},
    )


def planes(seed=0, count=4):
    return np.random.default_rng(seed).integers(0, 4, (count, 15, 9))


def read(path):
    return np.asarray(nib.load(path).dataobj).T


@pytest.fixture
def study(tmp_path):
    """A CT with its localizer, and what it shows."""
    truth = planes()
    write(tmp_path / "p1", truth)
    kind = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write(tmp_path / "p1", planes(1, 1), "x", CORONAL, **kind)
    return tmp_path / "p1", truth


def test_the_scan_beside_a_localizer(make_oracle, study, tmp_path):
    folder, truth = study
    row = make_oracle().predict_file(folder, tmp_path / "out.nii.gz")
    assert np.array_equal(read(tmp_path / "out.nii.gz"), truth)
    assert "CT localizer (1 file)" in row["warnings"][0]


def test_a_segmentation_refers_to_the_files_that_were_read(make_oracle, study, tmp_path):
    folder, truth = study
    make_oracle().predict_file(folder, tmp_path / "out.dcm")
    found = highdicom.seg.segread(tmp_path / "out.dcm")
    uids = [pydicom.dcmread(folder / str(number)).SOPInstanceUID for number in range(4)]
    got = found.get_pixels_by_source_instance(uids, combine_segments=True)
    assert np.array_equal(got, truth)


def test_a_segmentation_where_uids_were_emptied(make_oracle, study, tmp_path):
    folder, truth = study
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.SOPClassUID = data.SOPInstanceUID = ""
        data.save_as(path)
    make_oracle().predict_file(folder, tmp_path / "out.dcm")
    found = highdicom.seg.segread(tmp_path / "out.dcm")
    assert found.pixel_array.any(axis=(1, 2)).all()
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.SeriesInstanceUID = ""
        data.save_as(path)
    make_oracle().predict_file(folder, tmp_path / "out.nii.gz")
    assert np.array_equal(read(tmp_path / "out.nii.gz"), truth)
    with pytest.raises(DataError, match="SeriesInstanceUID, which is empty"):
        make_oracle().predict_file(folder, tmp_path / "again.dcm")


def test_one_of_several_volumes_is_chosen(make_oracle, tmp_path):
    first, second = planes(), planes(1, 3)
    write(tmp_path / "p1", first, SeriesNumber=2)
    write(tmp_path / "p1", second, "m", Modality="MR", SeriesNumber=3)
    with pytest.raises(DataError, match="CT, 4 slices, series number 2") as caught:
        make_oracle().predict_file(tmp_path / "p1", tmp_path / "out.nii")
    assert "series=" in str(caught.value)
    for choice, truth in (("MR", second), ("2", first), ("largest", first)):
        make_oracle().predict_file(tmp_path / "p1", tmp_path / "out.nii", series=choice)
        assert np.array_equal(read(tmp_path / "out.nii"), truth)
    plain = make_oracle()
    record = replace(plain.record, data_options={"series": "MR"})
    trained = Segmenter(plain._active_bundle.sam, record)
    trained.predict_file(tmp_path / "p1", tmp_path / "out.nii")
    assert np.array_equal(read(tmp_path / "out.nii"), second)
    record = replace(plain.record, data_options={"series": "3"})  # of the training folders alone
    with pytest.raises(DataError, match="several_series"):
        Segmenter(plain._active_bundle.sam, record).predict_file(
            tmp_path / "p1", tmp_path / "out.nii"
        )


def test_a_folder_of_pictures_is_many(make_oracle, tmp_path):
    truth = {f"x{n}": planes(n, 1)[0] for n in range(3)}
    for name, plane in truth.items():
        (path,) = write(tmp_path / "in", plane[None], name, placed=False, Modality="DX")
        path.rename(path.with_name(name))
    assert is_folder_of_images(tmp_path / "in")
    rows = make_oracle().predict_folder(tmp_path / "in", tmp_path / "out")
    assert [row["input"].name for row in rows] == list(truth)
    for name, plane in truth.items():
        assert np.array_equal(read(tmp_path / "out" / f"{name}.nii.gz")[0], plane)
    make_oracle().predict_file(tmp_path / "in" / "x1", tmp_path / "one.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), truth["x1"])


def test_a_folder_of_patients_and_studies(make_oracle, study, tmp_path):
    folder, truth = study
    root = tmp_path / "in"
    (root / "a" / "study").mkdir(parents=True)
    folder.rename(root / "a" / "study" / "ct")
    other = planes(5, 2)
    write(root / "b", other)
    (root / "DICOMDIR").write_bytes(b"index")
    assert is_folder_of_images(root)
    assert [path.name for path in list_folder(root)[0]] == ["a", "b"]
    make_oracle().predict_folder(root, tmp_path / "out")
    assert np.array_equal(read(tmp_path / "out" / "a.nii.gz"), truth)
    assert np.array_equal(read(tmp_path / "out" / "b.nii.gz"), other)


def test_a_folder_of_pictures_in_a_folder_is_told(make_oracle, tmp_path):
    for patient in ("p1", "p2"):
        for name in ("cc", "mlo"):
            write(tmp_path / "in" / patient, planes(0, 1), name, placed=False, Modality="MG")
    rows = make_oracle().predict_folder(tmp_path / "in", tmp_path / "out")
    assert [row["input"].name for row in rows] == ["p1", "p2"]
    assert all("2 pictures" in row["error"] for row in rows)


def test_a_volume_is_no_png(make_oracle, study, tmp_path):
    with pytest.raises(DataError, match="a PNG holds one slice"):
        make_oracle().predict_file(study[0], tmp_path / "out.png")
