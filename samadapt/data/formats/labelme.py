"""labelme: one JSON file for each picture, with polygons, rectangles, circles and masks.

The JSON file is beside its picture or elsewhere below ``data.root``. Its key ``imagePath`` names
the picture; otherwise a picture with the same stem is searched beside the JSON file and in
``images/``. The picture that labelme embeds (``imageData``) is not read.

The labels in alphabetical order are the classes. ``_background_`` is background, and ``__ignore__``
has no loss and no score, as in labelme's own converters (labelme2voc.py). Shapes with the same
label and the same ``group_id`` are one object. Lines and points have no area; a warning lists them.
``shared/instance_masks.py`` says how overlapping objects are drawn.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, ClassVar

import numpy as np

from samadapt.data.findings import Finding, FindingError, error_finding, fault, warning_finding
from samadapt.data.formats.base import Layout, register_reader
from samadapt.data.formats.shared.annotation_files import (
    files_below,
    is_there,
    posix_name,
    read_json_annotations,
)
from samadapt.data.formats.shared.instance_masks import (
    OutlinedObject,
    decode_runs,
    encode_runs,
    read_segmentation,
)
from samadapt.data.formats.shared.object_reader import ObjectReader
from samadapt.data.formats.shared.stored_picture import SUFFIXES
from samadapt.data.types import Case, Volume
from samadapt.system.arrays import Array
from samadapt.system.limits import lies_inside

BACKGROUND, IGNORE = "_background_", "__ignore__"
_Points = list[tuple[float, float]]
_AREAS = ("polygon", "rectangle", "circle", "mask")
"""Shape types of labelme that enclose an area."""
_NO_AREAS = ("line", "linestrip", "point", "points")
"""Shape types that do not."""
_FIX = "open and save the file in labelme"


@register_reader("labelme")
class LabelmeReader(ObjectReader):
    """Reads labelme's annotations."""

    summary: ClassVar[str] = "labelme: a JSON with shapes beside each picture; extra coco"

    def discover(self) -> Layout:
        """List one case for each JSON file, and one for each picture without a JSON file."""
        layout = Layout()
        self._notes: dict[str, dict[str, Any]] = {}
        root = self.options.root
        if root is None or not root.is_dir():
            found = "there is no such folder" if root else "no folder is given"
            message = f"expected pictures and their JSON files; {found}"
            file = root or Path("data.root")
            layout.findings.append(error_finding("missing_folder", file, message, "set data.root"))
            return layout
        for path in files_below(root, (".json",)):
            self._add_case(path, root, layout)
        self._add_pictures_without(layout)
        self._name_classes(layout)
        if not layout.cases and not layout.findings:
            message = "expected JSON files of labelme in it; there is none"
            layout.findings.append(error_finding("no_cases", root, message, "check data.root"))
        return layout

    def declared_size(self, case: Case) -> tuple[int, int] | None:
        """Return ``imageHeight`` and ``imageWidth`` in pixels, if the file has them."""
        note = self._notes[case.name]
        height, width = note.get("imageHeight"), note.get("imageWidth")
        if isinstance(height, int) and isinstance(width, int):
            return height, width
        return None

    def objects(self, case: Case, height: int, width: int) -> list[OutlinedObject]:
        """Return the objects of a picture, after comparing its size with the annotations."""
        path, note = case.labels or case.image, self._notes[case.name]
        declared = note.get("imageHeight"), note.get("imageWidth")
        if None not in declared and declared != (height, width):
            message = f"it was drawn on a picture of another size; {case.image.name} has "
            message += f"{height} x {width} pixels (h x w)"
            raise fault("shape_mismatch", path, message, "annotate the picture at its present size")
        # Shapes of one group are the parts of one object.
        groups: dict[Any, list[tuple[int, Array]]] = {}
        for index, shape in enumerate(note["shapes"]):
            try:
                drawn = _drawn(shape, height, width)
            except ValueError as problem:
                message = f"shapes[{index}]: {problem}"
                raise fault("bad_segmentation", path, message, _FIX) from None
            if drawn is not None:
                groups.setdefault(_group(shape, index), []).append((index, drawn))
        found = []
        for (label, _), parts in groups.items():
            runs = encode_runs(np.logical_or.reduce([drawn for _, drawn in parts]))
            found.append(OutlinedObject(self._values[label], runs, False, f"shapes[{parts[0][0]}]"))
        return found

    def examine(self, case: Case) -> tuple[Volume | None, list[Finding]]:
        """Read and check the picture and its objects; shapes without an area give a warning."""
        volume, findings = super().examine(case)
        shapes = self._notes.get(case.name, {}).get("shapes", [])
        bare = [s for s in shapes if isinstance(s, dict) and s.get("shape_type") in _NO_AREAS]
        if bare:
            message = f"{len(bare)} lines or points have no area and are not read"
            fix = "draw them as polygons where they stand for objects"
            findings.append(warning_finding("not_an_area", case.labels or case.image, message, fix))
        return volume, findings

    def _add_case(self, path: Path, root: Path, layout: Layout) -> None:
        name = "_".join(path.relative_to(root).with_suffix("").parts)
        try:
            content = read_json_annotations(path)
            if not isinstance(content, dict) or not {"shapes", "imagePath"} <= set(content):
                message = "is not a labelme file: expected the keys shapes and imagePath"
                finding = warning_finding("other_file", path, message, "remove it")
                layout.findings.append(finding)
                return
            shapes = content["shapes"]
            if not isinstance(shapes, list) or not all(
                isinstance(shape, dict) and isinstance(shape.get("label"), str) and shape["label"]
                for shape in shapes
            ):
                message = "expected shapes, a list of objects with a label"
                raise fault("bad_annotations", path, message, _FIX)
            image = _picture(content["imagePath"], path, root)
            if image in {case.image for case in layout.cases}:
                message = f"the picture {image.name} has two JSON files"
                raise fault("duplicate_case", path, message, "keep one of the two")
        except FindingError as problem:
            layout.findings.append(problem.finding)
            image = _picture(None, path, root)
            layout.ambiguous.add(image)
        else:
            kept = ("shapes", "imageHeight", "imageWidth")  # imageData has megabytes
            self._notes[name] = {key: content.get(key) for key in kept}
        layout.cases.append(Case(name, image, path))

    def _add_pictures_without(self, layout: Layout) -> None:
        """List the pictures without a JSON file in the folders of annotated pictures."""
        known = {case.image for case in layout.cases}
        names = {case.name for case in layout.cases}
        for folder in sorted({path.parent for path in known if is_there(path)}):
            for path in sorted(folder.iterdir()):
                hidden = path.name.startswith(".") or path.suffix.lower() not in SUFFIXES
                if hidden or path in known:
                    continue
                relative = path.relative_to(self.options.root or folder)
                name = "_".join(relative.with_suffix("").parts)
                layout.cases.append(Case(path.name if name in names else name, path))

    def _name_classes(self, layout: Layout) -> None:
        labels = {shape["label"] for note in self._notes.values() for shape in note["shapes"]}
        # Sorted, so the numbers do not depend on the order of files.
        names = sorted(labels - {BACKGROUND, IGNORE})
        self._values = {name: value for value, name in enumerate(names, start=1)}
        layout.classes = {name: (value,) for name, value in self._values.items()} or None
        self._values[BACKGROUND] = 0
        if IGNORE in labels:
            self._values[IGNORE] = len(names) + 1
            layout.ignored = (len(names) + 1,)


