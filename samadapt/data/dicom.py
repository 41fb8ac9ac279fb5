"""DICOM series: a folder with one sub-folder a case, or any tree; one case a SeriesInstanceUID.

A case is named by its folder below the root, with eight digits of a hash of the series' UID where
a folder holds several: never by a patient. Labels are looked for in this order: ``data.label`` (a
pattern, with ``data.image`` a pattern of series folders); a NIfTI, NRRD or MetaImage file named as
the case (or as its folder) in ``labelsTr/``, ``labels/`` or ``masks/`` of the root, or beside the
folder; a DICOM SEG object that refers to the series, anywhere below the root, whose SegmentLabels
are the class names.

No field of a header but geometry, pixel values, modality and segment labels leaves this reader.
The patient ID becomes a hash with a salt that ends with the process.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from samadapt.data.dicom_frames import (
    frames_of,
    load_pydicom,
    order_frames,
    read_file,
    read_pixels,
)
from samadapt.data.dicom_seg import LABEL_MAP_SEG, SEG, load_segmentation, segment_names
from samadapt.data.itk import ItkReader, load_itk
from samadapt.data.nifti_grid import SUFFIXES as NIFTI
from samadapt.data.reader import Layout, register_reader
from samadapt.data.types import Case, Finding, FindingError, Volume, fault
from samadapt.data.volume_layout import match
from samadapt.data.volume_reader import Grid, VolumeReader, error, load_nifti

_ENDINGS = (".dcm", ".dicom", ".ima")
_LABELS = (*NIFTI, *ItkReader.suffixes)
_FOLDERS = ("labelsTr", "labels", "masks")
_MODALITIES = ("CT", "MR", "PT", "US", "CR", "DX", "MG", "NM", "XA", "RF")
_SCANNER_NAME = re.compile(r"(IM|I|MR|CT|IMG|SLICE|IMAGE)?[-_]?[\d.]+", re.IGNORECASE)
_SALT = secrets.token_bytes(16)
_TAGS = (
    "SOPClassUID",
    "SeriesInstanceUID",
    "Modality",
    "Rows",
    "PatientID",
    "IssuerOfPatientID",
    "ReferencedSeriesSequence",
)


@dataclass
class _Series:
    """The files of one series in one folder."""

    folder: Path
    uid: str
    modality: str
    patient: str
    files: list[Path] = field(default_factory=list)


@register_reader("dicom")
class DicomReader(VolumeReader):
    """Reads DICOM series with NIfTI, NRRD, MetaImage or DICOM SEG labels."""

    summary = "DICOM series, a folder each; labels as NIfTI beside them or DICOM SEG; extra dicom"
    suffixes: ClassVar[tuple[str, ...]] = _ENDINGS
    needs: ClassVar[tuple[str, str] | None] = ("pydicom", "dicom")

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether it is a folder, or a file named as DICOM."""
        return path.is_dir() or super().accepts(path)

    def discover(self) -> Layout:
        """Group the files below the root by series, from their headers."""
        layout, root = Layout(suffixes=_LABELS), self.options.root
        self._values: dict[str, int] = {}
        if root is None or not root.is_dir():
            reason = "there is no such folder" if root else "no folder is given"
            message = f"expected a folder of DICOM series; {reason}"
            file = root or Path("data.root")
            layout.findings.append(error("missing_folder", file, message, "set data.root"))
            return layout
        series, segments = _collect(root, layout)
        try:
            self._make_cases(root, series, segments, layout)
            self._name_segments(layout)
        except FindingError as problem:
            layout.findings.append(problem.finding)
            layout.cases = []
        modalities = sorted({item.modality for item in series})
        if len(modalities) == 1 and modalities[0]:
            layout.modality = modalities[0]
        if not layout.cases and not layout.findings:
            message = "no DICOM image in it or below it"
            layout.findings.append(error("no_cases", root, message, "check data.root"))
        return layout

    def load(self, path: Path, channel: int | None = None) -> Grid:
        """Read the series of a folder, or one file (a slice or a multi-frame object)."""
        if not path.is_dir():
            return _load(path, [path])
        layout = Layout()
        series, _ = _collect(path, layout)
        errors = [found for found in layout.findings if found.severity == "error"]
        if errors:
            raise FindingError(errors[0])
        if len(series) != 1:
            message = f"expected one DICOM image series; it holds {len(series)}"
            raise fault("several_series", path, message, "give the folder of one series")
        return _load(path, series[0].files)

    def load_image(self, case: Case) -> Grid:
        """Read the files of a case."""
        return _load(case.image, case.files)

    def load_labels(self, case: Case, path: Path, image: Grid | None) -> Grid | None:
        """Read the mask of a case: NIfTI, NRRD, MetaImage or SEG; a SEG needs the image."""
        name = path.name.lower()
        if name.endswith(NIFTI):
            return load_nifti(path, spacing=self.options.spacing)
        if name.endswith(ItkReader.suffixes):
            return load_itk(path)
        return None if image is None else load_segmentation(path, image, self._values)

    def examine(self, case: Case) -> tuple[Volume | None, list[Finding]]:
        """Read and check image and labels; what pydicom says of a fault stays inside."""
        try:
            return super().examine(case)
        except Exception as problem:  # its text may quote the header
            message = f"could not be read ({type(problem).__name__})"
            return None, [error("unreadable_image", case.image, message, "export it again")]

    def _make_cases(
        self, root: Path, series: list[_Series], segments: dict[Path, str], layout: Layout
    ) -> None:
        """Name the series and find the labels of each."""
        chosen: dict[Path, str] | None = None
        masks: dict[str, Path] = {}
        if self.options.image:
            chosen = {path: name for name, path in match(root, self.options.image).items()}
            series = [item for item in series if item.folder in chosen]
        if self.options.label:
            masks = match(root, self.options.label)
        names = _names(root, series, chosen)
        used: set[Path] = set()
        for item, name in zip(series, names, strict=True):
            if self.options.label:
                found = [masks[key] for key in (name, "") if key in masks][:1]
            else:
                found = _label_files(root, item, name, is_only=names.count(name) == 1)
                found += [path for path, uid in segments.items() if uid == item.uid]
            used.update(found)
            if len(found) > 1:
                message = f"it has several masks: {', '.join(path.name for path in found[:4])}"
                fix = "keep one, or choose with data.image and data.label"
                layout.findings.append(error("several_labels", item.folder, message, fix))
                layout.ambiguous.add(item.folder)
            files = tuple(sorted(item.files))
            label = found[0] if found else None
            layout.cases.append(Case(name, item.folder, label, files=files, patient=item.patient))
        orphans = set(masks.values()) if self.options.label else {*segments, *_in_folders(root)}
        for path in sorted(orphans - used):
            message = "this mask belongs to no DICOM series of the folder"
            fix = "add the series, name the mask as its folder, or remove it"
            layout.findings.append(error("missing_image", path, message, fix))

    def _name_segments(self, layout: Layout) -> None:
        """Number the segments of all SEG objects by name, alike in every case."""
        paths = [case.labels for case in layout.cases if case.labels is not None]
        objects = [path for path in paths if not path.name.lower().endswith(_LABELS)]
        if not objects:
            return
        if len(objects) < len(paths):
            other = next(path for path in paths if path not in objects)
            message = (
                "some cases have a DICOM SEG and others a mask file, whose values have no name"
            )
            raise fault("mixed_labels", other, message, "keep one kind of label")
        names: set[str] = set()
        for path in objects:
            try:
                names.update(segment_names(path).values())
            except FindingError as problem:
                layout.findings.append(problem.finding)
                layout.ambiguous.add(path)
        self._values = {name: index for index, name in enumerate(sorted(names), start=1)}
        if names:
            layout.classes = {name: (value,) for name, value in self._values.items()}


