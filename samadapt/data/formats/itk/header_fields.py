"""Check the fields of a NRRD or MetaImage header before ITK parses them.

ITK's parsers trust their input: a number of some thousand digits, a count that does not fit, or a
size of 0 ends the whole program. So every field must look as its documentation says
(https://teem.sourceforge.net/nrrd/format.html,
https://itk.org/Wiki/ITK/MetaIO/Documentation), and the length of lines is limited.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from samadapt.data.findings import FindingError, fault

_MOST_CHARACTERS = 4096
_MOST_AXES = 4
_INTEGER = r"[+-]?\d{1,18}"
_NUMBER = r"(?:[+-]?(?:\d{1,40}\.?\d{0,40}|\.\d{1,40})(?:[eE][+-]?\d{1,3})?|[+-]?(?:nan|inf))"
_SIZE = r"0*[1-9]\d{0,17}"
_WORD = r"[\w.+-]{1,64}"
_VECTOR = rf"(?:none|\(\s*{_NUMBER}(?:\s*,\s*{_NUMBER})*\s*\))"
_QUOTED = r'(?:"[^"]*"|[^"\s]+)'
_BOOLEAN = r"(?:true|false|[01yn]|yes|no|on|off)"

_NRRD_LISTS = {
    "sizes": _SIZE,
    "spacings": _NUMBER,
    "thicknesses": _NUMBER,
    "axis mins": _NUMBER,
    "axismins": _NUMBER,
    "axis maxs": _NUMBER,
    "axismaxs": _NUMBER,
    "kinds": _WORD + r"(?:\*)?|\?\?\?",
    "centers": _WORD + r"|\?\?\?",
    "centerings": _WORD + r"|\?\?\?",
    "space directions": _VECTOR,
    "labels": _QUOTED,
    "units": _QUOTED,
}
"""Fields of NRRD with one value for each axis, and the pattern of a value."""
_NRRD_SINGLE = {
    "dimension": rf"[1-{_MOST_AXES}]",
    "type": r"[\w ]{1,64}",
    "encoding": _WORD,
    "endian": "little|big",
    "space": r"[\w-]{1,64}",
    "space dimension": rf"[1-{_MOST_AXES}]",
    "space origin": _VECTOR,
    "measurement frame": rf"{_VECTOR}(?:\s+{_VECTOR})*",
    "space units": rf"{_QUOTED}(?:\s+{_QUOTED})*",
    "block size": _INTEGER,
    "blocksize": _INTEGER,
    "line skip": r"\d{1,9}",
    "lineskip": r"\d{1,9}",
    "byte skip": r"-1|\d{1,15}",
    "byteskip": r"-1|\d{1,15}",
    "min": _NUMBER,
    "max": _NUMBER,
    "old min": _NUMBER,
    "oldmin": _NUMBER,
    "old max": _NUMBER,
    "oldmax": _NUMBER,
}
_FREE = ("data file", "datafile", "content", "number", "sample units", "sampleunits")
"""Fields of NRRD with any text. ``data_files.py`` checks the name of the data file."""

_META_LISTS = {
    "dimsize": _SIZE,
    "elementspacing": _NUMBER,
    "elementsize": _NUMBER,
    "offset": _NUMBER,
    "origin": _NUMBER,
    "position": _NUMBER,
    "centerofrotation": _NUMBER,
    "sequenceid": _NUMBER,
}
_META_SINGLE = {
    "objecttype": _WORD,
    "objectsubtype": _WORD,
    "ndims": rf"[1-{_MOST_AXES}]",
    "binarydata": _BOOLEAN,
    "binarydatabyteordermsb": _BOOLEAN,
    "elementbyteordermsb": _BOOLEAN,
    "compresseddata": _BOOLEAN,
    "compresseddatasize": r"\d{1,18}",
    "compressionlevel": r"\d{1,2}",
    "headersize": r"-1|\d{1,15}",
    "elementtype": _WORD,
    "elementnumberofchannels": r"0*[1-9]\d{0,4}",
    "elementmin": _NUMBER,
    "elementmax": _NUMBER,
    "modality": _WORD,
    "anatomicalorientation": r"[\w?]{1,64}",
    "transformmatrix": rf"{_NUMBER}(?:\s+{_NUMBER})*",
    "rotation": rf"{_NUMBER}(?:\s+{_NUMBER})*",
    "orientation": rf"{_NUMBER}(?:\s+{_NUMBER})*",
}


def check_fields(path: Path, kind: str, lines: Sequence[str], fields: Mapping[str, str]) -> None:
    """Refuse a header with fields that ITK cannot be trusted with.

    Args:
        path: the file.
        kind: ``"nrrd"`` or ``"metaimage"``.
        lines: the lines of the header.
        fields: the text of each field, by its name in lower case.

    Raises:
        FindingError: a field is not as the format demands. The message names the field and does
            not quote its value, which may name a patient.
    """
    if any(len(line) > _MOST_CHARACTERS for line in lines):
        raise _bad(path, f"a line of its header has more than {_MOST_CHARACTERS} characters")
    if any(ord(character) < 32 and character != "\t" for line in lines for character in line):
        raise _bad(path, "its header holds bytes that are not text")
    if kind == "nrrd":
        _check_nrrd(path, lines, fields)
    else:
        _check_meta(path, lines, fields)


def _check_nrrd(path: Path, lines: Sequence[str], fields: Mapping[str, str]) -> None:
    if not re.fullmatch(r"NRRD000[1-5]", lines[0] if lines else ""):
        raise _bad(path, "it does not begin as a NRRD file does")
    named = [line for line in lines[1:] if line and not line.startswith("#") and ":=" not in line]
    names = [line.partition(":")[0].strip().lower() for line in named if ":" in line]
    _check_once(path, names)
    axes = _axes(path, fields.get("dimension"))
    for name in names:
        if name in _NRRD_LISTS:
            _check(path, name, fields[name], _list_of(_NRRD_LISTS[name], axes))
        elif name in _NRRD_SINGLE:
            _check(path, name, fields[name], _NRRD_SINGLE[name])
        elif name not in _FREE:
            raise _bad(path, "its header has a field that NRRD does not know")
    for name in ("type", "sizes"):
        if name not in names:
            raise _bad(path, f"its header lacks the field {name}")


def _check_meta(path: Path, lines: Sequence[str], fields: Mapping[str, str]) -> None:
    names = [re.split("[=:]", line, maxsplit=1)[0].strip().lower() for line in lines if line]
    _check_once(path, [name for name in names if name in _META_LISTS or name in _META_SINGLE])
    if any("=" not in line and ":" not in line for line in lines if line):
        raise _bad(path, "a line of its header is not KEY = VALUE")
    axes = _axes(path, fields.get("ndims"))
    # MetaIO reads NDims numbers when it meets a list, so that NDims must be known by then.
    first = next((i for i, name in enumerate(names) if name in _META_LISTS), len(names))
    if "ndims" in names[first:]:
        raise _bad(path, "NDims must come before the fields with one value for each axis")
    for name in set(names):
        if name in _META_LISTS:
            _check(path, name, fields[name], _list_of(_META_LISTS[name], axes))
        elif name in _META_SINGLE:
            _check(path, name, fields[name], _META_SINGLE[name])
    for name in ("transformmatrix", "rotation", "orientation"):
        if name in fields and len(fields[name].split()) != axes * axes:
            raise _bad(path, f"its field {name} needs {axes * axes} numbers")
    for name in ("dimsize", "elementtype"):
        if name not in names:
            raise _bad(path, f"its header lacks the field {name}")


def _axes(path: Path, text: str | None) -> int:
    if text is None:
        raise _bad(path, "its header does not say how many axes it has")
    if not re.fullmatch(rf"[1-{_MOST_AXES}]", text):
        message = f"expected 2 to {_MOST_AXES} axes; its header declares another number"
        raise fault("bad_shape", path, message, "split the file into volumes")
    return int(text)


def _list_of(item: str, count: int) -> str:
    return rf"(?:{item})(?:\s+(?:{item})){{{count - 1}}}"


def _check(path: Path, name: str, text: str, pattern: str) -> None:
    if not re.fullmatch(pattern, text, re.IGNORECASE | re.ASCII):
        raise _bad(path, f"its field {name} is not as the format demands")


def _check_once(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise _bad(path, "its header has a field twice")


def _bad(path: Path, message: str) -> FindingError:
    return fault("bad_header", path, message, "export it again")