def _group(shape: Mapping[str, Any], index: int) -> tuple[str, Any]:
    """Return a key that the shapes of one object share: label and group, or the shape's number."""
    group = shape.get("group_id")
    return shape["label"], ("shape", index) if group is None else ("group", str(group))


def _picture(named: Any, path: Path, root: Path) -> Path:
    """Return the picture of a JSON file; if there is none, the first path where it could be.

    Args:
        named: the value of ``imagePath``.
        path: the JSON file.
        root: the data set's folder; paths outside are not used.
    """
    places = []
    if isinstance(named, str) and named:
        relative = posix_name(named)
        if lies_inside(named, path.parent, root):
            places.append(path.parent / relative)
        name = PureWindowsPath(named).name  # the path may be of another machine
        places += [path.parent / name, root / "images" / name]
    folders = [path.parent, path.parent.parent / "images", root / "images"]
    stems = [folder / f"{path.stem}{suffix}" for folder in folders for suffix in SUFFIXES]
    found = next((place for place in [*places, *stems] if is_there(place)), None)
    if found is not None:
        return Path(os.path.normpath(found))
    return places[0] if places else path.with_suffix(SUFFIXES[0])


def _drawn(shape: Mapping[str, Any], height: int, width: int) -> Array | None:
    """Return the area of a shape, (h, w) bool; None for lines and points.

    Raises:
        ValueError: the shape cannot be drawn; the message says why.
    """
    kind = shape.get("shape_type") or "polygon"  # the first versions had only polygons
    if kind in _NO_AREAS:
        return None
    if kind not in _AREAS:
        raise ValueError(f"expected shape_type as one of {', '.join((*_AREAS, *_NO_AREAS))}")
    points = _points(shape.get("points"))
    # Each kind becomes a polygon, except masks, which are pixels already.
    if kind == "mask":
        return _pasted(shape.get("mask"), points, height, width)
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    elif kind == "circle":
        points = _circle(points, height, width)
    flat = [value for point in points for value in point]
    return decode_runs(read_segmentation([flat], height, width), height, width)


