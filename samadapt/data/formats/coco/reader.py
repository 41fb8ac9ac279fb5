"""COCO JSON: pictures and the outlines of their objects; ``coco/layout.py`` finds the files.

One JSON file has three tables::

    images       {"id", "file_name", "height", "width"}
    categories   {"id", "name"}
    annotations  {"id", "image_id", "category_id", "segmentation", "iscrowd"}

Polygons and run lengths (compressed or not) become a label map of category numbers;
``shared/instance_masks.py`` says how overlapping objects are drawn. Captions, and boxes without an
outline, are not read. Source: cocodataset.org, Data format, Object Detection.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from samadapt.data.findings import FindingError, check_size, error_finding, fault
from samadapt.data.formats.base import Layout, register_reader
from samadapt.data.formats.coco.layout import annotation_files, locate, of_objects, passed_over
from samadapt.data.formats.shared.annotation_files import posix_name, read_json_annotations
from samadapt.data.formats.shared.instance_masks import OutlinedObject, read_segmentation
from samadapt.data.formats.shared.object_reader import ObjectReader
from samadapt.data.types import Case
from samadapt.errors import nearest

_FIX = "correct the file (see cocodataset.org, format of object detection)"


@register_reader("coco")
class CocoReader(ObjectReader):
    """Reads the object annotations of COCO."""

    summary = "COCO JSON (polygons, RLE): images/ + annotations.json or annotations/; extra coco"
    file_keys: ClassVar[tuple[str, ...]] = ("root", "label")

    def discover(self) -> Layout:
        """Read the JSON files; each picture is a case."""
        layout = Layout()
        self._entries: dict[str, list[dict[str, Any]]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._values: dict[int, int] = {}
        root = self.options.root
        try:
            contents = {path: read_json_annotations(path) for path in self._files(root)}
            tables = {path: _tables(path, one) for path, one in of_objects(contents).items()}
            layout.classes = self._read_categories(tables)
        except FindingError as problem:
            layout.findings.append(problem.finding)
            return layout
        if not self.options.label:
            layout.findings += passed_over(list(tables))
        seen: dict[Path, Path] = {}
        for path, table in tables.items():
            self._add_cases(path, table, layout, seen)
        if not layout.cases and all(one.severity == "warning" for one in layout.findings):
            message = "the annotations name no picture"
            layout.findings.append(
                error_finding("no_cases", root or Path(), message, "check data.root")
            )
        return layout

    def declared_size(self, case: Case) -> tuple[int, int] | None:
        """Return (h, w) in pixels from the picture's entry."""
        return self._sizes[case.name]

    def objects(self, case: Case, height: int, width: int) -> list[OutlinedObject]:
        """Return the objects of a picture, after comparing its size with its entry."""
        labels = case.labels or case.image
        declared = self._sizes[case.name]
        if declared != (height, width):
            message = (
                f"it says {case.image.name} has {declared[0]} x {declared[1]} pixels (h x w); "
                f"the picture has {height} x {width}"
            )
            raise fault(
                "shape_mismatch", labels, message, "annotate the picture at its present size"
            )
        found = []
        for entry in self._entries.get(case.name, []):
            shown = f"annotation {entry['id']}"
            try:
                runs = read_segmentation(entry["segmentation"], height, width)
            except ValueError as problem:
                message = f"{shown} of {case.image.name}: {problem}"
                raise fault("bad_segmentation", labels, message, _FIX) from None
            is_crowd = bool(entry.get("iscrowd"))
            found.append(OutlinedObject(self._values[entry["category_id"]], runs, is_crowd, shown))
        return found

    def _files(self, root: Path | None) -> list[Path]:
        if root is None or not root.is_dir():
            reason = "there is no such folder" if root else "no folder is given"
            message = f"expected images/ and annotations.json; {reason}"
            raise fault("missing_folder", root or "data.root", message, "set data.root")
        return annotation_files(root, self.options.label)

    def _read_categories(
        self, tables: Mapping[Path, Mapping[str, list[dict[str, Any]]]]
    ) -> dict[str, tuple[int, ...]]:
        """Return label values by name: the category numbers, or plus one if one of them is 0."""
        names: dict[int, str] = {}
        for path, table in tables.items():
            for entry in table["categories"]:
                number, name = _key(path, "categories", entry, "id", int), entry.get("name")
                if not isinstance(name, str) or not name or number < 0:
                    message = "each category needs a name and an id of at least 0; one lacks them"
                    raise fault("bad_annotations", path, message, _FIX)
                if names.setdefault(number, name) != name:
                    message = f"category {number} is {name!r} here and {names[number]!r} elsewhere"
                    raise fault("category_conflict", path, message, "number them alike")
        # Some programs number categories from 0.
        shift = 1 if 0 in names else 0  # in a label map 0 is background
        self._values = {number: number + shift for number in names}
        classes: dict[str, tuple[int, ...]] = {}
        for number, name in sorted(names.items()):
            classes[name] = (*classes.get(name, ()), number + shift)
        return classes

    def _add_cases(
        self,
        path: Path,
        table: Mapping[str, list[dict[str, Any]]],
        layout: Layout,
        seen: dict[Path, Path],
    ) -> None:
        """Add the pictures and objects of one JSON file; each wrong entry becomes a finding."""
        names: dict[int, str] = {}
        refused = []
        for entry in table["images"]:
            try:
                number = _key(path, "images", entry, "id", int)
                image = self._locate(path, entry)
                if image in seen or number in names:
                    message = f"the picture {image.name} (id {number}) is listed twice"
                    message += f", also in {seen[image]}" if image in seen else ""
                    raise fault("duplicate_case", path, message, "list each picture once")
                size = tuple(_key(path, "images", entry, side, int) for side in ("height", "width"))
                check_size(path, size)
            except FindingError as problem:
                layout.findings.append(problem.finding)
                refused.append(entry.get("id"))
                continue
            seen[image] = path
            relative = PurePosixPath(posix_name(str(entry["file_name"])))
            name = "_".join(relative.with_suffix("").parts)
            # Two paths may give one name: a/b_c.jpg and a_b/c.jpg.
            while name in self._sizes:
                name += f"_{number}"
            names[number] = name
            self._sizes[name] = (size[0], size[1])
            layout.cases.append(Case(name, image, path))
        # Annotations of refused pictures need no finding of their own.
        without = {number for number in refused if type(number) is int} - set(names)
        for entry in table["annotations"]:
            if type(entry.get("image_id")) is int and entry["image_id"] in without:
                continue  # its picture was refused, with a finding
            try:
                self._add_object(path, entry, names)
            except FindingError as problem:
                layout.findings.append(problem.finding)
                owners = _owners(entry.get("image_id"), names)
                layout.ambiguous |= {c.image for c in layout.cases if c.name in owners}

    def _add_object(self, path: Path, entry: dict[str, Any], names: Mapping[int, str]) -> None:
        number = _key(path, "annotations", entry, "id", int)
        image = _key(path, "annotations", entry, "image_id", int)
        category = _key(path, "annotations", entry, "category_id", int)
        if image not in names or category not in self._values:
            kind, value = ("category_id", category) if image in names else ("image_id", image)
            message = f"annotation {number} has {kind} {value}, which the file does not list"
            raise fault("dangling_annotation", path, message, _FIX)
        if "segmentation" not in entry:
            message = f"annotation {number} has no segmentation"
            raise fault("bad_annotations", path, message, "a box alone cannot be used; " + _FIX)
        kept = ("id", "category_id", "segmentation", "iscrowd")
        self._entries.setdefault(names[image], []).append({k: entry[k] for k in kept if k in entry})

    def _locate(self, path: Path, entry: Mapping[str, Any]) -> Path:
        """Return the picture of an entry; if there is none, the first path where it could be."""
        name = entry.get("file_name")
        if not isinstance(name, str) or not PurePosixPath(posix_name(name)).name:
            raise fault(
                "bad_annotations", path, f"picture {entry.get('id')} has no file_name", _FIX
            )
        root = self.options.root or path.parent
        return locate(name, path, root, f"picture {entry.get('id')}")


