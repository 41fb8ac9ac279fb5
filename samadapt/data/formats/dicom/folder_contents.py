"""What lies in a folder of DICOM files: image series, masks, and other objects.

Only headers are read. A series is identified by its folder and SeriesInstanceUID. Where an
anonymiser emptied the UID, patient, study, series number and modality identify it instead.
Localizers and screenshots count as series of their own even where they share the UID of the scan,
so that the scan stays a regular stack.

Messages may show the modality and numbers of a series. They never show UIDs and the hash of the
patient.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from samadapt.data.findings import Finding, FindingError, error_finding, fault
from samadapt.data.formats.base import Layout
from samadapt.data.formats.dicom.files import load_pydicom, read_file
from samadapt.data.formats.dicom.frames import VOLUME_MODALITIES
from samadapt.data.formats.dicom.signature import is_dicom
from samadapt.data.formats.itk.reader import ItkReader
from samadapt.data.formats.nifti.write import SUFFIXES as NIFTI
from samadapt.data.formats.shared.stored_picture import SUFFIXES as PICTURES

ENDINGS = (".dcm", ".dicom", ".ima")
LABELS = (*NIFTI, *ItkReader.suffixes)
SEG = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes (PS3.4 B.5) of SEG objects: binary or fractional, and label maps."""
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_DIRECTORY = "1.2.840.10008.1.3.10"  # index of a medium (DICOMDIR)
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture; .1 to .4 follow for multi-frame
_NO_IMAGES = (
    "1.2.840.10008.5.1.4.1.1.481.1",  # RT Image
    "1.2.840.10008.5.1.4.1.1.481.2",  # RT Dose
)
_NAMED = (
    *("CT", "MR", "PT", "US", "CR", "DX", "MG", "NM", "XA", "RF", "IO", "PX", "OP", "ES", "XC"),
    *("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "RTIMAGE", "SR", "PR", "KO", "REG"),
    *("FID", "DOC", "OT", "SC", "ECG", "AU", "PLAN", "GM", "SM", "OCT", "OPT", "IVUS", "BI"),
)
"""Modalities that a message may name. Any other text in the field, which may be a name, is called
``other``."""
_SALT = secrets.token_bytes(16)  # new in each process: hashes of patients mean nothing later
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber"),
    *("FrameOfReferenceUID", "Modality", "ImageType", "Rows", "NumberOfFrames"),
    *("ImagePositionPatient", "ImageOrientationPatient", "ImagePosition", "ImageOrientation"),
    *(
        "PatientID",
        "IssuerOfPatientID",
        "ReferencedSeriesSequence",
        "SharedFunctionalGroupsSequence",
    ),
    *("ReferencedFrameOfReferenceSequence", "ROIContourSequence"),
)


@dataclass
class DicomSeries:
    """The files of one series in one folder.

    Attributes:
        folder: the folder of its files.
        uid: its SeriesInstanceUID, or a text that replaces it; unique within the folder.
        modality: one of the known codes, else ``""``.
        study: its StudyInstanceUID.
        frame: its FrameOfReferenceUID.
        number: its SeriesNumber, where it has one.
        kind: ``"image"``, ``"localizer"`` or ``"screenshot"`` (secondary capture).
        files: its files, sorted by name.
        patients: one-way hash of the patient's ID for each file, or ``""``.
        slices: number of frames of all files.
        instances: SOPInstanceUIDs of the files.
        is_placed: whether a file says where it lies in the patient.
        turns: the different values of ImageOrientationPatient, rounded to two digits.
    """

    folder: Path
    uid: str
    modality: str
    study: str = ""
    frame: str = ""
    number: int | None = None
    kind: str = "image"
    files: list[Path] = field(default_factory=list)
    patients: dict[Path, str] = field(default_factory=dict)
    slices: int = 0
    instances: set[str] = field(default_factory=set)
    is_placed: bool = False
    turns: set[tuple[float, ...]] = field(default_factory=set)

    @property
    def is_picture(self) -> bool:
        """Whether each file is an image of its own: an X-ray, a frame or film of ultrasound."""
        return not self.is_placed and self.modality not in VOLUME_MODALITIES

    @property
    def identity(self) -> str:
        """Eight hexadecimal digits that identify the series and reveal nothing of it."""
        return hashlib.sha256(self.uid.encode()).hexdigest()[:8]

    def __str__(self) -> str:
        """Return modality, slices, series number and identity, as messages show them."""
        number = "" if self.number is None else f", series number {self.number}"
        return f"{self.modality or 'other'}, {self.slices} slices{number} ({self.identity})"


