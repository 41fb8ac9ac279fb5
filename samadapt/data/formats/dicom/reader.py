"""DICOM series: a folder with one sub-folder a case, or any tree; one case a series or a picture.

A series is named after its folder below the root, and a picture (X-ray, ultrasound) after its file;
never after a patient. ``cases.py`` says what becomes a case. Labels are looked for in this order:

1. ``data.label``, a pattern; ``data.image`` is then a pattern of series folders or files.
2. A NIfTI, NRRD or MetaImage file with the name of the case or of its folder, in ``labelsTr/``,
   ``labels/`` or ``masks/`` of the root, or beside the folder. For a picture also PNG.
3. A DICOM SEG or RTSTRUCT object anywhere below the root that refers to the series. Its segments or
   regions name the classes.

Only these fields of a header leave this reader: geometry, pixel values, modality, series number,
and the names of segments and regions. The patient ID becomes a hash with a salt that ends with the
process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np

from samadapt.data.channels import Indices
from samadapt.data.checks.palettes import check_palette
from samadapt.data.findings import Finding, FindingError, error_finding, fault, warning_finding
from samadapt.data.formats.base import Layout, register_reader
from samadapt.data.formats.dicom.cases import (
    CaseBuilder,
    not_read_warning,
    only_localizers,
    several_series,
    volumes_of,
)
from samadapt.data.formats.dicom.files import read_file
from samadapt.data.formats.dicom.folder_contents import (
    ENDINGS,
    LABELS,
    RTSTRUCT,
    collect,
    files_in,
    holds_one,
)
from samadapt.data.formats.dicom.frames import frames_of
from samadapt.data.formats.dicom.pixels import read_picture, read_pixels
from samadapt.data.formats.dicom.rtstruct import load_contours, region_names
from samadapt.data.formats.dicom.seg import load_segmentation, segment_names
from samadapt.data.formats.dicom.signature import is_dicom
from samadapt.data.formats.dicom.slice_order import order_frames
from samadapt.data.formats.itk.reader import load_itk
from samadapt.data.formats.nifti.reader import load_nifti
from samadapt.data.formats.nifti.write import SUFFIXES as NIFTI
from samadapt.data.formats.shared.pictures import load_mask, save_plane
from samadapt.data.formats.shared.stored_picture import SUFFIXES as PICTURES
from samadapt.data.formats.shared.stored_volume import StoredVolume
from samadapt.data.formats.shared.volume_reader import VolumeReader
from samadapt.data.types import Case, Volume
from samadapt.system.arrays import Array

_VALUED = (*LABELS, *PICTURES)
"""Endings of masks that hold label values. DICOM objects hold named segments instead."""


@register_reader("dicom")
class DicomReader(VolumeReader):
    """Reads DICOM series and pictures, with label files or with SEG and RTSTRUCT objects."""

    summary = "DICOM series or pictures; labels as NIfTI, PNG, DICOM SEG or RTSTRUCT; extra dicom"
    suffixes: ClassVar[tuple[str, ...]] = ENDINGS
    needs: ClassVar[tuple[str, str] | None] = ("pydicom", "dicom")
    output_suffixes: ClassVar[tuple[str, ...]] = (*NIFTI, ".png")

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Return whether it is a folder, or a file that has the name or the beginning of DICOM."""
        if path.is_dir() or super().accepts(path):
            return True
        return not path.name.lower().endswith(_VALUED) and is_dicom(path)

    @classmethod
    def holds_one(cls, folder: Path) -> bool | None:
        """Return whether the files of a folder are one volume, and not one picture each.

        Reads headers alone. Without pydicom, a folder with any DICOM file counts as one volume.
        """
        return holds_one(folder) if find_spec("pydicom") else any(map(is_dicom, files_in(folder)))

    def discover(self) -> Layout:
        """Group the files below the root into cases, from their headers."""
        layout, root = Layout(suffixes=LABELS), self.options.root
        self._values: dict[str, int] = {}
        self._several: dict[str, Finding | None] = {}
        if root is None or not root.is_dir():
            reason = "there is no such folder" if root else "no folder is given"
            message = f"expected a folder of DICOM series; {reason}"
            file = root or Path("data.root")
            layout.findings.append(error_finding("missing_folder", file, message, "set data.root"))
            return layout
        arranged = CaseBuilder(root, self.options, collect(root, layout), layout)
        try:
            arranged.arrange()
            self._name_segments(layout)
        except FindingError as problem:
            layout.findings.append(problem.finding)
            layout.cases = []
        self._several = arranged.several
        modalities = sorted({candidate.series.modality for candidate in arranged.candidates})
        if len(modalities) == 1 and modalities[0]:
            layout.modality = modalities[0]
        if not layout.cases and not layout.findings:
            message = "there is no DICOM image in it or below it"
            layout.findings.append(error_finding("no_cases", root, message, "check data.root"))
        return layout

    def load(self, path: Path, channel: Indices = None) -> StoredVolume:
        """Read the series of a folder, or one file (a slice or a multi-frame object)."""
        if not path.is_dir():
            return _load(path, [path])
        files, found = chosen_files(path, self.options.series)
        stored = _load(path, files)
        return stored._replace(findings=(*stored.findings, *found), files=tuple(files))

    def arrange(self, stored: StoredVolume, image: Array, labels: Array | None = None) -> Volume:
        """Return image and labels as slices; a colour picture is one slice."""
        volume = super().arrange(stored, image, labels)
        if image.ndim == 3:
            return volume
        return replace(volume, image=np.ascontiguousarray(volume.image[:, :, 0]), is_color=True)

    def write(self, prediction: Array, volume: Volume, path: Path) -> None:
        """Write class ids on the grid of the series; for a picture also as PNG."""
        if path.name.lower().endswith(".png"):
            save_plane(prediction, volume, path)
        else:
            super().write(prediction, volume, path)

    def load_image(self, case: Case) -> StoredVolume:
        """Read the files of a case."""
        return _load(case.image, case.files)

    def load_labels(
        self, case: Case, path: Path, image: StoredVolume | None
    ) -> StoredVolume | None:
        """Read the mask of a case. SEG, RTSTRUCT and masks of pictures need the image."""
        name = path.name.lower()
        if name.endswith(LABELS):
            is_nifti = name.endswith(NIFTI)
            labels = load_nifti(path, spacing=self.options.spacing) if is_nifti else load_itk(path)
            return labels if image is None or image.is_placed else _by_index(path, labels, image)
        if image is None:
            return None
        if name.endswith(PICTURES):
            mask = load_mask(path, masks=self.options.masks)
            check_palette(path, mask.colours)
            return StoredVolume(mask.values.T[:, :, None], image.affine)  # (column, row, 1)
        if _is_contours(path):
            return load_contours(path, image, self._wanted(), case.files)
        return load_segmentation(path, image, self._values)

    def examine(self, case: Case) -> tuple[Volume | None, list[Finding]]:
        """Read and check image and labels. Messages of pydicom are never passed on."""
        if case.name in self._several:
            found = self._several[case.name]
            return None, [found] if found else []
        try:
            return super().examine(case)
        except Exception as problem:  # its text may quote the header
            message = f"it could not be read ({type(problem).__name__})"
            return None, [error_finding("unreadable_image", case.image, message, "export it again")]

    def sources(self, case: Case) -> Sequence[Path] | None:
        """Return the files of the series and its mask; None for a case with several of them."""
        return None if case.name in self._several else super().sources(case)

    def _wanted(self) -> dict[str, int]:
        """Return the values of the regions that ``data.classes`` uses; others may overlap these."""
        chosen = self.options.classes
        if isinstance(chosen, Mapping):
            used = {
                v for item in chosen.values() for v in ([item] if isinstance(item, int) else item)
            }
            return {name: value for name, value in self._values.items() if value in used}
        return {k: v for k, v in self._values.items() if not chosen or k in chosen}

    def _name_segments(self, layout: Layout) -> None:
        """Give each segment or region name one label value, the same in every case.

        The names are numbered in alphabetical order, from 1.
        """
        paths = [case.labels for case in layout.cases if case.labels is not None]
        objects = [path for path in paths if not path.name.lower().endswith(_VALUED)]
        if not objects:
            return
        if len(objects) < len(paths):
            other = next(path for path in paths if path not in objects)
            message = "some cases have a DICOM object with named segments, and others a mask file "
            message += "with values that have no names"
            raise fault("mixed_labels", other, message, "keep one kind of label")
        held: dict[Path, set[str]] = {}
        contours: dict[Path, set[str]] = {}
        for path in objects:
            try:
                is_contours = _is_contours(path)
                listed = region_names(path) if is_contours else segment_names(path)
                held[path] = set(listed.values())
                if is_contours:
                    contours[path] = held[path]
            except FindingError as problem:
                layout.findings.append(problem.finding)
                layout.ambiguous.add(path)
        names = sorted(set().union(*held.values()))
        self._values = {name: index for index, name in enumerate(names, start=1)}
        if names:
            layout.classes = {name: (value,) for name, value in self._values.items()}
        used = self._wanted().keys()
        contours = {path: found & used for path, found in contours.items()}
        layout.findings += _missing_regions(contours, self.options.root or Path())


