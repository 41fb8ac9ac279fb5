"""YOLO segmentation: ``images/`` and ``labels/*.txt`` with polygons, and ``data.yaml``.

Each line is one object, ``class x1 y1 x2 y2 x3 y3 ...``, in fractions of the picture's width and
height. The label file of a picture has ``labels`` in place of ``images`` in its path; if no folder
is called ``images``, it is beside the picture::

    images/train/a.jpg    train/images/a.jpg    a.jpg
    labels/train/a.txt    train/labels/a.txt    a.txt

An empty label file means that the picture shows no object. By the format a missing file means the
same, but a warning reports it. All parts (train, val) are read as one data set, which
``data.val_every`` and ``data.fold`` divide. The class names are those of ``data.yaml`` or
``classes.txt``; without these they are ``class_0``, ``class_1`` and so on.

Source: docs.ultralytics.com, Instance Segmentation Datasets.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

from samadapt.data.findings import FindingError, error_finding, fault, warning_finding
from samadapt.data.formats.base import Layout, register_reader
from samadapt.data.formats.shared.annotation_files import files_below
from samadapt.data.formats.shared.instance_masks import OutlinedObject, read_segmentation
from samadapt.data.formats.shared.object_reader import ObjectReader
from samadapt.data.formats.shared.stored_picture import SUFFIXES
from samadapt.data.types import Case
from samadapt.errors import ConfigError
from samadapt.system.plain_yaml import read_plain_yaml

_FIX = "export it again as YOLO segmentation: class x1 y1 x2 y2 x3 y3 ..., fractions of 1"
_MAX_YAML = 1 << 20
"""Largest data.yaml, in bytes: more is not a list of names."""
_MAX_TEXT = 64 << 20
"""Largest label file, in bytes: about a million points."""
_MAX_CLASSES = 30_000
"""Class ids are stored in 16 bits, so 32,767 is the most."""
_SLACK = 0.01
"""Coordinates may be outside 0..1 by this much, from rounding in the exporting program. They are
clipped."""


@register_reader("yolo")
class YoloReader(ObjectReader):
    """Reads YOLO's polygons."""

    annotation_suffixes: ClassVar[tuple[str, ...]] = (".txt",)
    summary: ClassVar[str] = (
        "YOLO segmentation: images/ + labels/*.txt with polygons, data.yaml; extra coco"
    )

    def discover(self) -> Layout:
        """List the pictures and their label files."""
        layout = Layout()
        root = self.options.root
        if root is None or not root.is_dir():
            found = "there is no such folder" if root else "no folder is given"
            message = f"expected images/ and labels/; {found}"
            file = root or Path("data.root")
            layout.findings.append(error_finding("missing_folder", file, message, "set data.root"))
            return layout
        try:
            self._list(root, layout)
            names = _names(root)
            shown = self._found_names(layout) if names is None else names
        except FindingError as problem:
            layout.cases, layout.findings = [], [*layout.findings, problem.finding]
            return layout
        classes: dict[str, tuple[int, ...]] = {}
        for index, name in shown.items():  # in a label map 0 is background
            classes[name] = (*classes.get(name, ()), index + 1)
        layout.classes = classes or None
        self._known = set(shown)
        return layout

    def objects(self, case: Case, height: int, width: int) -> list[OutlinedObject]:
        """Return the objects of a picture."""
        path = case.labels or case.image
        found = []
        for number, line in _lines(path):
            try:
                index, fractions = _parsed(line)
                if index not in self._known:
                    raise ValueError(f"class {index} is not among the names of the classes")
                # x and y alternate: even places are fractions of the width, odd ones of the height.
                scaled = [
                    min(max(value, 0.0), 1.0) * (height if odd % 2 else width)
                    for odd, value in enumerate(fractions)
                ]
                runs = read_segmentation([scaled], height, width, scaled=True)
            except ValueError as problem:
                message = f"line {number}: {problem}"
                raise fault("bad_segmentation", path, message, _FIX) from None
            found.append(OutlinedObject(index + 1, runs, False, f"line {number}"))
        return found

    def _list(self, root: Path, layout: Layout) -> None:
        pictures = files_below(root, SUFFIXES)
        inside = [path for path in pictures if "images" in path.relative_to(root).parts[:-1]]
        bare: dict[Path, int] = {}
        for path in inside or pictures:
            labels = _labels_of(path, root)
            if not labels.parent.is_dir():  # for example images/test
                bare[path.parent] = bare.get(path.parent, 0) + 1
                continue
            if not labels.is_file():
                message = "this picture has no label file: it is read as a picture without objects"
                fix = f"add {labels.name} if it shows an object"
                finding = warning_finding("no_label_file", path, message, fix)
                layout.findings.append(finding)
            parts = [part for part in path.relative_to(root).parts if part != "images"]
            name = "_".join(Path(*parts).with_suffix("").parts)
            layout.cases.append(Case(name, path, labels))
        for folder, count in bare.items():
            message = f"its {count} pictures have no folder of labels, so they are not read"
            finding = warning_finding("other_file", folder, message, "add the labels")
            layout.findings.append(finding)

    def _found_names(self, layout: Layout) -> dict[int, str]:
        """Return names ``class_0``, ... for the class numbers in the label files."""
        found: set[int] = set()
        for case in layout.cases:
            for _, line in _lines(case.labels or case.image):
                first = line.split(maxsplit=1)[0]
                if first.isdecimal() and int(first) < _MAX_CLASSES:
                    found.add(int(first))
        return {index: f"class_{index}" for index in sorted(found)}