@dataclass(frozen=True)
class DicomMask:
    """A SEG or RTSTRUCT object, and what it says about the images that it belongs to.

    Attributes:
        path: its file.
        is_contours: whether it is an RTSTRUCT, and not a SEG.
        series: SeriesInstanceUIDs that it refers to.
        study: its StudyInstanceUID.
        frames: FrameOfReferenceUIDs that it refers to.
    """

    path: Path
    is_contours: bool
    series: tuple[str, ...]
    study: str
    frames: tuple[str, ...]


@dataclass
class FolderContents:
    """What lies in a folder.

    Attributes:
        series: image series, sorted by folder.
        masks: SEG and RTSTRUCT objects.
        others: number of other DICOM objects, by modality.
        pictures: PNG and other pictures beside the DICOM files, which may be masks.
    """

    series: list[DicomSeries] = field(default_factory=list)
    masks: list[DicomMask] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    pictures: list[Path] = field(default_factory=list)


def collect(root: Path, layout: Layout) -> FolderContents:
    """Read the headers below a folder.

    Args:
        root: the folder.
        layout: findings of files that are broken or not DICOM, and the folders of broken files, are
            added to it.
    """
    found = FolderContents()
    nameless: list[tuple[Path, Any]] = []
    series: dict[tuple[Path, str, str], DicomSeries] = {}
    for path in _files(root):
        if path.name.lower().endswith(PICTURES) and not is_dicom(path):
            found.pictures.append(path)
            continue
        with _faults_noted(path, layout):
            header = read_file(path, _TAGS)
            if not _record_if_not_image(path, header, found):
                _check_image(path, header)
                if header.get("SeriesInstanceUID"):
                    _add(path, header, str(header.SeriesInstanceUID), series)
                else:
                    nameless.append((path, header))
    for path, header in nameless:
        with _faults_noted(path, layout):
            _add(path, header, _uid_from_other_fields(path, header, series), series)
    found.series = sorted(series.values(), key=lambda item: (item.folder, item.uid, item.kind))
    _refuse_copies(found.series, layout)
    return found


def holds_one(folder: Path) -> bool:
    """Return whether the files of a folder are one volume, and not one picture each.

    Two slices of one series decide it, so that few headers are read.
    """
    series: dict[tuple[Path, str, str], DicomSeries] = {}
    for path in files_in(folder):
        if not is_dicom(path):
            continue
        try:
            header = read_file(path, _TAGS)
            if not _record_if_not_image(path, header, FolderContents()):
                _check_image(path, header)
                _add(path, header, str(header.get("SeriesInstanceUID") or ""), series)
        except Exception:  # a broken file is reported when it is read
            continue
        if any(len(item.files) > 1 and not item.is_picture for item in series.values()):
            return True
    images = [item for item in series.values() if item.kind == "image"] or [*series.values()]
    pictures = sum(len(item.files) for item in images if item.is_picture)
    is_flat = len(images) > 1 and all(item.slices == 1 for item in images)
    return bool(images) and pictures < 2 and not is_flat


def files_in(folder: Path) -> list[Path]:
    """Return the files of a folder, sorted by name, without hidden ones and DICOMDIR."""
    files = (path for path in folder.iterdir() if path.is_file())
    return sorted(p for p in files if not p.name.startswith(".") and p.name.upper() != "DICOMDIR")


def holds_dicom(folder: Path) -> bool:
    """Return whether a DICOM file lies in a folder or below it; stops at the first."""
    for place, _, names in os.walk(folder):
        paths = (Path(place) / name for name in sorted(names) if not name.startswith("."))
        if any(path.name.upper() != "DICOMDIR" and is_dicom(path) for path in paths):
            return True
    return False


