"""Write the prediction for a DICOM series as a DICOM SEG object that refers to its slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.data.findings import FindingError
from samadapt.data.formats.dicom.files import read_file
from samadapt.errors import DataError, MissingExtraError
from samadapt.system import atomic
from samadapt.version import __version__

if TYPE_CHECKING:
    from samadapt.data.types import Volume
    from samadapt.system.arrays import Array

SEG = ".dcm"
# UIDs by which the object refers to the images.
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_GRID = ("Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_COPIED = (
    *_UIDS,
    "Modality",
    "FrameOfReferenceUID",
    *_GRID,
    "SliceThickness",
    "SpacingBetweenSlices",
)
# Fields of a patient and study that DICOM requires in every object; they stay empty.
_EMPTIED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
# DICOM counts to the left and to the back (LPS), NIfTI and the volume's affine to the right and to
# the front (RAS).
_LPS = np.array([-1.0, -1.0, 1.0])


def need_highdicom() -> tuple[Any, Any]:
    """Return highdicom and pydicom.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    try:
        import highdicom
        import pydicom
    except ImportError as error:
        raise MissingExtraError(error.name or "highdicom", "dicom") from None
    return highdicom, pydicom


def save_segmentation(
    labels: Array, volume: Volume, source: Path, classes: Sequence[str], path: Path
) -> None:
    """Write class ids as a binary SEG with one segment for each class.

    Frames without a voxel of the segment are left out. The object refers to its study, series and
    slices by their UIDs. No field that describes a patient is copied; those that DICOM requires in
    every object are empty.

    Args:
        labels: (h, w, d) class ids, arranged as ``volume``; (K, h, w, d), a map for each class, if
            classes overlap.
        volume: the volume as the reader of DICOM series returned it.
        source: the series: its folder, or the file of a single slice.
        classes: names of the segments; segment k is ``classes[k - 1]``.
        path: the file to write.

    Raises:
        DataError: nothing was found, or the slices are not those of the volume.
        MissingExtraError: highdicom is not installed.
    """
    highdicom, pydicom = need_highdicom()
    if volume.source is None or not labels.any():
        reason = "nothing was found, and a DICOM SEG cannot be empty; write it as .nii.gz"
        raise DataError(f"{path}: {reason}")
    from samadapt.data.formats.shared.volume_slices import to_source

    maps = [to_source(one, volume.source) for one in (labels if labels.ndim == 4 else [labels])]
    shape = maps[0].shape
    slices = _slices(source, volume.files)
    places = [_number(header, volume.source.affine, shape, source) for header in slices]
    if len(places) != shape[2]:
        raise DataError(f"{source}: expected {shape[2]} slices; found {len(places)}")
    # highdicom takes frames (slices, rows, columns) in the order of the source images.
    planes = [np.stack([voxels[:, :, place].T for place in places]) for voxels in maps]
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="samadapt",
        version=__version__,
        family=pydicom.sr.codedict.codes.DCM.ArtificialIntelligence,
    )
    tissue = pydicom.sr.codedict.codes.SCT.Tissue
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=tissue,
            segmented_property_type=tissue,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(classes, start=1)
    ]
    # pixel_array is (frames, rows, columns) class ids; with overlap, a last axis holds one mask for
    # each class.
    made = highdicom.seg.Segmentation(
        source_images=[_without_patient(header, pydicom) for header in slices],
        pixel_array=np.ascontiguousarray(
            planes[0] if labels.ndim == 3 else np.stack([p > 0 for p in planes], -1), dtype=np.uint8
        ),
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=1,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        content_label="SEGMENTATION",  # highdicom's default repeats the Modality of the source
        manufacturer="samadapt",
        manufacturer_model_name="samadapt",
        software_versions=__version__,
        device_serial_number="0",
    )
    with atomic.file(path) as part:
        made.save_as(part)


def _slices(source: Path, files: Sequence[Path]) -> list[Any]:
    """Return the headers of the image files of a series; ``files`` are those that were read."""
    if not files:
        files = (
            [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
        )
    headers = []
    for file in files:
        try:
            header = read_file(file, _COPIED)
        except FindingError:
            continue
        if "ImagePositionPatient" in header and "Rows" in header:
            _fill_in(file, header)
            headers.append(header)
    if not headers:
        raise DataError(
            f"{source}: a DICOM SEG needs a series with one file for each slice that has a "
            "position; found none. Write the labels as .nii.gz"
        )
    return headers


def _fill_in(file: Path, header: Any) -> None:
    """Fill in UIDs that an anonymiser has emptied from the file meta information.

    Raises:
        DataError: a UID that the segmentation must refer to is missing.
    """
    meta = header.file_meta
    for name in ("SOPClassUID", "SOPInstanceUID"):
        if not header.get(name) and meta.get(f"MediaStorage{name}"):
            setattr(header, name, meta[f"MediaStorage{name}"].value)
    missing = [name for name in _UIDS if not header.get(name)]
    if missing:
        raise DataError(
            f"{file}: a DICOM SEG refers to its images by {', '.join(missing)}, which is empty or "
            "missing here; write the labels as .nii.gz"
        )


def _number(header: Any, affine: Array, shape: tuple[int, ...], source: Path) -> int:
    """Return the index of a slice along the volume's third axis, from its position in space."""
    position = _LPS * np.array([float(side) for side in header.ImagePositionPatient])
    # The position of a slice is that of its first voxel, which has the indices (0, 0, k).
    place = np.linalg.inv(affine) @ np.append(position, 1)
    across = _LPS * np.array([float(side) for side in header.ImageOrientationPatient[:3]])
    along_rows = across @ affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    # The slice fits if its position is that of a voxel in the first row and column, up to a tenth
    # of a voxel, and if its rows run along the first axis of the volume.
    nearest = np.rint(place[:3])
    fits = np.abs(place[:3] - nearest).max() < 0.1 and (nearest[:2] == 0).all()
    if not (fits and 0 <= nearest[2] < shape[2] and along_rows > 0.99):
        raise DataError(f"{source}: its slices do not lie on the grid that was read")
    if (header.Columns, header.Rows) != shape[:2]:
        raise DataError(f"{source}: its slices differ in size")
    return int(nearest[2])


def _without_patient(header: Any, pydicom: Any) -> Any:
    """Return the fields of a slice that a SEG needs, without those that describe the patient."""
    kept = pydicom.Dataset()
    for name in _COPIED:
        if name in header:
            setattr(kept, name, header[name].value)
    for name in _EMPTIED:
        setattr(kept, name, "")
    return kept
