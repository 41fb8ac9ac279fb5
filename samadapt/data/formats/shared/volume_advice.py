"""Advise what to do about a folder that has none of the known layouts."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

from samadapt.data.findings import Finding, error_finding
from samadapt.data.formats.shared.volume_patterns import stem_of

_MASKS = ("seg", "label", "labels", "mask", "gt")
_MOST_FOLDERS = 20
"""Folders that are looked into for advice."""


def unknown_layout(root: Path, suffixes: tuple[str, ...]) -> Finding:
    """Return the finding of a folder that has neither imagesTr/ nor images/."""
    expected = "expected imagesTr/ + labelsTr/ + dataset.json, or images/ + labels/ or masks/"
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    found = ", ".join(entry.name for entry in entries[:6]) or "nothing"
    message = f"{expected}; the folder holds {found}"
    fix = _pattern_advice(entries, suffixes) or (
        "set data.root to the data set's folder, or data.image and data.label to file names"
    )
    return error_finding("missing_folder", root, message, fix)


def _pattern_advice(entries: list[Path], suffixes: tuple[str, ...]) -> str:
    """Return patterns that fit one folder a case, as BraTS and ACDC have it; empty otherwise."""
    for folder in [entry for entry in entries if entry.is_dir()][:_MOST_FOLDERS]:
        files = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(suffixes)]
        if len(files) < 2:
            continue
        stems = [stem_of(path, suffixes) for path in files]
        before, names = "*/", stems
        if all(stem.startswith(f"{folder.name}_") for stem in stems):
            before, names = "*/*_", [stem.removeprefix(f"{folder.name}_") for stem in stems]
        ending = next(end for end in suffixes if files[0].name.lower().endswith(end))
        each = _mask_of_each(names)
        if each:
            return (
                "masks beside their images are read with patterns, here for example "
                f"data.image='{before}{each[0]}*{ending}' "
                f"data.label='{before}{each[0]}*_{each[1]}{ending}'"
            ).replace("**", "*")
        masks = [name for name in names if name.lower().split("_")[-1] in _MASKS]
        channels = [name for name in names if name not in masks]
        return (
            "one folder for each case is read with patterns, here for example "
            f"data.image='{before}{{channel}}{ending}' "
            f"data.label='{before}{[*masks, 'seg'][0]}{ending}' "
            f"data.channel=[{','.join(channels[:3])}] (one to three channels)"
        )
    return ""


def _mask_of_each(names: list[str]) -> tuple[str, str] | None:
    """Return the common beginning of images that have a mask each, and the ending of their masks.

    ACDC has ``frame01``, ``frame01_gt``, ``frame12``, ``frame12_gt``, which gives
    ``("frame", "gt")``. None if no mask has the name of an image.
    """
    for end in _MASKS:
        paired = [name for name in names if f"{name}_{end}" in names]
        if paired:
            letters = takewhile(lambda column: len(set(column)) == 1, zip(*paired, strict=False))
            return "".join(column[0] for column in letters).rstrip("0123456789"), end
    return None
