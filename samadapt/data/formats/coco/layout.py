"""Which JSON files of a COCO folder hold the objects, and where their pictures lie.

Layouts, in the order in which they are looked for:

- the file that ``data.label`` names;
- ``annotations.json`` with ``images/``;
- ``annotations/*.json`` with ``images/``, ``train2017/``, ... or ``images/train2017/``, as COCO
  itself
  is published. If there are ``instances_*.json`` files, only these are used;
- ``train/_annotations.coco.json``, ... beside the pictures, as Roboflow exports them;
- JSON files in the root itself, such as ``result.json`` of Label Studio.

Captions, keypoints, panoptic files and lists of test pictures are skipped if other files remain,
because they describe the same pictures again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from samadapt.data.findings import Finding, fault, warning_finding
from samadapt.data.formats.shared.annotation_files import is_there, posix_name
from samadapt.system.limits import lies_inside

_OTHER = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
"""How the names of the files begin that COCO publishes beside ``instances_*.json``."""
_EXPECTED = "annotations.json, annotations/*.json or */_annotations.coco.json"


def annotation_files(root: Path, label: str | None) -> list[Path]:
    """Return the JSON files that may contain the objects.

    Args:
        root: the data set's folder.
        label: ``data.label``, a name or a pattern relative to the root; None: see the module.

    Raises:
        FindingError: there is none.
    """
    if label:
        return sorted(root.glob(label)) if "*" in label else [root / label]
    if (root / "annotations.json").is_file():
        return [root / "annotations.json"]
    patterns = ("annotations/*.json", "*/_annotations.coco.json", "*.json")
    for pattern in patterns:
        found = [path for path in sorted(root.glob(pattern)) if not path.name.startswith(".")]
        if found:
            instances = [path for path in found if path.name.startswith("instances_")]
            return instances or found
    message = f"expected {_EXPECTED} in it"
    raise fault("missing_label", root, message, "or name the file with data.label=FILE")


def passed_over(taken: list[Path]) -> list[Finding]:
    """Return a warning that names the JSON files beside those that are used."""
    folders = sorted({path.parent for path in taken})
    others = [
        path.name
        for folder in folders
        for path in sorted(folder.glob("*.json"))
        if path not in taken and not path.name.startswith(".")
    ]
    if not others:
        return []
    names = ", ".join(path.name for path in taken[:5])
    message = f"not read: {', '.join(others[:8])}; the objects are read from {names}"
    fix = "if another file is the right one, name it with data.label=FILE"
    return [warning_finding("other_file", folders[0], message, fix)]


def kind_of(path: Path, content: Any) -> str:
    """Return ``"objects"``, or what a file contains instead (``"captions"``, ...).

    Args:
        path: COCO's own files are recognised by their names.
        content: the parsed JSON, of any type.
    """
    if not isinstance(content, dict):
        return "objects"  # the error is reported when it is read
    annotations, categories = content.get("annotations"), content.get("categories")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    keys = set(first) if isinstance(first, dict) else set()
    if "caption" in keys or path.name.startswith("captions_"):
        return "captions"
    if "segments_info" in keys:
        return "panoptic segments"
    named = categories if isinstance(categories, list) else []
    if "keypoints" in keys or any(isinstance(c, dict) and "keypoints" in c for c in named):
        return "keypoints"
    if "annotations" not in content and "images" in content:
        return "a list of pictures"
    return "stuff" if path.name.startswith(_OTHER) else "objects"


def of_objects(contents: Mapping[Path, Any]) -> dict[Path, Any]:
    """Return the files that contain objects; if there are none, those with keypoints or stuff.

    Files with keypoints contain outlines as well.

    Raises:
        FindingError: none of them contains outlines.
    """
    kinds = {path: kind_of(path, content) for path, content in contents.items()}
    for wanted in ("objects", "keypoints", "stuff"):
        if chosen := {path: contents[path] for path in contents if kinds[path] == wanted}:
            return chosen
    path = next(iter(contents))
    message = f"it contains {kinds[path]}, not the outlines of objects"
    fix = "name the file with the objects by data.label=FILE, such as instances_train2017.json"
    raise fault("bad_annotations", path, message, fix)


def locate(name: str, path: Path, root: Path, shown: str) -> Path:
    """Return the file of a picture; if there is none, the first path where it could be.

    Args:
        name: ``file_name`` of the entry, with either kind of slash.
        path: the JSON file.
        root: the data set's folder.
        shown: the name of the picture in errors.

    Raises:
        FindingError: the name is absolute or leads out of the folder.
    """
    # The name comes from the file, so it must not lead out of the data set.
    relative = PurePosixPath(posix_name(name))
    if not lies_inside(name, root) or ".." in relative.parts:
        message = f"{shown} must be inside the data set's folder"
        raise fault("path_outside", path, message, "give file_name relative to images/")
    split = path.stem.rpartition("_")[2]  # train2017 of instances_train2017.json
    folders = [root / "images", root, root / split, root / "images" / split, path.parent]
    places = [folder / relative for folder in folders]
    return next((place for place in places if is_there(place)), places[0])