def _points(value: Any) -> _Points:
    usable = isinstance(value, list) and all(
        isinstance(point, list)
        and len(point) == 2
        and all(type(v) in (int, float) and math.isfinite(v) for v in point)
        for point in value
    )
    if not usable or len(value) < 2:
        raise ValueError("expected points, a list of at least two [x, y]")
    return [(float(x), float(y)) for x, y in value]


def _circle(points: _Points, height: int, width: int) -> _Points:
    """Return a polygon for a circle, clipped to the picture.

    Args:
        points: the centre, and a point on the circle, (x, y) in pixels.
        height: of the picture, in pixels.
        width: likewise.
    """
    if len(points) != 2:
        raise ValueError("a circle needs two points, its centre and one on it")
    (x, y), (on_x, on_y) = points
    radius = math.hypot(on_x - x, on_y - y)
    if radius > 4 * max(height, width):
        raise ValueError("a circle is much larger than the picture")
    # About one corner for each pixel of the circumference.
    angles = np.linspace(0, 2 * math.pi, int(np.clip(2 * math.pi * radius, 32, 720)), False)
    xs = np.clip(x + radius * np.cos(angles), 0, width)
    ys = np.clip(y + radius * np.sin(angles), 0, height)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def _pasted(text: Any, points: _Points, height: int, width: int) -> Array:
    """Return the area of a mask, (h, w) bool.

    Args:
        text: a PNG in base64.
        points: upper left and lower right pixel of the box that the PNG fills, both included.
        height: of the picture, in pixels.
        width: likewise.

    Raises:
        ValueError: it is not such a PNG, or the box is outside the picture.
    """
    from PIL import Image

    if not isinstance(text, str) or len(points) != 2:
        raise ValueError("a mask needs mask, a PNG in base64, and two points")
    # Both corners are inside the box, so its sides are one longer than the difference.
    (x0, y0), (x1, y1) = ((round(x), round(y)) for x, y in points)
    sides = (x1 - x0 + 1, y1 - y0 + 1)
    if not (0 <= x0 <= x1 < width and 0 <= y0 <= y1 < height):
        raise ValueError(f"the box of a mask is outside the picture of {width} x {height}")
    try:
        data = io.BytesIO(base64.b64decode(text, validate=True))
    except ValueError:
        raise ValueError("a mask is not base64 text") from None
    try:
        with Image.open(data, formats=["PNG"]) as png:
            if png.size != sides:  # only the header has been read by now
                raise ValueError(f"a mask has {png.size} pixels (w, h); its box has {sides}")
            inside = np.asarray(png.convert("L")) > 0
    except (OSError, SyntaxError, Image.DecompressionBombError) as problem:
        raise ValueError(f"a mask is not a PNG ({type(problem).__name__})") from None
    mask = np.zeros((height, width), dtype=bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = inside
    return mask