def _load(folder: Path, files: Sequence[Path]) -> Grid:
    """Read the files of one series."""
    frames = [frame for path in files for frame in frames_of(path)]
    ordered, affine, warned = order_frames(folder, frames)
    return read_pixels(folder, ordered, affine)._replace(findings=tuple(warned))


def _names(root: Path, series: list[_Series], chosen: Mapping[Path, str] | None) -> list[str]:
    """Name the series: by the pattern or by folder, with a hash where a folder holds several."""
    folders = [item.folder for item in series]
    names = []
    for item in series:
        name = "_".join(item.folder.relative_to(root).parts) or root.resolve().name
        if chosen is not None:
            name = chosen[item.folder] or item.folder.name
        if folders.count(item.folder) > 1:
            name += "_" + hashlib.sha256(item.uid.encode()).hexdigest()[:8]
        names.append(name)
    return names


def _label_files(root: Path, item: _Series, name: str, *, is_only: bool) -> list[Path]:
    """Return the mask files that are named as a case, or lie beside its folder."""
    if not is_only:
        return []
    places = [root / part / name for part in _FOLDERS]
    # Not where the folder holds several series, and not beside the root.
    if item.folder != root and name.endswith(item.folder.name):
        places.append(item.folder.parent / item.folder.name)
    found = [place.with_name(place.name + ending) for place in places for ending in _LABELS]
    return [path for path in dict.fromkeys(found) if path.is_file()]


