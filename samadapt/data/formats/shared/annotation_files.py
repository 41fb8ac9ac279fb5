"""Find and read the JSON files of annotation tools (COCO, SA-1B, labelme)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from samadapt.data.findings import fault


def read_json_annotations(path: Path) -> Any:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    Raises:
        FindingError: it is missing, empty or not JSON. The message names the line and the column,
            and quotes nothing: annotations may name patients.
    """
    if not path.is_file():
        raise fault("missing_file", path, "there is no such file", "check the path")
    if path.stat().st_size == 0:
        raise fault("empty_file", path, "the file is empty (0 bytes)", "copy it again")
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        where = type(problem).__name__
        if isinstance(problem, json.JSONDecodeError):
            where = f"{problem.msg}, line {problem.lineno}, column {problem.colno}"
        message = f"is not a JSON file ({where})"
        raise fault("broken_json", path, message, "copy or export it again") from None


def files_below(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files with some endings in a folder and its subfolders, sorted by name.

    Hidden files and folders are left out.
    """
    found = []
    for folder, folders, files in os.walk(root):
        # os.walk visits the folders that remain in this list.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(folder) / name
            for name in sorted(files)
            if Path(name).suffix.lower() in suffixes and not name.startswith(".")
        ]
    return found


def posix_name(name: str) -> str:
    r"""Return a file name as written on Windows (``set\1.jpg``) with forward slashes."""
    return name.replace("\\", "/")


def is_there(path: Path) -> bool:
    """Return whether a file exists; False for names that no file system accepts."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # the name is too long, or holds a null character
        return False