def _files(root: Path) -> Iterator[Path]:
    """Yield the files below a folder that may be DICOM.

    Their names exclude only what is certainly something else.
    """
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        if os.path.realpath(folder) in visited:  # a symbolic link to a folder above
            folders.clear()
            continue
        visited.add(os.path.realpath(folder))
        for name in sorted(names):
            is_other = name.startswith(".") or name.upper() == "DICOMDIR"
            ending = (*LABELS, ".raw", ".zraw", ".json")
            path = Path(folder) / name
            if is_other or name.lower().endswith(ending):
                continue
            yield path


@contextmanager
def _faults_noted(path: Path, layout: Layout) -> Iterator[None]:
    """Turn exceptions from reading a header into findings of ``layout``."""
    try:
        yield
    except FindingError as problem:
        _note_fault(path, problem.finding, layout)
    except Exception as problem:  # pydicom decodes an element when it is asked for
        message = f"its header cannot be read ({type(problem).__name__})"
        fix = "copy or export it again"
        _note_fault(path, error_finding("truncated_file", path, message, fix), layout)


def _note_fault(path: Path, finding: Finding, layout: Layout) -> None:
    """Report a file that cannot be read; as a warning if it was never meant as DICOM."""
    if finding.code in ("not_dicom", "empty_file") and not _is_named_so(path):
        finding = replace(finding, code="other_file", severity="warning")
    else:
        layout.ambiguous.add(path.parent)
    layout.findings.append(finding)


def _is_named_so(path: Path) -> bool:
    """Return whether a name promises DICOM: by its ending, or as scanners name files (IM0001)."""
    scanner = r"(IM|I|MR|CT|IMG|SLICE|IMAGE)?[-_]?[\d.]+"
    is_scanner_name = bool(re.fullmatch(scanner, path.name, re.IGNORECASE))
    return path.name.lower().endswith(ENDINGS) or is_scanner_name