def _tables(path: Path, content: Any) -> dict[str, list[dict[str, Any]]]:
    if not isinstance(content, dict):
        message = f"expected an object; got {type(content).__name__}"
        raise fault("bad_annotations", path, message, _FIX)
    tables = {}
    for key in ("images", "annotations", "categories"):
        table = content.get(key)
        if not isinstance(table, list) or not all(isinstance(entry, dict) for entry in table):
            found = "it is missing" if key not in content else f"got {type(table).__name__}"
            found += nearest(key, content) if key not in content else ""
            message = f"expected {key}, a list of objects; {found}"
            raise fault("bad_annotations", path, message, _FIX)
        tables[key] = table
    return tables


def _owners(number: Any, names: Mapping[int, str]) -> set[str]:
    """Return the cases that a broken annotation may belong to.

    This is the picture that it names, or any picture of the file if that is unclear.
    """
    if isinstance(number, int) and not isinstance(number, bool):
        return {names[number]} if number in names else set()
    # Some programs write numbers as text.
    text = str(number)
    if text.isdecimal() and int(text) in names:
        return {names[int(text)]}
    return set(names.values())


def _key(path: Path, table: str, entry: Mapping[str, Any], key: str, kind: type) -> Any:
    value = entry.get(key)
    if type(value) is not kind:
        found = type(value).__name__ if key in entry else "nothing"
        message = f"{table}: expected {key} as {kind.__name__}; an entry has {found}"
        raise fault("bad_annotations", path, message, _FIX)
    return value