def _labels_of(path: Path, root: Path) -> Path:
    """Return the label file of a picture: ``labels`` replaces the last ``images`` in its path."""
    parts = list(path.relative_to(root).with_suffix(".txt").parts)
    # The last folder called images counts, as in the loader of Ultralytics.
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return root.joinpath(*parts)


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines that are not empty, with their numbers from 1; none for a missing file.

    Raises:
        FindingError: it is not text, or it is too large.
    """
    if not path.is_file():
        return []
    if path.stat().st_size > _MAX_TEXT:
        raise fault("too_large", path, f"it has more than {_MAX_TEXT:,} bytes", "check the file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as problem:
        message = f"cannot be read as text ({type(problem).__name__})"
        raise fault("bad_annotations", path, message, _FIX) from None
    numbered = enumerate(text.splitlines(), start=1)
    return [(number, line.strip()) for number, line in numbered if line.strip()]


def _parsed(line: str) -> tuple[int, list[float]]:
    """Return the class and the coordinates of a line.

    Raises:
        ValueError: it is not a polygon; the message says why.
    """
    first, *rest = line.split()
    if not first.isdecimal():
        raise ValueError("expected a class number from 0 at its beginning")
    if len(rest) == 4:
        raise ValueError("it is a box (four numbers); only polygons are read")
    try:
        fractions = [float(value) for value in rest]
    except ValueError:
        raise ValueError("expected numbers after the class") from None
    if len(fractions) < 6 or len(fractions) % 2:
        raise ValueError(f"expected at least three points, x and y each; got {len(rest)} numbers")
    if not all(math.isfinite(v) and -_SLACK <= v <= 1 + _SLACK for v in fractions):
        raise ValueError("coordinates must be fractions of 0..1 of the picture's sides")
    return int(first), fractions


def _names(root: Path) -> dict[int, str] | None:
    """Return the class names by number; None if no file names them.

    Raises:
        FindingError: the file that should name them cannot be used.
    """
    listed = sorted(path for path in root.iterdir() if path.suffix in (".yaml", ".yml"))
    # data.yaml is the usual name; other YAML files are tried after it.
    listed.sort(key=lambda path: path.stem != "data")
    unreadable = None
    for path in listed:
        try:
            content = _yaml(path)
        except FindingError as problem:  # it may belong to another program
            unreadable = unreadable or problem
            continue
        if isinstance(content, dict) and "names" in content:
            return _checked(path, content["names"])
    if unreadable is not None:
        raise unreadable
    for path in (root / "classes.txt", root / "labels" / "classes.txt"):
        if path.is_file():
            return _checked(path, [line for _, line in _lines(path)])
    return None


def _yaml(path: Path) -> Any:
    try:
        return read_plain_yaml(path, _MAX_YAML, 4 * _MAX_CLASSES)
    except ConfigError as problem:
        reason = str(problem).removeprefix(f"{path}: ")
        message = f"cannot be read as YAML: {reason}"
        raise fault("bad_annotations", path, message, "correct the file") from None


def _checked(path: Path, names: Any) -> dict[int, str]:
    known = dict(enumerate(names)) if isinstance(names, list) else names
    usable = isinstance(known, dict) and all(
        type(index) is int and 0 <= index < _MAX_CLASSES and isinstance(name, str) and name
        for index, name in known.items()
    )
    if not usable or not known:
        message = "expected names, a list of class names or {0: name, 1: name}"
        raise fault("bad_annotations", path, message, "correct the file")
    return dict(known)