def _class_of(header: Any) -> str:
    """Return the SOP class, from the file meta information if an anonymiser emptied it."""
    meta = getattr(header, "file_meta", None) or {}
    return str(header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")


def _record_if_not_image(path: Path, header: Any, found: FolderContents) -> bool:
    """Record a file that is not an image: as a mask, or by counting its modality.

    Returns:
        Whether it was one; False for an image.
    """
    kind = _class_of(header)
    frames = header.get("ReferencedFrameOfReferenceSequence") or []
    if kind in SEG:
        refers = [
            item.get("SeriesInstanceUID") for item in header.get("ReferencedSeriesSequence") or []
        ]
        own = (str(header.get("FrameOfReferenceUID") or ""),)
        found.masks.append(_mask_object(path, header, False, refers, own))
        return True
    if kind == RTSTRUCT and header.get("ROIContourSequence"):
        refers = [
            series.get("SeriesInstanceUID")
            for frame in frames
            for study in frame.get("RTReferencedStudySequence") or []
            for series in study.get("RTReferencedSeriesSequence") or []
        ]
        uids = tuple(str(frame.get("FrameOfReferenceUID") or "") for frame in frames)
        found.masks.append(_mask_object(path, header, True, refers, uids))
        return True
    if kind == _DIRECTORY:
        return True
    is_cut = "SeriesInstanceUID" not in header and "Modality" not in header
    is_image = is_cut or "Image Storage" in load_pydicom().uid.UID(kind).name
    if (header.get("Rows") is None and not is_image) or kind in _NO_IMAGES:
        found.others[modality_of(header) or "other"] += 1
        return True
    return False


def _mask_object(
    path: Path, header: Any, is_contours: bool, series: list[Any], frames: tuple[str, ...]
) -> DicomMask:
    uids = tuple(dict.fromkeys(str(uid) for uid in series if uid))
    study = str(header.get("StudyInstanceUID") or "")
    return DicomMask(path, is_contours, uids, study, tuple(uid for uid in frames if uid))


def _check_image(path: Path, header: Any) -> None:
    """Refuse an image without rows.

    Raises:
        FindingError: its header is incomplete.
    """
    if header.get("Rows") is None:
        message = "it has neither Rows nor another sign of a DICOM image: its header is incomplete"
        raise fault("truncated_file", path, message, "copy or export it again")


def _add(
    path: Path, header: Any, uid: str, series: dict[tuple[Path, str, str], DicomSeries]
) -> None:
    """Add an image to its series."""
    # pydicom decodes elements here, and may raise. The series is changed only after that, so that a
    # broken file is not added by half.
    kind, modality, patient = _kind_of(header), modality_of(header), _patient(header)
    slices = int(header.get("NumberOfFrames") or 1)
    instance = str(header.get("SOPInstanceUID") or "")
    position = header.get("ImagePositionPatient") or header.get("ImagePosition")
    is_placed = bool(position) or _has_planes(header)
    turn = header.get("ImageOrientationPatient") or header.get("ImageOrientation") or ()
    turn = tuple(round(float(side), 2) + 0.0 for side in turn)
    key = (path.parent, uid, kind)
    item = series.get(key)
    if item is None:
        item = series[key] = DicomSeries(
            path.parent,
            uid,
            modality,
            str(header.get("StudyInstanceUID") or ""),
            str(header.get("FrameOfReferenceUID") or ""),
            _number_of(header),
            kind,
        )
    item.files.append(path)
    item.patients[path] = patient
    item.slices += slices
    item.instances.add(instance)
    item.is_placed |= is_placed
    if turn:
        item.turns.add(turn)


def _number_of(header: Any) -> int | None:
    """Return the SeriesNumber; None if it is missing or not a number."""
    try:
        return int(header.get("SeriesNumber"))
    except Exception:  # pydicom decodes it now; the file is usable without it
        return None


def _kind_of(header: Any) -> str:
    """Return whether an image is a ``"localizer"``, a ``"screenshot"`` or an ``"image"``."""
    types = {str(part).strip().upper() for part in _parts(header.get("ImageType"))}
    if types & {"LOCALIZER", "SCOUT"}:
        return "localizer"
    is_placed = header.get("ImagePositionPatient") or _has_planes(header)
    is_capture = _class_of(header).startswith(_CAPTURE) or "SCREEN SAVE" in types
    return "screenshot" if is_capture and not is_placed else "image"


def _has_planes(header: Any) -> bool:
    """Return whether the frames of a multi-frame file share an orientation."""
    shared = header.get("SharedFunctionalGroupsSequence")
    return bool(shared) and bool(shared[0].get("PlaneOrientationSequence"))


def _parts(value: Any) -> list[Any]:
    """Return the values of an element that may have one, several or none."""
    if value is None or isinstance(value, str):
        return [value] if value else []
    return list(value)


def _uid_from_other_fields(
    path: Path, header: Any, series: dict[tuple[Path, str, str], DicomSeries]
) -> str:
    """Return a text that replaces a missing SeriesInstanceUID.

    A file joins the series of its folder, study, kind and modality if there is exactly one. Other
    files are grouped by patient, study, series number and modality.
    """
    modality, kind = modality_of(header), _kind_of(header)
    study = str(header.get("StudyInstanceUID") or "")
    same = (path.parent, kind, modality, study)
    near = {
        item.uid
        for item in series.values()
        if (item.folder, item.kind, item.modality, item.study) == same
    }
    if len(near) == 1:
        return near.pop()
    return f"{path.parent} {_patient(header)} {study} {header.get('SeriesNumber')} {modality}"


def _refuse_copies(series: list[DicomSeries], layout: Layout) -> None:
    """Report series that lie in two folders."""
    seen: dict[tuple[str, str], Path] = {}
    for item in series:
        if item.kind != "image":
            continue
        first = seen.setdefault((item.uid, item.kind), item.folder)
        if first != item.folder and not item.is_picture:
            message = f"it holds the same series as {first}"
            fix = "keep a series in one folder"
            layout.findings.append(error_finding("duplicate_case", item.folder, message, fix))
            layout.ambiguous |= {item.folder, first}


def modality_of(header: Any) -> str:
    """Return the modality if it is a known code, else ``""``."""
    modality = str(header.get("Modality") or "").strip().upper()
    return modality if modality in _NAMED else ""


def _patient(header: Any) -> str:
    """Return a one-way hash of the patient's ID, or ``""`` if there is none."""
    number = str(header.get("PatientID") or "").strip()
    issuer = str(header.get("IssuerOfPatientID") or "").strip()
    if not number:
        return ""
    return hashlib.blake2b(f"{issuer}\0{number}".encode(), key=_SALT, digest_size=16).hexdigest()
