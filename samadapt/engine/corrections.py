"""Read the masks that people have corrected, as any annotation tool writes them.

- ``masks``: a folder of PNG files or volumes, named as their images, with or without ``_mask``.
- ``coco``: a JSON file, or the folder that holds it.
- ``labelme``: a folder of JSON files, one for each picture.

The readers of ``samadapt.data`` read and check them. Every mask comes back in the frame of its
image, with the class numbers of the workspace, or with object numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from samadapt.data.findings import FindingError
from samadapt.data.formats.base import FormatReader, Layout, reader_for
from samadapt.data.formats.coco.reader import CocoReader
from samadapt.data.formats.labelme import LabelmeReader
from samadapt.data.formats.shared.pictures import load_mask
from samadapt.data.formats.shared.volume_layout import channel_beside
from samadapt.data.types import Case, Volume
from samadapt.engine.workspace import Workspace
from samadapt.errors import DataError, UserError, nearest
from samadapt.inference.files import stem
from samadapt.system.arrays import Array

Format = Literal["masks", "coco", "labelme"]


@dataclass(frozen=True)
class Corrected:
    """The mask of an image as a person left it.

    Attributes:
        image: name of the image.
        file: the file that it was read from.
        volume: the image.
        mask: (h, w, d) class numbers of the workspace, or object numbers.
    """

    image: str
    file: Path
    volume: Volume
    mask: Array


def detect_format(source: Path) -> Format:
    """Return what a file or folder holds.

    Raises:
        DataError: there is no such path, or nothing that is known.
    """
    if not source.exists():
        raise DataError(
            f"input={source}: expected corrected masks; there is no such file or folder"
        )
    notes = [source] if source.is_file() else sorted(source.glob("*.json"))
    if not notes or (source.is_file() and source.suffix.lower() != ".json"):
        return "masks"
    try:
        content = json.loads(notes[0].read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{notes[0]}: expected JSON of COCO or labelme; it is broken") from error
    return "labelme" if isinstance(content, dict) and "shapes" in content else "coco"


def read_corrected(
    workspace: Workspace,
    source: Path,
    kind: Format,
    *,
    names: Sequence[str] | None,
    values: Mapping[str, int] | None,
) -> Iterator[Corrected | tuple[str, UserError]]:
    """Yield the corrected masks of a file or folder, or the error of one that cannot be read.

    Args:
        workspace: the workspace, whose images they belong to.
        source: the file or folder.
        kind: its format.
        names: only these images; None: all that are there.
        values: value of each class in files of the kind ``masks``; None: 1, 2, ... in order.

    Raises:
        DataError: nothing can be read, or a class or an image is unknown.
    """
    pairs = {
        "masks": _mask_files,
        "coco": _coco,
        "labelme": _labelme,
    }[kind](workspace, source)
    found, reader, classes = pairs
    if names is not None:
        if missing := [name for name in names if name not in found]:
            raise DataError(f"{source}: holds no mask of {', '.join(missing[:5])}")
        found = {name: found[name] for name in names}
    if not found:
        raise DataError(f"{source}: holds no mask of an image of the workspace")
    if not workspace.index.objects:
        table = _table(workspace, source, values if kind == "masks" else classes)
    for name, case in found.items():
        try:
            volume = _read(reader, case, workspace)
            workspace.check_digest(name, volume)
            file = case.labels or case.image
            if workspace.index.objects:
                mask = _objects(volume, kind)
            else:
                mask = _classes(volume, table, file, kind)
            yield Corrected(name, file, volume, mask)
        except UserError as error:  # one broken file must not cost the others
            yield name, error


def _mask_files(
    workspace: Workspace, source: Path
) -> tuple[dict[str, Case], FormatReader | None, None]:
    """Return the cases of mask files by image."""
    files = [source] if source.is_file() else sorted(source.iterdir())
    known, found = workspace.index.images, dict[str, Case]()
    for path in files:
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            plain = stem(path, reader_for(path))
        except DataError:
            continue  # a text file beside the masks
        name = plain if plain in known else plain.removesuffix("_mask").removesuffix(".seg")
        if name not in known:
            raise DataError(
                f"{path}: expected a mask named as an image of the workspace{nearest(name, known)}"
            )
        if name in found:
            raise DataError(f"{path}: {found[name].labels} is a mask of {name} too; keep one")
        image = workspace.image_path(name)
        found[name] = Case(
            name, image, path, channel=channel_beside(image.parent, workspace.how.channel)
        )
    return found, None, None


def _coco(
    workspace: Workspace, source: Path
) -> tuple[dict[str, Case], FormatReader, Mapping[str, tuple[int, ...]]]:
    """Return the pictures of a COCO file by image, its reader and its categories."""
    folder = Path(workspace.index.folder)
    label = None if source.is_dir() else str(source.resolve())
    if label is None:
        files = sorted(source.glob("*.json"))
        if len(files) != 1:
            names = ", ".join(path.name for path in files[:5])
            raise DataError(f"{source}: expected one COCO file; got {names}. Name it as input=FILE")
        label = str(files[0].resolve())
    reader = CocoReader(replace(workspace.how, root=folder, label=label))
    layout = reader.discover()
    _refuse_errors(layout)
    by_file = {entry.file: name for name, entry in workspace.index.images.items()}
    found = {}
    for case in layout.cases:
        if case.image.name not in by_file:
            raise DataError(
                f"{label}: names the picture {case.image.name}, which is not in the workspace"
                f"{nearest(case.image.name, by_file)}"
            )
        found[by_file[case.image.name]] = case
    return found, reader, layout.classes or {}


def _labelme(
    workspace: Workspace, source: Path
) -> tuple[dict[str, Case], FormatReader, Mapping[str, tuple[int, ...]]]:
    """Return the files of labelme by image, their reader and their labels."""
    folder = source.parent if source.is_file() else source
    reader = LabelmeReader(replace(workspace.how, root=folder, label=None))
    layout = reader.discover()
    _refuse_errors(layout)
    found, known = {}, workspace.index.images
    for case in layout.cases:
        if case.labels is None or (source.is_file() and case.labels != source):
            continue  # a picture without a file of labelme
        name = case.labels.stem
        if name not in known:
            raise DataError(
                f"{case.labels}: expected a file named as an image of the workspace"
                f"{nearest(name, known)}"
            )
        # The tool may have worked on a copy of the picture.
        found[name] = replace(case, image=workspace.image_path(name))
    return found, reader, layout.classes or {}


def _refuse_errors(layout: Layout) -> None:
    """Refuse annotations that could not be read.

    Raises:
        FindingError: naming the first fault.
    """
    for finding in layout.findings:
        if finding.severity == "error":
            raise FindingError(finding)


def _table(
    workspace: Workspace,
    source: Path,
    found: Mapping[str, int] | Mapping[str, tuple[int, ...]] | None,
) -> dict[int, int]:
    """Return the class number of the workspace for each value of the files.

    Raises:
        DataError: a class is unknown.
    """
    classes = workspace.index.classes
    if found is None:
        return {k: k for k in range(1, len(classes) + 1)}
    table = {}
    for name, values in found.items():
        if name not in classes:
            raise DataError(
                f"{source}: the workspace has no class {name!r}; it has {', '.join(classes)}"
                f"{nearest(name, classes)}"
            )
        for value in values if isinstance(values, tuple) else (values,):
            table[value] = classes.index(name) + 1
    return table


def _read(reader: FormatReader | None, case: Case, workspace: Workspace) -> Volume:
    """Return an image with the values of its corrected mask.

    Raises:
        DataError: the two do not fit, or a file is broken.
    """
    if reader is not None:
        return reader.read(case)
    own = reader_for(case.image, workspace.how)
    if workspace.index.reader != "folder":
        return own.read(case)
    volume, path = own.read_image(case.image), case.labels or case.image
    values = load_mask(path, workspace.how.exif).values
    if values.shape != volume.shape[:2]:
        raise DataError(
            f"{path}: expected a mask of {volume.shape[0]} x {volume.shape[1]} pixels (h x w), as "
            f"its picture has; got {values.shape[0]} x {values.shape[1]}"
        )
    return replace(volume, labels=values[:, :, None])


def _objects(volume: Volume, kind: Format) -> Array:
    """Return the object numbers (h, w, d) of a mask."""
    numbers = volume.labels if kind == "masks" else volume.instances
    if numbers is None:
        raise DataError("expected object numbers; the reader returned none")
    return np.asarray(numbers, np.int32).reshape(volume.shape)


def _classes(volume: Volume, table: Mapping[int, int], file: Path, kind: Format) -> Array:
    """Return the class numbers (h, w, d) of a mask.

    Raises:
        DataError: a value has no class.
    """
    if volume.labels is None:
        raise DataError(f"{file}: expected a mask; the reader returned none")
    mask = np.zeros(volume.shape, np.uint8)
    unknown = []
    for value in np.unique(volume.labels).tolist():
        if value in table:
            mask[volume.labels == value] = table[value]
        elif value != 0:
            unknown.append(value)
    if unknown:
        hint = "; say which with classes={name: value}" if kind == "masks" else ""
        raise DataError(
            f"{file}: the values {', '.join(map(str, unknown[:8]))} are no class; expected 0 and "
            f"{', '.join(map(str, table))}{hint}"
        )
    return mask