def _in_folders(root: Path) -> list[Path]:
    files = [path for part in _FOLDERS for path in (root / part).glob("*")]
    return [path for path in files if path.name.lower().endswith(_LABELS)]


def _collect(root: Path, layout: Layout) -> tuple[list[_Series], dict[Path, str]]:
    """Read the headers below a folder.

    Returns:
        the image series, and the series' UID that each SEG object refers to. Files that are
        broken or no DICOM image become findings of ``layout``.
    """
    series: dict[tuple[Path, str], _Series] = {}
    segments: dict[Path, str] = {}
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        if os.path.realpath(folder) in visited:  # a link back up
            folders.clear()
            continue
        visited.add(os.path.realpath(folder))
        for name in sorted(names):
            path = Path(folder) / name
            is_other = name.startswith(".") or name.upper() == "DICOMDIR"
            if is_other or name.lower().endswith((*_LABELS, ".raw", ".zraw", ".json")):
                continue
            try:
                _sort_in(path, read_file(path, _TAGS), series, segments, layout)
            except FindingError as problem:
                finding = problem.finding
                if finding.code in ("not_dicom", "empty_file") and not _is_named_so(path):
                    finding = replace(finding, code="other_file", severity="warning")
                else:
                    layout.ambiguous.add(path.parent)
                layout.findings.append(finding)
            except Exception as problem:  # pydicom decodes an element when it is asked for
                message = f"its header cannot be read ({type(problem).__name__})"
                fix = "copy or export it again"
                layout.findings.append(error("truncated_file", path, message, fix))
                layout.ambiguous.add(path.parent)
    found = sorted(series.values(), key=lambda item: (item.folder, item.uid))
    seen: dict[str, Path] = {}
    for item in found:
        if seen.setdefault(item.uid, item.folder) != item.folder:
            message = f"holds the same series as {seen[item.uid]}"
            fix = "keep a series in one folder"
            layout.findings.append(error("duplicate_case", item.folder, message, fix))
            layout.ambiguous |= {item.folder, seen[item.uid]}
    return found, segments


def _is_named_so(path: Path) -> bool:
    """Whether a name promises DICOM: its ending, or none (as scanners write)."""
    return path.name.lower().endswith(_ENDINGS) or bool(_SCANNER_NAME.fullmatch(path.name))


def _sort_in(
    path: Path,
    header: Any,
    series: dict[tuple[Path, str], _Series],
    segments: dict[Path, str],
    layout: Layout,
) -> None:
    """Put a file to its series, or to the segmentations.

    Raises:
        FindingError: it lacks what every DICOM image has.
    """
    kind, uid = str(header.get("SOPClassUID") or ""), str(header.get("SeriesInstanceUID") or "")
    if kind in (SEG, LABEL_MAP_SEG):
        refers = header.get("ReferencedSeriesSequence") or []
        segments[path] = str(refers[0].get("SeriesInstanceUID") or "") if refers else ""
        return
    is_image = "Image Storage" in load_pydicom().uid.UID(kind).name
    if not kind or not uid or (is_image and header.get("Rows") is None):
        message = "it lacks SOPClassUID, SeriesInstanceUID or Rows: its header is incomplete"
        raise fault("truncated_file", path, message, "copy or export it again")
    if header.get("Rows") is None:
        message = "a DICOM object without an image (a structure set, report, …); it is not read"
        found = Finding("other_object", "warning", str(path), message, "remove it, or convert it")
        layout.findings.append(found)
        return
    modality = str(header.get("Modality") or "")
    modality = modality if modality in _MODALITIES else ""
    item = _Series(path.parent, uid, modality, _patient(header))
    series.setdefault((path.parent, uid), item).files.append(path)


def _patient(header: Any) -> str:
    """Return a one-way hash of the patient's ID, or ``""`` where there is none."""
    number = str(header.get("PatientID") or "").strip()
    issuer = str(header.get("IssuerOfPatientID") or "").strip()
    if not number:
        return ""
    return hashlib.blake2b(f"{issuer}\0{number}".encode(), key=_SALT, digest_size=16).hexdigest()
