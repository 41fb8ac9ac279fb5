"""A folder of pictures: ``images/``, ``masks/`` and, optionally, ``annotations/``.

::

    root/images/a.png        root/images/site1/b.jpg
    root/masks/a.png         root/masks/site1/b_mask.png
    root/annotations/a.json

PNG, JPEG, TIFF, BMP, WebP and GIF files are read. Image, mask and annotation have the same stem and
are in the same subfolder; ``_mask`` after the stem of a mask is allowed. A mask has no lossy
compression, because JPEG changes values, and holds one class number for each pixel. Masks with a
palette keep their indices if all palettes agree (``checks/palettes.py``).
``data.classes={name: "#ff0000"}`` names classes by colour.

The classes are those of the card or of ``data.classes={name: value}``. Without either, each value
is a class, so a mask of 0 and 255 has one class, ``foreground``. The schema of
``annotations/<stem>.json`` is in ``data/annotations.py``; the boxes and points of such a file
become the prompts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from samadapt.data.annotations import box_area, read_annotation
from samadapt.data.checks.palettes import check_palettes
from samadapt.data.findings import Finding, FindingError, error_finding, warning_finding
from samadapt.data.formats.base import FormatReader, Layout, Scan, register_reader
from samadapt.data.formats.shared.exif import (
    UPRIGHT,
    check_frame,
    frame_fault,
    frame_hint,
    turn_upright,
)
from samadapt.data.formats.shared.pictures import Mask, Picture, load_mask, load_picture, save_plane
from samadapt.data.formats.shared.stored_picture import SUFFIXES
from samadapt.data.formats.tiff.reader import is_stack
from samadapt.data.types import Annotation, Case, Volume
from samadapt.system.arrays import Array

_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}
"""Names of subfolders that look like a division of the data."""
_CLEARLY = 0.25
"""How much more of the foreground must be in boxes and points drawn on the stored pixels, to decide
that they were drawn there."""


@register_reader("folder", "images")
class FolderReader(FormatReader):
    """Reads pictures and masks."""

    summary = "pictures: images/ + masks/ (+ annotations/), PNG, TIFF, ...; pixel value = class"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    default_intensity = "rgb"
    knows_colours = True

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Return whether it is a picture; TIFF stacks are left to their own reader."""
        return super().accepts(path) and not is_stack(path)

    def discover(self) -> Layout:
        """List the pictures by stem."""
        layout = Layout()
        root = self.options.root
        if root is None or not (root / "images").is_dir():
            reason = "expected the folders images/ and masks/ in it" + _nearby(root)
            file, fix = str(root or "data.root"), "set data.root to the folder that holds images/"
            layout.findings.append(error_finding("missing_folder", file, reason, fix))
            return layout
        images = _files(root / "images", SUFFIXES, layout)
        masks = _files(root / "masks", SUFFIXES, layout, images)
        notes = _files(root / "annotations", (".json",), layout)
        for place in sorted({*images, *masks, *notes}):
            expected = root / "images" / f"{place}.png"
            name = "_".join(place.split("/"))
            case = Case(name, images.get(place, expected), masks.get(place), notes.get(place))
            layout.cases.append(case)
        _warn_of_parts(root / "images", images, layout)
        if not layout.cases and not layout.findings:
            message, fix = f"no {', '.join(SUFFIXES)} file in it", "check data.root"
            folder = str(root / "images")
            layout.findings.append(error_finding("no_cases", folder, message, fix))
        return layout

    def read_image(self, path: Path) -> Volume:
        """Read a picture without its mask."""
        picture = load_picture(path, self.options.exif)
        return Volume(picture.image, is_color=picture.is_color)

    def sources(self, case: Case) -> Sequence[Path] | None:
        """Return picture, mask and annotations."""
        return [path for path in (case.image, case.labels, case.annotations) if path is not None]

    def examine(self, case: Case) -> tuple[Volume | None, list[Finding]]:
        """Read and check picture, mask and annotations."""
        findings = _missing(case, self.options.root or Path())
        if findings:
            return None, findings
        picture = mask = annotation = None
        try:
            picture = load_picture(case.image, self.options.exif)
            if picture.image.min() == picture.image.max():
                message = f"all pixels have the value {float(picture.image.min()):g}"
                findings.append(
                    error_finding("constant_image", case.image, message, "export it again")
                )
        except FindingError as error:
            findings.append(error.finding)
        try:
            mask = load_mask(case.labels or case.image, self.options.exif, self.options.masks)
            findings += mask.findings
        except FindingError as error:
            findings.append(error.finding)
        if picture is not None:
            try:
                annotation = self._annotation(case, picture)
            except FindingError as error:
                findings.append(error.finding)
        # Every check that is still possible runs, so the user sees all problems of a case at once.
        if picture is not None and mask is not None:
            findings += self._compare(case, picture, mask)
            if annotation is not None and not any(f.severity == "error" for f in findings):
                findings += self._misplaced(case, picture, mask, annotation)
        if picture is None or mask is None or any(f.severity == "error" for f in findings):
            return None, findings
        volume = Volume(
            picture.image,
            mask.values[:, :, None],
            is_color=picture.is_color,
            annotation=annotation,
            colours=mask.colours,
        )
        return volume, findings

    def compare_cases(self, scan: Scan) -> None:
        """Compare the palettes of the masks."""
        check_palettes(scan, self.options.masks)

    def _annotation(self, case: Case, picture: Picture) -> Annotation | None:
        """Read boxes and points.

        If they fit into the stored pixels but not into the turned picture, the error is about EXIF.
        """
        if case.annotations is None:
            return None
        try:
            return read_annotation(case.annotations, *picture.size)
        except FindingError as error:
            outside = error.finding.code in ("box_outside", "point_outside")
            if not outside or picture.stored == picture.size:
                raise
            try:
                read_annotation(case.annotations, *picture.stored)
            except FindingError:
                raise error from None
            reason = (
                "its boxes or points fit into the stored pixels, but not into the turned picture"
            )
            raise frame_fault(case.annotations, case.image, picture.orientation, reason) from None

    def _misplaced(
        self, case: Case, picture: Picture, mask: Mask, annotation: Annotation
    ) -> list[Finding]:
        """Report boxes and points that fit the mask better before than after the turn."""
        if self.options.exif is not None or picture.orientation == UPRIGHT:
            return []
        # Undo the turn: each orientation is its own inverse, except the quarter turns 6 and 8.
        stored = turn_upright(
            mask.values, {6: 8, 8: 6}.get(picture.orientation, picture.orientation)
        )
        if _covered(annotation, stored) <= _covered(annotation, mask.values) + _CLEARLY:
            return []
        reason = "its boxes or points fit objects on the stored pixels, not on the turned picture"
        path = case.annotations or case.image
        return [frame_fault(path, case.image, picture.orientation, reason).finding]

    def _compare(self, case: Case, picture: Picture, mask: Mask) -> list[Finding]:
        """Compare the sizes of picture and mask, and check that EXIF turns both or neither."""
        label, size = case.labels or case.image, mask.values.shape
        if self.options.exif is None and mask.orientation != picture.orientation:
            try:
                check_frame(
                    label, case.image, picture.stored, picture.orientation, (size[0], size[1])
                )
            except FindingError as error:
                return [error.finding]
        if size != picture.size:
            message = f"its shape {size} differs from {picture.size} of the image {case.image}"
            message += frame_hint(picture.stored, picture.orientation, (size[0], size[1]))
            fix = "export image and mask at the same size"
            return [error_finding("shape_mismatch", label, message, fix)]
        if not mask.values.any():
            message = "the mask is empty: no pixel differs from 0"
            fix = "check that it is the right file"
            return [warning_finding("no_foreground", label, message, fix)]
        return []

    def write(self, prediction: Array, volume: Volume, path: Path) -> None:
        """Write class ids (h, w) or (h, w, 1) as PNG."""
        save_plane(prediction, volume, path)


