"""Labels of a series as DICOM SEG, read back by highdicom slice by slice."""

from __future__ import annotations

import sys

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series

from samadapt.data.formats import base as readers_module
from samadapt.data.formats.base import FormatReader
from samadapt.data.formats.shared.volume_slices import source_grid, spacing_of, to_slices
from samadapt.data.types import Volume
from samadapt.errors import DataError, MissingExtraError
from samadapt.inference.dicom_seg import save_segmentation

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

TURN = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1.0]])
PATIENT = {
    "PatientName": "PLANTED^NAME",
    "PatientID": "PLANTED-ID",
    "PatientBirthDate": "19010203",
    "PatientAddress": "PLANTED STREET",
    "AccessionNumber": "PLANTED-ACC",
    "StudyDescription": "PLANTED STUDY",
    "SeriesDescription": "PLANTED SERIES",
    "InstitutionName": "PLANTED HOSPITAL",
    "ReferringPhysicianName": "PLANTED^DOCTOR",
    "StudyID": "PLANTED-STUDY",
}


@pytest.fixture
def series(tmp_path):
    """An oblique series whose file names are not in order, its volume and the labels' UIDs."""
    folder = tmp_path / "series"
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 4, (9, 15, 5))  # (column, row, slice)
    paths = write_series(
        folder,
        voxels.T.astype(np.uint16),  # (slice, row, column)
        [*TURN[:, 0], *TURN[:, 1]],
        origin=(-30.0, 12.0, 80.0),
        spacing=(0.8, 0.7, 2.5),
        names=[f"{number * 3 % 5}.dcm" for number in range(5)],
        **{"Modality": "PLANTED MODE", **PATIENT},
    )
    truth = {}
    for path, plane in zip(paths, voxels.T, strict=True):
        data = pydicom.dcmread(path)
        data.add_new((0x0011, 0x0010), "LO", "PLANTED PRIVATE")
        data.save_as(path)
        truth[data.SOPInstanceUID] = plane
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1.0, -1, 1]) @ TURN @ np.diag([0.7, 0.8, 2.5])
    affine[:3, 3] = 30, -12, 80
    header = nib.Nifti1Header()
    header.set_data_shape(voxels.shape)
    header.set_sform(affine, code=1)
    grid = source_grid(header, None)
    volume = Volume(to_slices(voxels * 85, grid), None, spacing_of(grid), grid)
    return folder, volume, truth


def test_every_slice_carries_its_labels_and_no_patient(make_oracle, series, tmp_path, monkeypatch):
    folder, volume, truth = series

    class Dicom(FormatReader):
        name = "dicom"
        output_suffixes = (".nii.gz",)
        discover = examine = write = None

        @classmethod
        def accepts(cls, path):
            return path.is_dir()

        def read_image(self, path):
            return volume

    known = readers_module.readers() | {"dicom": Dicom}
    monkeypatch.setattr(readers_module, "readers", lambda: known)
    monkeypatch.setattr("samadapt.inference.files.readers", lambda: known)
    Dicom.__abstractmethods__ = frozenset()
    target = tmp_path / "out.dcm"
    make_oracle().predict_file(folder, target)
    found = highdicom.seg.segread(target)
    assert [found.get_segment_description(k).segment_label for k in (1, 2, 3)] == ["a", "b", "c"]
    planes = found.get_pixels_by_source_instance(list(truth), combine_segments=True)
    assert all(np.array_equal(p, t) for p, t in zip(planes, truth.values(), strict=True))
    content = target.read_bytes()
    assert b"PLANTED" not in content
    assert b"19010203" not in content
    assert found.PatientID == ""
    with pytest.raises(DataError, match=r"written as .nii.gz or .dcm"):
        make_oracle().predict_file(folder, tmp_path / "out.png")


def test_what_cannot_be_a_segmentation_says_why(series, tmp_path, monkeypatch):
    folder, volume, _ = series
    labels, target = np.ones(volume.shape, np.uint8), tmp_path / "out.dcm"
    with pytest.raises(DataError, match="nothing was found"):
        save_segmentation(labels * 0, volume, folder, ["a"], target)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="one file for each slice"):
        save_segmentation(labels, volume, tmp_path / "other", ["a"], target)
    first = sorted(folder.iterdir())[0]
    with pytest.raises(DataError, match="expected 5 slices; found 1"):
        save_segmentation(labels, volume, first, ["a"], target)
    moved = pydicom.dcmread(first)
    moved.ImagePositionPatient = [0, 0, 0]
    moved.save_as(first)
    with pytest.raises(DataError, match="do not lie on the grid"):
        save_segmentation(labels, volume, folder, ["a"], target)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingExtraError, match=r"samadapt\[dicom\]"):
        save_segmentation(labels, volume, folder, ["a"], target)
    assert not target.exists()


def test_regions_are_segments_that_overlap(series, tmp_path):
    folder, volume, _ = series
    grey = volume.image // 85
    maps = np.stack([(grey > 0) * 1, (grey == 1) * 2]).astype(np.uint8)
    save_segmentation(maps, volume, folder, ["whole", "core"], tmp_path / "seg.dcm")
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["whole", "core"]
    voxels = seg.get_volume(combine_segments=False).array
    counts = voxels.reshape(-1, 2).sum(axis=0)
    assert counts.tolist() == [(grey > 0).sum(), (grey == 1).sum()]
    assert (voxels[..., 1] <= voxels[..., 0]).all()
