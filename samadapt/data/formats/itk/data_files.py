"""Which data files a NRRD or MetaImage header names, before ITK opens any of them.

ITK opens every file that a header names, anywhere on the machine, and hands a pattern of file names
to ``sprintf``. So the header is read here first, by the same rules, and refused if a name leads out
of the folder. Messages quote nothing of the header, which may name a patient.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from samadapt.data.findings import FindingError, fault
from samadapt.data.formats.itk.header_fields import check_fields
from samadapt.system.limits import lies_inside

_LONGEST = 1 << 20
"""Bytes of a header, including the names of slice files."""
_MOST_FILES = 100_000
_PATTERN = re.compile(r"[^%]*%0?\d{0,3}d[^%]*")
"""What a pattern may be: a file name with one number in it, such as ``slice%03d.raw``."""
_NAMED = {
    "metaimage": re.compile(rb"elementdatafile", re.IGNORECASE),
    "nrrd": re.compile(rb"^\s*data ?file\s*:", re.IGNORECASE | re.MULTILINE),
}


def is_metaimage(path: Path) -> bool:
    """Return whether a file is MetaImage by its ending; otherwise it is NRRD."""
    return path.suffix.lower() in (".mha", ".mhd")


def data_files(path: Path, root: Path | None = None) -> tuple[str, list[Path]]:
    """Return how and where the voxels are stored.

    Args:
        path: the header, or the file that begins with one.
        root: the data set's folder.

    Returns:
        The encoding (``"raw"``, ``"deflate"``, or another name), and the data files. A header that
        names several files gives ``"several"`` and no file: ITK says which of them is missing.

    Raises:
        FindingError: the header is too long or contradicts itself, or a name leads out of the
            header's folder and out of ``root``.
    """
    encoding, files = _stored(path, root)
    if encoding in ("text", "txt", "ascii"):
        for file in files:
            if file.is_file():
                _check_words(path, file)
    return encoding, files


def _check_words(path: Path, file: Path) -> None:
    """Refuse numbers written as text that are so long that ITK ends the program."""
    held = b""
    with file.open("rb") as content:
        while piece := content.read(_LONGEST):
            if re.search(rb"\S{128,}", held + piece):
                raise _bad_header(path, "one of its numbers has more than 128 characters")
            held = piece[-128:]  # a number may continue in the next piece


def _stored(path: Path, root: Path | None) -> tuple[str, list[Path]]:
    """Return the encoding and the data files, from the header alone."""
    kind = "metaimage" if is_metaimage(path) else "nrrd"
    with path.open("rb") as file:
        lines, rest = _header(path, kind, file.read(_LONGEST))
    fields = _fields(lines)
    check_fields(path, kind, lines, fields)
    if kind == "metaimage":
        binary = fields.get("binarydata", "True").lower().startswith("t")
        packed = fields.get("compresseddata", "False").lower().startswith("t")
        encoding = ("deflate" if packed else "raw") if binary else "text"
        name = fields.get("elementdatafile", "")
        if not name:
            raise _bad_header(path, "it does not say where its voxels are (ElementDataFile)")
    else:
        how = fields.get("encoding", "raw").lower()
        encoding = {"raw": "raw", "gzip": "deflate", "gz": "deflate"}.get(how, how)
        name = fields.get("data file", fields.get("datafile", "LOCAL"))
    if name.upper() == "LOCAL":
        return encoding, [path]
    is_several = name.upper().startswith("LIST") or "%" in name
    if is_several and encoding in ("text", "txt", "ascii"):
        raise _bad_header(path, "its voxels are numbers written as text in several files")
    if name.upper().startswith("LIST"):
        for listed in rest:
            _check_inside(path, listed, root)
        return "several", []
    if "%" in name:
        pattern, *numbers = name.split()
        if not _PATTERN.fullmatch(pattern):
            raise _bad_header(path, "its pattern of file names needs one number, such as %03d")
        if not _counts(numbers):
            raise _bad_header(
                path, "its pattern of file names must be followed by first, last and step"
            )
        _check_inside(path, pattern, root)
        return "several", []
    _check_inside(path, name, root)
    return encoding, [path.parent / name]


def _counts(numbers: Sequence[str]) -> bool:
    """Return whether the numbers after a pattern are first, last and step, and name some files.

    NRRD allows a fourth number, the dimension of the slices.
    """
    if not 3 <= len(numbers) <= 4 or not all(re.fullmatch(r"-?\d{1,6}", n) for n in numbers):
        return False
    first, last, step = (int(number) for number in numbers[:3])
    return step != 0 and 0 <= (last - first) // step < _MOST_FILES


def _header(path: Path, kind: str, content: bytes) -> tuple[list[str], list[str]]:
    """Return the lines of the header, and the lines after it that may name files."""
    if kind == "nrrd":
        end = re.search(rb"\r?\n\r?\n", content)
        head = content[: end.start()] if end else content
        behind = b""
    else:
        found = _NAMED[kind].search(content)
        stop = -1 if found is None else content.find(b"\n", found.end())
        end = found
        head = content if stop < 0 else content[:stop]
        behind = b"" if stop < 0 else content[stop:]
    if end is None and len(content) == _LONGEST:
        raise _bad_header(path, f"its header is longer than {_LONGEST:,} bytes")
    # ITK distinguishes upper and lower case in one of the formats, so it may pass over the line
    # that ends a MetaImage header here. So the whole content of such a file is searched.
    if len(_NAMED[kind].findall(head if kind == "nrrd" else content)) > 1:
        raise _bad_header(path, "its header says twice where its voxels are")
    lines = [line.decode("latin-1").strip() for line in head.split(b"\n")]
    rest = [line.decode("latin-1").strip() for line in behind.split(b"\n")]
    if kind == "nrrd":
        # After "data file: LIST", each line of the header is the name of a file.
        listing = re.compile(r"data ?file\s*:\s*list", re.IGNORECASE)
        at = next((i for i, line in enumerate(lines) if listing.match(line)), len(lines))
        rest = lines[at + 1 :]
    return lines, [line for line in rest if line]


def _fields(lines: list[str]) -> dict[str, str]:
    """Return the fields by name in lower case; ITK accepts ``=`` and ``:``."""
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = re.sub("[=:]", "\0", line, count=1).partition("\0")
        fields.setdefault(key.strip().lower(), value.strip())
    return fields


def _check_inside(path: Path, name: str, root: Path | None) -> None:
    if not lies_inside(name, path.parent, root):
        message = "its header names a data file outside of the data set's folder"
        raise fault("path_outside", path, message, "put the data file beside the header")


def _bad_header(path: Path, message: str) -> FindingError:
    return fault("bad_header", path, message, "export it again")
