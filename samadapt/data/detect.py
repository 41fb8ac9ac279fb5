"""Choose the reader of a folder by what lies in it: ``data=auto``.

The files decide, not their content, so nothing is read but the headers of TIFF files. Where two
readers would both fit, nothing is guessed: the error names them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from samadapt.data.formats.base import readers
from samadapt.data.formats.shared.stored_picture import SUFFIXES as PICTURES
from samadapt.errors import ConfigError

AUTO = "auto"

MOST_FILES = 20_000
"""Files that are looked at. A folder with more shows its format in the first ones."""


def detect_reader(root: str | Path | None) -> str:
    """Return the name of the reader for a folder.

    Args:
        root: ``data.root``.

    Raises:
        ConfigError: there is no folder, no reader fits what is in it, or several do.
    """
    if root is None:
        raise ConfigError(
            "data.root: data=auto chooses the reader by what lies in a folder; give "
            "data.root=PATH, or name a data set with data=NAME (`samadapt ls data`)"
        )
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"data.root: the folder {folder} does not exist")
    names = list(_names(folder))
    lower = [name.lower() for name in names]
    found = [
        reader
        for reader, endings in sorted(_volume_endings().items())
        if any(name.endswith(endings) for name in lower)
    ]
    # The labels of a DICOM series may be of another format of volumes.
    if "dicom" in found or (not found and _is_dicom_without_ending(folder, names)):
        return "dicom"
    if len(found) > 1:
        raise _undecided(folder, found)
    if found:
        return found[0]
    if any(name.endswith(PICTURES) for name in lower):
        return _reader_of_pictures(folder, names)
    endings = Counter(Path(name).suffix.lower() or "no ending" for name in names)
    held = ", ".join(f"{count} files with {ending}" for ending, count in endings.most_common(3))
    raise ConfigError(
        f"data.root: no format is recognised in {folder}, which holds {held or 'no files'}; name "
        "one with data=NAME (`samadapt ls data`)"
    )


def _volume_endings() -> dict[str, tuple[str, ...]]:
    """Return the endings of each format that holds volumes and no pictures, by reader."""
    kinds = set(readers().values())
    return {kind.name: kind.suffixes for kind in kinds if not {*kind.suffixes} & {*PICTURES}}


def _reader_of_pictures(folder: Path, names: list[str]) -> str:
    parts = {name.split("/")[0] for name in names}
    pictures = [name for name in names if name.lower().endswith(PICTURES)]
    if "masks" in parts:
        from samadapt.data.formats.tiff.reader import is_stack

        images = sorted(name for name in pictures if name.startswith("images/"))
        return "tiff" if images and is_stack(folder / images[0]) else "folder"
    stems = {name.rpartition(".")[0] for name in pictures}
    beside = [name for name in names if name.endswith(".json") and name[:-5] in stems]
    of_sa1b = [name for name in beside if Path(name).name.startswith("sa_")]
    fitting = {
        "yolo": any(name.startswith("labels/") and name.endswith(".txt") for name in names),
        "coco": any(name.endswith(".json") and name not in beside for name in names),
        "sa1b": bool(of_sa1b),
        "labelme": len(beside) > len(of_sa1b),
    }
    found = [reader for reader, fits in fitting.items() if fits]
    if len(found) > 1:
        raise _undecided(folder, found)
    return found[0] if found else "folder"  # its reader says which masks are missing


def _names(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, relative and with forward slashes; hidden ones are left out.

    Folders that cannot be read are left to the reader, which reports them.
    """
    count = 0
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            yield (Path(place) / name).relative_to(folder).as_posix()
            count += 1
            if count == MOST_FILES:
                return


def _is_dicom_without_ending(folder: Path, names: list[str]) -> bool:
    """Whether the first file without an ending has DICOM's mark after 128 bytes."""
    bare = next((name for name in names if not Path(name).suffix), None)
    if bare is None:
        return False
    with (folder / bare).open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _undecided(folder: Path, found: list[str]) -> ConfigError:
    return ConfigError(
        f"data.root: {folder} holds files of several formats ({', '.join(found)}); name the one to "
        f"read, such as data={found[0]}"
    )
