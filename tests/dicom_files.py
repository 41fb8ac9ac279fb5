"""Write and change DICOM files for tests: series, pictures and structure sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
"""What a picture (X-ray, ultrasound) lacks."""


def write_series(
    folder: Path,
    planes: np.ndarray,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    origin: Sequence[float] = (-10.0, 20.0, 5.0),
    spacing: tuple[float, float, float] = (0.5, 0.75, 2.0),
    step: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    **tags: Any,
) -> list[Path]:
    """Write a CT series with one file for each slice.

    Args:
        folder: is made if it does not exist.
        planes: (d, rows, columns) uint16 or int16.
        orientation: ImageOrientationPatient.
        origin: ImagePositionPatient of the first slice, mm LPS+.
        spacing: (between rows, between columns, between slices) in mm.
        step: mm from a slice to the next; None: along the normal.
        names: of the files; None: numbers in a shuffled order, so that names do not give the order.
        tags: further elements. A tuple has a value for each slice; None leaves the element out;
            ``uid`` is the SeriesInstanceUID.

    Returns:
        The files from the first slice to the last.
    """
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    x, y = np.array(orientation[:3]), np.array(orientation[3:])
    step = np.cross(x, y) * spacing[2] if step is None else np.array(step)
    uid, study, frame = tags.pop("uid", generate_uid()), generate_uid(), generate_uid()
    if names is None:
        numbers = np.random.default_rng(7).permutation(1000)[: len(planes)]
        names = [f"{number:04d}.dcm" for number in numbers]
    paths = []
    for index, plane in enumerate(planes):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / names[index]
        data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.StudyInstanceUID = uid, study
        data.FrameOfReferenceUID, data.Modality, data.InstanceNumber = frame, "CT", 1
        data.PatientID, data.PatientName, data.PatientBirthDate = "P1", "Doe^Jane", ""
        data.PatientSex, data.StudyID, data.StudyDate, data.StudyTime = "", "", "", ""
        data.AccessionNumber = data.ReferringPhysicianName = data.Manufacturer = ""
        data.SeriesNumber, data.PositionReferenceIndicator = 1, ""
        data.ImageType, data.KVP, data.AcquisitionNumber = ["ORIGINAL", "PRIMARY"], "", 1
        data.Rows, data.Columns = plane.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelRepresentation = int(plane.dtype.kind == "i")
        data.PixelSpacing, data.SliceThickness = list(spacing[:2]), spacing[2]
        data.ImageOrientationPatient = list(orientation)
        data.ImagePositionPatient = [f"{v:.9g}" for v in np.array(origin) + index * step]
        data.RescaleSlope, data.RescaleIntercept = 1, -1000
        set_tags(data, {k: v[index] if isinstance(v, tuple) else v for k, v in tags.items()})
        data.PixelData = plane.tobytes()
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def set_tags(data: Any, tags: Mapping[str, Any]) -> None:
    """Set elements of a data set; the value None removes an element."""
    for key, value in tags.items():
        if value is None:
            delattr(data, key)
        else:
            setattr(data, key, value)


def change(path: Path, **tags: Any) -> None:
    """Change elements of a file; the value None removes an element."""
    import pydicom

    data = pydicom.dcmread(path)
    set_tags(data, tags)
    data.save_as(path)


def _affine(paths: Sequence[Path]) -> np.ndarray:
    """Return (4, 4) voxel (column, row, slice) to mm LPS+, from the headers alone."""
    import pydicom

    first, last = (pydicom.dcmread(path) for path in (paths[0], paths[-1]))
    affine = np.eye(4)
    turn = np.array([float(v) for v in first.ImageOrientationPatient]).reshape(2, 3)
    affine[:3, 0] = turn[0] * float(first.PixelSpacing[1])
    affine[:3, 1] = turn[1] * float(first.PixelSpacing[0])
    ends = [np.array([float(v) for v in d.ImagePositionPatient]) for d in (first, last)]
    affine[:3, 2] = (ends[1] - ends[0]) / (len(paths) - 1)
    affine[:3, 3] = ends[0]
    return affine


def write_structures(
    paths: Sequence[Path],
    regions: Mapping[str, Sequence[tuple[float, Any]]],
    target: Path,
    kind: str = "CLOSED_PLANAR",
    **changes: Any,
) -> None:
    """Write an RTSTRUCT object for a series.

    Args:
        paths: the series, from the first slice to the last.
        regions: by name, lists of (slice, polygon (n, 2) of column and row), in voxels.
        target: the file; its folder is made if it does not exist.
        kind: ContourGeometricType.
        changes: further elements.
    """
    import pydicom

    source, affine = pydicom.dcmread(paths[0]), _affine(paths)
    uid = pydicom.uid.generate_uid
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = RTSTRUCT
    data.SOPClassUID, data.SOPInstanceUID = data.file_meta.MediaStorageSOPClassUID, uid()
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.Modality, data.SeriesInstanceUID = "RTSTRUCT", uid()
    data.StudyInstanceUID, data.PatientID = source.StudyInstanceUID, "P1"
    data.PatientName, data.StructureSetLabel = "SECRET^NAME", "SECRET"
    referenced = pydicom.Dataset()
    referenced.SeriesInstanceUID = source.SeriesInstanceUID
    study, frame = pydicom.Dataset(), pydicom.Dataset()
    study.RTReferencedSeriesSequence = [referenced]
    frame.FrameOfReferenceUID = source.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    data.StructureSetROISequence, data.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(regions.items(), start=1):
        roi, drawn = pydicom.Dataset(), pydicom.Dataset()
        roi.ROINumber, roi.ROIName = number, name
        roi.ReferencedFrameOfReferenceUID = source.FrameOfReferenceUID
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for place, polygon in contours:
            points = np.asarray(polygon, dtype=float)
            voxels = np.column_stack([points, np.full(len(points), place), np.ones(len(points))])
            item = pydicom.Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = kind, len(points)
            item.ContourData = [f"{v:.6f}" for v in (voxels @ affine.T)[:, :3].ravel()]
            drawn.ContourSequence.append(item)
        data.StructureSetROISequence.append(roi)
        data.ROIContourSequence.append(drawn)
    for key, value in changes.items():
        setattr(data, key, value)
    target.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(target, enforce_file_format=True)


def circle(x: float, y: float, radius: float, points: int = 90) -> np.ndarray:
    """Return a polygon (n, 2) of column and row."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.column_stack([x + radius * np.cos(turn), y + radius * np.sin(turn)])
