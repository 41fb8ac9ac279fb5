"""The common part of the readers whose objects are outlines in text files (COCO, YOLO, labelme).

A format lists its cases (``discover``) and returns the objects of one picture (``objects``). This
class reads the picture, compares its EXIF orientation with the annotations, and draws the objects
into a label map.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from samadapt.data.findings import (
    Finding,
    FindingError,
    error_finding,
    fault,
    warning_finding,
)
from samadapt.data.formats.base import FormatReader
from samadapt.data.formats.shared.annotation_files import is_there
from samadapt.data.formats.shared.exif import UPRIGHT, check_frame
from samadapt.data.formats.shared.instance_masks import OutlinedObject, paint
from samadapt.data.formats.shared.pictures import load_picture, save_plane
from samadapt.data.types import Case, Volume
from samadapt.system.arrays import Array


class ObjectReader(FormatReader):
    """Reads pictures whose objects are outlines in an annotation file."""

    needs: ClassVar[tuple[str, str] | None] = ("pycocotools", "coco")
    default_intensity: ClassVar[str | None] = "rgb"
    annotation_suffixes: ClassVar[tuple[str, ...]] = (".json",)
    numbers_objects: ClassVar[bool] = True

    @abstractmethod
    def objects(self, case: Case, height: int, width: int) -> list[OutlinedObject]:
        """Return the objects of a case.

        Args:
            case: its ``labels`` is the annotation file.
            height: of the picture, in pixels, after its EXIF orientation.
            width: likewise.

        Raises:
            FindingError: the annotations are broken, or do not fit the picture.
        """

    def read_image(self, path: Path) -> Volume:
        """Read a picture without annotations."""
        picture = load_picture(path, self.options.exif)
        return Volume(picture.image, is_color=picture.is_color)

    def declared_size(self, case: Case) -> tuple[int, int] | None:
        """Return (h, w) in pixels that the annotations state; None where they do not."""
        return None

    def sources(self, case: Case) -> Sequence[Path] | None:
        """Return the picture and its annotations."""
        return [path for path in (case.image, case.labels) if path is not None]

    def examine(self, case: Case) -> tuple[Volume | None, list[Finding]]:
        """Read and check the picture and its objects."""
        try:
            if case.labels is None:
                message = "this picture has no annotations"
                raise fault("missing_label", case.image, message, "add them or move the picture")
            if not is_there(case.image):
                message = f"{case.labels} names a picture that is not there"
                raise fault("missing_image", case.image, message, "add the picture")
            picture = load_picture(case.image, self.options.exif)
            height, width = picture.size
            if self.options.exif is None and picture.orientation != UPRIGHT:
                # The outlines may be drawn on the stored or on the turned pixels.
                declared = self.declared_size(case)
                check_frame(case.labels, case.image, picture.stored, picture.orientation, declared)
            objects = self.objects(case, height, width)
        except FindingError as problem:
            return None, [problem.finding]
        image = picture.image
        if image.min() == image.max():
            message = f"all pixels have the value {float(image.min()):g}"
            return None, [error_finding("constant_image", case.image, message, "export it again")]
        # Larger objects are drawn first, so smaller ones may hide them completely.
        labels, instances, hidden = paint(objects, height, width)
        findings = []
        if hidden:
            message = f"{len(hidden)} objects of {case.image.name} are completely covered by "
            message += f"smaller ones: {', '.join(hidden[:5])}"
            fix = "remove them if they are duplicates"
            findings.append(warning_finding("hidden_object", case.labels, message, fix))
        if not labels.any():
            message = f"no object is drawn in {case.image.name}"
            fix = "check that it is the right file"
            findings.append(warning_finding("no_foreground", case.labels, message, fix))
        labels = labels[:, :, None]  # (h, w) to (h, w, d) with one slice
        return Volume(image, labels, is_color=picture.is_color, instances=instances), findings

    def write(self, prediction: Array, volume: Volume, path: Path) -> None:
        """Write class ids (h, w) or (h, w, 1) as PNG."""
        save_plane(prediction, volume, path)