def _files(
    folder: Path, suffixes: tuple[str, ...], layout: Layout, images: dict[str, Path] | None = None
) -> dict[str, Path]:
    """List files by subfolder and stem, such as ``train/a``.

    Args:
        folder: is searched with its subfolders.
        suffixes: endings of the files.
        layout: receives findings about other files and double names.
        images: given for masks. ``_mask`` is cut off a stem unless an image has that stem.
    """
    found: dict[str, Path] = {}
    for path in _walk(folder, layout):
        if path.suffix.lower() not in suffixes:
            layout.findings.append(_other_file(path, suffixes))
            continue
        place = path.relative_to(folder).with_suffix("").as_posix()
        if images is not None and place not in images:
            place = place.removesuffix("_mask")
        if place in found:
            message = f"belongs to the same name as {found[place].name}"
            layout.findings.append(
                error_finding("duplicate_case", path, message, "keep one of the two")
            )
            layout.ambiguous |= {path, found[place]}
            continue
        found[place] = path
    return found


def _nearby(root: Path | None) -> str:
    """Return as text which subfolders of the root contain ``images/``."""
    if root is None or not root.is_dir():
        return ""
    found = sorted(path.name for path in root.iterdir() if (path / "images").is_dir())
    return f"; it is in {', '.join(found[:5])}" if found else ""