def chosen_files(folder: Path, choice: str | None = None) -> tuple[list[Path], list[Finding]]:
    """Return the files of the one image series of a folder, and a warning of files not read.

    Args:
        folder: the folder of a series, or one with a study below it.
        choice: which series to use if there are several; see ``series_choice.py``.

    Raises:
        FindingError: there is no series or more than one, or a file is broken.
    """
    layout = Layout()
    contents = collect(folder, layout)
    errors = [found for found in layout.findings if found.severity == "error"]
    if errors:
        raise FindingError(errors[0])
    series, left_out = volumes_of(folder, contents, choice)
    if not series:
        message = "there is no DICOM image in it or below it"
        raise fault("no_cases", folder, message, "give the folder of a series")
    if len(series) > 1 and all(item.is_picture for item in series):
        message = f"it holds {len(series)} pictures, which are not one volume"
        fix = "give this folder itself, or one of its files, as the input"
        raise fault("several_series", folder, message, fix)
    if len(series) > 1:
        raise FindingError(several_series(folder, series))
    if nothing := only_localizers(series[0]):
        raise FindingError(nothing)
    found = not_read_warning(folder, left_out)
    return sorted(series[0].files), [found] if found else []


def _load(folder: Path, files: Sequence[Path]) -> StoredVolume:
    """Read the files of one series, or one picture."""
    frames = [frame for path in files for frame in frames_of(path)]
    picture = read_picture(folder, frames)
    if picture is not None:
        return picture
    ordered, affine, warned = order_frames(folder, frames)
    return read_pixels(folder, ordered, affine)._replace(findings=tuple(warned))


