"""Headers that make ITK end the program are refused before ITK reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from samadapt.data.findings import FindingError
from samadapt.data.formats.base import read_image

pytest.importorskip("SimpleITK")

NRRD = {
    "type": "uchar",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "4 4 1",
    "space directions": "(1,0,0) (0,1,0) (0,0,1)",
    "kinds": "domain domain domain",
    "encoding": "raw",
    "space origin": "(0,0,0)",
}
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "0 0 0",
    "ElementSpacing": "1 1 1",
    "DimSize": "4 4 1",
    "ElementType": "MET_UCHAR",
    "ElementDataFile": "LOCAL",
}
CHANGES = [
    (".nrrd", {"space directions": f"(1,0,0) (0,{'1' * 5000},0) (0,0,1)"}),
    (".nrrd", {"sizes": "4 4"}),
    (".nrrd", {"sizes": "4 4 0"}),
    (".nrrd", {"sizes": "4 4 -1"}),
    (".nrrd", {"sizes": "9" * 30 + " 4 1"}),
    (".nrrd", {"dimension": "16"}),
    (".nrrd", {"space origin": "(0,0"}),
    (".nrrd", {"byte skip": "x"}),
    (".nrrd", {"unknown": "1"}),
    (".nrrd", {"type": ""}),
    (".mha", {"NDims": "0"}),
    (".mha", {"NDims": "2000"}),
    (".mha", {"DimSize": "4 4"}),
    (".mha", {"DimSize": "4 4 0"}),
    (".mha", {"ElementNumberOfChannels": "0"}),
    (".mha", {"TransformMatrix": "1 0 0"}),
    (".mha", {"ElementSpacing": "1 1 " + "1" * 5000}),
    (".mha", {"ElementDataFile": "a%d.raw 1 1 0"}),
    (".mha", {"ElementDataFile": "a%d.raw 1 999999 1"}),
    (".mha", {"ElementType": ""}),
]


def write(path: Path, changes: dict[str, str], voxels: bytes = bytes(range(16))) -> Path:
    if path.suffix == ".nrrd":
        lines = ["NRRD0004", *(f"{key}: {text}" for key, text in {**NRRD, **changes}.items()), ""]
    else:
        last = {"ElementDataFile": (META | changes)["ElementDataFile"]}
        head = {key: text for key, text in (META | changes).items() if key != "ElementDataFile"}
        lines = [f"{key} = {text}" for key, text in {**head, **last}.items()]
    path.write_bytes("\n".join([*lines, ""]).encode() + voxels)
    return path


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_whole_files_are_read(tmp_path: Path, suffix: str) -> None:
    assert read_image(write(tmp_path / f"a{suffix}", {})).image.max() == 15


@pytest.mark.parametrize(("suffix", "changes"), CHANGES)
def test_fields_that_are_not_as_they_should_be(
    tmp_path: Path, suffix: str, changes: dict[str, str]
) -> None:
    with pytest.raises(FindingError) as caught:
        read_image(write(tmp_path / f"a{suffix}", changes))
    assert caught.value.finding.code in ("bad_header", "bad_shape")
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


def test_a_number_of_very_many_digits(tmp_path: Path) -> None:
    text = b"1 " * 15 + b"1" * 5000 + b"\n"
    with pytest.raises(FindingError, match="more than 128 characters"):
        read_image(write(tmp_path / "a.nrrd", {"encoding": "ascii"}, text))
    assert (
        read_image(write(tmp_path / "a.nrrd", {"encoding": "ascii"}, b"1 2 " * 8)).image.max() == 2
    )