def _warn_of_parts(folder: Path, images: dict[str, Path], layout: Layout) -> None:
    """Warn that subfolders such as train and val do not divide the data."""
    parts = sorted({place.split("/")[0] for place in images if "/" in place})
    if not _PARTS & {part.lower() for part in parts}:
        return
    message = f"the subfolders {', '.join(parts[:8])} are read as one data set; their names do "
    message += "not decide which cases are held out (data.val_every and data.fold do)"
    fix = "if they should, leave only the training pictures in images/ and score the others with "
    fix += "samadapt evaluate"
    layout.findings.append(warning_finding("split_folders", folder, message, fix))


def _walk(folder: Path, layout: Layout) -> Iterator[Path]:
    """Yield the files below a folder, sorted; hidden and linked folders are not searched."""
    if not folder.is_dir():
        return
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (Path(place) / name).is_symlink():
                layout.findings.append(_other_file(Path(place) / name, SUFFIXES))
        yield from (Path(place) / name for name in sorted(files) if not name.startswith("."))


def _other_file(path: Path, suffixes: tuple[str, ...]) -> Finding:
    message = f"expected {', '.join(suffixes)} here; this file is not read"
    return warning_finding("other_file", path, message, "remove or convert it")


def _covered(annotation: Annotation, labels: Array) -> float:
    """Return the share (0..1) of the foreground in the boxes, or of the points on foreground."""
    foreground = labels != 0
    if annotation.boxes is not None:
        inside = np.zeros(labels.shape, bool)
        # Boxes may overlap, so mark their area instead of adding up.
        for box in annotation.boxes:
            inside[box_area(box, labels.shape)] = True
        return float((inside & foreground).sum() / max(foreground.sum(), 1))
    if annotation.points is None or annotation.point_labels is None:
        return 0.0
    x, y = annotation.points[annotation.point_labels == 1].astype(int).T
    within = (x < labels.shape[1]) & (y < labels.shape[0])
    return float(foreground[y[within], x[within]].sum() / max(len(x), 1))


def _missing(case: Case, root: Path) -> list[Finding]:
    # ``discover`` gives a case without image the path where its image should be.
    place = case.image.relative_to(root / "images").with_suffix("").as_posix()
    if not case.image.is_file():
        orphan = case.labels or case.annotations or case.image
        message = f"this file has no image; expected images/{place} with {', '.join(SUFFIXES)}"
        return [
            error_finding("missing_image", orphan, message, "add the image or remove this file")
        ]
    if case.labels is None:
        message = f"this image has no mask; expected masks/{place}.png"
        return [
            error_finding("missing_label", case.image, message, "add the mask or move the image")
        ]
    return []
