"""SA-1B: ``sa_N.jpg`` beside ``sa_N.json`` with run-length masks; one class, ``object``.

The masks of SA-1B overlap, since a part of an object is a mask of its own;
``shared/instance_masks.py`` says how they are drawn. Source: README of
facebookresearch/segment-anything, section Dataset. Each JSON has ``image`` (with ``height`` and
``width``) and ``annotations``, each with a ``segmentation`` of COCO run lengths.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samadapt.data.findings import error_finding, fault
from samadapt.data.formats.base import Layout, register_reader
from samadapt.data.formats.shared.annotation_files import read_json_annotations
from samadapt.data.formats.shared.instance_masks import OutlinedObject, read_segmentation
from samadapt.data.formats.shared.object_reader import ObjectReader
from samadapt.data.types import Case

_PICTURES = (".jpg", ".jpeg", ".png")
_FIX = "download the archive again"


@register_reader("sa1b")
class Sa1bReader(ObjectReader):
    """Reads SA-1B's pictures and masks."""

    summary = "SA-1B: sa_N.jpg beside sa_N.json with RLE masks, one class; extra coco"

    def discover(self) -> Layout:
        """List the pictures and JSON files of the folder by stem."""
        root, layout = self.options.root, Layout(classes={"object": (1,)})
        if root is None or not root.is_dir():
            found = "there is no such folder" if root else "no folder is given"
            message = f"expected sa_N.jpg and sa_N.json; {found}"
            file = root or Path("data.root")
            layout.findings.append(error_finding("missing_folder", file, message, "set data.root"))
            return layout
        files = sorted(path for path in root.iterdir() if not path.name.startswith("."))
        images = {path.stem: path for path in files if path.suffix.lower() in _PICTURES}
        notes = {path.stem: path for path in files if path.suffix.lower() == ".json"}
        for name in sorted({*images, *notes}):
            layout.cases.append(Case(name, images.get(name, root / f"{name}.jpg"), notes.get(name)))
        if not layout.cases:
            message = "expected sa_N.jpg and sa_N.json in it; there is none"
            layout.findings.append(error_finding("no_cases", root, message, "check data.root"))
        return layout

    def declared_size(self, case: Case) -> tuple[int, int] | None:
        """Return (h, w) in pixels from the key ``image``."""
        content = read_json_annotations(case.labels or case.image)
        image = content.get("image") if isinstance(content, dict) else None
        size = (image.get("height"), image.get("width")) if isinstance(image, dict) else ()
        sides = [side for side in size if isinstance(side, int)]
        return (sides[0], sides[1]) if len(sides) == 2 else None

    def objects(self, case: Case, height: int, width: int) -> list[OutlinedObject]:
        """Return the objects of a picture, after comparing its size with the annotations."""
        path = case.labels or case.image
        content = read_json_annotations(path)
        image = content.get("image") if isinstance(content, dict) else None
        entries = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(image, dict) or not isinstance(entries, list):
            message = "expected the keys image (an object) and annotations (a list)"
            raise fault("bad_annotations", path, message, _FIX)
        declared = image.get("height"), image.get("width")
        if declared != (height, width):
            message = f"it says (height, width) = {declared}; {case.image.name} has "
            raise fault("shape_mismatch", path, f"{message}{(height, width)}", _FIX)
        return [_object(path, index, entry, height, width) for index, entry in enumerate(entries)]


def _object(path: Path, index: int, entry: Any, height: int, width: int) -> OutlinedObject:
    shown = f"annotations[{index}]"
    try:
        if not isinstance(entry, dict) or "segmentation" not in entry:
            raise ValueError("has no segmentation")
        runs = read_segmentation(entry["segmentation"], height, width)
    except ValueError as problem:
        raise fault("bad_segmentation", path, f"{shown}: {problem}", _FIX) from None
    # SA-1B has no classes: every object has the label value 1.
    return OutlinedObject(1, runs, False, shown)
