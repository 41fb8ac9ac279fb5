"""A folder of pictures: ``images/``, ``masks/`` and, where there are any, ``annotations/``.

PNG, JPEG and TIFF; image, mask and annotation have the same stem, ``_mask`` after the mask's is
allowed. A mask is PNG or TIFF (JPEG alters values) and holds a class number a pixel; palette
images keep their indices. Classes are those of the card or of ``data.classes={name: value}``;
without either each value found is a class, so a mask of 0 and 255 has one class, ``foreground``.
The schema of ``annotations/<stem>.json`` is in ``annotations.py``; where such a file exists, its
boxes and points are the prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from samadapt.data.annotations import read_annotation
from samadapt.data.pictures import SUFFIXES, load_mask, load_picture, save_plane
from samadapt.data.reader import Layout, Reader, register_reader
from samadapt.data.tiff import is_stack
from samadapt.data.types import Array, Case, Finding, FindingError, Volume


@register_reader("folder", "images")
class FolderReader(Reader):
    """Reads pictures and masks."""

    summary = "pictures: images/ + masks/ (+ annotations/), PNG, JPEG or TIFF, pixel value = class"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    default_intensity = "rgb"

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether it is a picture; a TIFF stack goes to the reader of stacks."""
        return super().accepts(path) and not is_stack(path)

    def discover(self) -> Layout:
        """List the pictures by stem."""
        layout = Layout()
        root = self.options.root
        if root is None or not (root / "images").is_dir():
            reason = "expected a folder images/ in it, and masks/ beside that"
            file, fix = str(root or "data.root"), "set data.root to the folder that holds images/"
            layout.findings.append(Finding("missing_folder", "error", file, reason, fix))
            return layout
        images = _files(root / "images", SUFFIXES, layout)
        masks = _files(root / "masks", SUFFIXES, layout, images)
        notes = _files(root / "annotations", (".json",), layout)
        for name in sorted({*images, *masks, *notes}):
            expected = root / "images" / f"{name}.png"
            case = Case(name, images.get(name, expected), masks.get(name), notes.get(name))
            layout.cases.append(case)
        if not layout.cases and not layout.findings:
            message, fix = f"no {', '.join(SUFFIXES)} file in it", "check data.root"
            folder = str(root / "images")
            layout.findings.append(Finding("no_cases", "error", folder, message, fix))
        return layout

    def read_image(self, path: Path) -> Volume:
        """Read a picture without mask."""
        image, is_color = load_picture(path)
        return Volume(image, is_color=is_color)

    def examine(self, case: Case) -> tuple[Volume | None, list[Finding]]:
        """Read and check picture, mask and annotations."""
        findings = _missing(case)
        if findings:
            return None, findings
        volume = mask = annotation = None
        try:
            volume = self.read_image(case.image)
            if volume.image.min() == volume.image.max():
                message = f"all pixels have the value {float(volume.image.min()):g}"
                findings.append(_error("constant_image", case.image, message, "export it again"))
        except FindingError as error:
            findings.append(error.finding)
        try:
            mask = load_mask(case.labels or case.image)
        except FindingError as error:
            findings.append(error.finding)
        if volume is not None and case.annotations is not None:
            try:
                annotation = read_annotation(case.annotations, *volume.shape[:2])
            except FindingError as error:
                findings.append(error.finding)
        if volume is not None and mask is not None:
            findings += _compare(case, volume, mask)
        if volume is None or mask is None or any(f.severity == "error" for f in findings):
            return None, findings
        labels = mask[:, :, None]
        read = Volume(volume.image, labels, is_color=volume.is_color, annotation=annotation)
        return read, findings

    def write(self, prediction: Array, volume: Volume, path: Path) -> None:
        """Write class ids (h, w) or (h, w, 1) as PNG."""
        save_plane(prediction, volume, path)


def _files(
    folder: Path, suffixes: tuple[str, ...], layout: Layout, images: dict[str, Path] | None = None
) -> dict[str, Path]:
    """List files by stem; given ``images``, a ``_mask`` that no image bears is cut off."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith("."):
            continue
        if path.is_dir() or path.suffix.lower() not in suffixes:
            message = f"expected {', '.join(suffixes)} here; this is not read"
            finding = Finding("other_file", "warning", str(path), message, "remove or convert it")
            layout.findings.append(finding)
            continue
        stem = path.stem
        if images is not None and stem not in images:
            stem = stem.removesuffix("_mask")
        if stem in found:
            message = f"belongs to the same name as {found[stem].name}"
            layout.findings.append(_error("duplicate_case", path, message, "keep one of the two"))
            layout.ambiguous |= {path, found[stem]}
            continue
        found[stem] = path
    return found


def _missing(case: Case) -> list[Finding]:
    if not case.image.is_file():
        orphan = case.labels or case.annotations or case.image
        message = f"this file has no image; expected images/{case.name} with {', '.join(SUFFIXES)}"
        return [_error("missing_image", orphan, message, "add the image or remove this file")]
    if case.labels is None:
        message = f"this image has no mask; expected masks/{case.name}.png"
        return [_error("missing_label", case.image, message, "add the mask or move the image")]
    return []


def _compare(case: Case, volume: Volume, mask: Array) -> list[Finding]:
    label = case.labels or case.image
    if mask.shape != volume.shape[:2]:
        message = (
            f"its shape {mask.shape} differs from {volume.shape[:2]} of the image {case.image}"
        )
        return [_error("shape_mismatch", label, message, "export image and mask at the same size")]
    if not mask.any():
        message = "the mask is empty: no pixel differs from 0"
        fix = "check that it is the right file"
        return [Finding("no_foreground", "warning", str(label), message, fix)]
    return []


def _error(code: str, file: Path, message: str, fix: str) -> Finding:
    return Finding(code, "error", str(file), message, fix)