def _is_contours(path: Path) -> bool:
    """Return whether a DICOM object is an RTSTRUCT, and not a SEG."""
    header = read_file(path, ["SOPClassUID"])
    kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    return str(kind) == RTSTRUCT


def _by_index(path: Path, labels: StoredVolume, image: StoredVolume) -> StoredVolume:
    """Return the mask of a picture by rows and columns, because a picture has no affine."""
    turns = np.sign(np.diag(labels.affine)[:2])
    findings: tuple[Finding, ...] = ()
    if (turns != -1).any():  # saved as NIfTI, a DICOM picture has both axes reversed
        message = "its axes run against those of the picture, which has no place in the patient: "
        message += "its voxels are read by column and row as stored"
        fix = "look at the overlays, or save the mask as PNG"
        findings = (warning_finding("mask_by_index", path, message, fix),)
    return labels._replace(affine=image.affine, findings=findings)


def _missing_regions(held: Mapping[Path, set[str]], root: Path) -> list[Finding]:
    """Return a warning of regions that only some of the RTSTRUCT objects have."""
    counts = Counter(name for names in held.values() for name in names)
    lacking = [
        f"{name} ({n} of {len(held)})" for name, n in sorted(counts.items()) if n < len(held)
    ]
    if not lacking:
        return []
    message = f"regions that only some of the RTSTRUCT objects have: {', '.join(lacking[:12])}"
    message += f" and {len(lacking) - 12} more" if len(lacking) > 12 else ""
    message += "; in the other cases, these regions count as absent"
    fix = "choose regions that every case has with data.classes=[…], or leave those cases out"
    return [warning_finding("missing_region", root, message, fix)]
