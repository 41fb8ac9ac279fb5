"""NIfTI volumes: MSD and nnU-Net folders, ``images/`` + ``labels/``, or two named files.

Layouts, in the order in which they are looked for:

- ``data.image`` and ``data.label`` given: file names below ``data.root``, or patterns with one
  ``*`` (``*/ct.nii.gz`` with ``*/labels.nii.gz``); the text that ``*`` stands for names the case.
  Say which values are which class: ``data.classes={liver: 5, spleen: 1, kidney: [2, 3]}``.
- ``imagesTr/``, ``labelsTr/`` and ``dataset.json``: Medical Segmentation Decathlon, or nnU-Net
  (images end in ``_0000``).
- ``images/`` and ``labels/``, same file names, ``_mask`` allowed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from samadapt.data.nifti_grid import (
    SUFFIXES,
    finite_image,
    load_grid,
    save_labels,
    source_grid,
    spacing_of,
    to_slices,
    whole_labels,
)
from samadapt.data.nifti_layout import discover_nifti
from samadapt.data.reader import Layout, Reader, register_reader
from samadapt.data.types import Array, Case, Finding, FindingError, SourceGrid, Volume
from samadapt.errors import DataError


@register_reader("nifti", "msd", "nnunet")
class NiftiReader(Reader):
    """Reads NIfTI volumes."""

    summary = "NIfTI volumes: MSD, nnU-Net, images/ + labels/, or data.image and data.label"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    output_suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    def discover(self) -> Layout:
        """List the cases of the folder."""
        return discover_nifti(self.options)

    def read_image(self, path: Path) -> Volume:
        """Read a volume without labels, sliced along ``options.axis``."""
        channel = self.options.channel
        values, header = load_grid(path, channel if isinstance(channel, int) else None)
        return self._arrange(finite_image(path, values), header)

    def examine(self, case: Case) -> tuple[Volume | None, list[Finding]]:
        """Read and check image and labels; grids that differ are a finding of both files."""
        findings: list[Finding] = []
        image = labels = header = label_header = None
        try:
            _check_partner(case)
            values, header = load_grid(case.image, case.channel)
            image = finite_image(case.image, values)
            if image.min() == image.max():
                message = f"all voxels have the value {float(image.min()):g}"
                findings.append(_error("constant_image", case.image, message, "export it again"))
        except FindingError as error:
            findings.append(error.finding)
        try:
            if case.labels is not None:
                values, label_header = load_grid(case.labels)
                labels = whole_labels(case.labels, values)
        except FindingError as error:
            findings.append(error.finding)
        if image is None or labels is None or case.labels is None:
            return None, findings
        findings += compare_grids(case.image, case.labels, (header, label_header))
        if not labels.any():
            message = "the mask is empty: no voxel differs from 0"
            fix = "check that it is the right file"
            findings.append(Finding("no_foreground", "warning", str(case.labels), message, fix))
        if any(finding.severity == "error" for finding in findings):
            return None, findings
        return self._arrange(image, header, labels), findings

    def write(self, prediction: Array, volume: Volume, path: Path) -> None:
        """Write class ids on the grid of the file that ``volume`` was read from."""
        if volume.source is None:
            raise DataError(f"{path}: a picture has no NIfTI grid; write it as .png")
        save_labels(prediction, volume.source, path)

    def _arrange(self, image: Array, header: Any, labels: Array | None = None) -> Volume:
        source: SourceGrid = source_grid(header, self.options.axis)
        arranged = None if labels is None else to_slices(labels, source)
        return Volume(to_slices(image, source), arranged, spacing_of(source), source)


def compare_grids(image: Path, labels: Path, headers: tuple[Any, Any]) -> list[Finding]:
    """Compare two grids: shapes must be equal, corners agree within a tenth of a voxel."""
    shapes = [tuple(int(s) for s in header.get_data_shape()[:3]) for header in headers]
    if (*shapes[0], 1)[:3] != (*shapes[1], 1)[:3]:
        message = f"its shape {shapes[1]} differs from {shapes[0]} of the image {image}"
        fix = "export image and mask on the same grid"
        return [_error("shape_mismatch", labels, message, fix)]
    corners = np.indices((2, 2, 2)).reshape(3, -1) * (np.array([*shapes[0], 1][:3])[:, None] - 1)
    corners = np.vstack([corners, np.ones(8)])
    first, second = (np.asarray(header.get_best_affine()) for header in headers)
    distance = float(np.abs((first - second) @ corners)[:3].max())
    if distance <= 0.1 * float(np.linalg.norm(first[:3, :3], axis=0).min()):
        return []
    message = f"its grid lies up to {distance:.3g} mm from that of the image {image}"
    fix = "resample the mask to the image's grid, or copy the image's affine if it is the true one"
    return [_error("grid_mismatch", labels, message, fix)]


def _check_partner(case: Case) -> None:
    if not case.image.is_file() and case.labels is not None and case.labels.is_file():
        message = f"this mask has no image; expected {case.image}"
        raise FindingError(_error("missing_image", case.labels, message, "add the image"))
    if case.labels is None:
        message = "this image has no mask of the same name"
        raise FindingError(
            _error("missing_label", case.image, message, "add it, or move the image")
        )


def _error(code: str, file: Path, message: str, fix: str) -> Finding:
    return Finding(code, "error", str(file), message, fix)
