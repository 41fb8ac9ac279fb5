"""TIFF files with a circular chain of pages, and limits of what files may declare."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from samadapt.data.checks.survey import survey
from samadapt.data.findings import FindingError
from samadapt.data.formats.tiff.safety import check_tiff

SLOW = bytes.fromhex("49492a0008000000")
"""The head of a TIFF file that has its first page at byte 8."""


def circle(path: Path, *, big: bool = False, order: str = "<", length: int = 1) -> Path:
    """Write a TIFF file of pages without tags; the last page names the first as the next."""
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(
        order + ("HHHQ" if big else "HI"), *((43, 8, 0, 16) if big else (42, 8))
    )
    size, form = (16, "QQ") if big else (6, "HI")
    start, pages = len(head), b""
    for index in range(length):
        following = start + size * ((index + 1) % length)
        pages += struct.pack(order + form, 0, following)
    path.write_bytes(head + pages)
    return path


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("length", [1, 2, 50])
def test_a_circle_of_pages(tmp_path: Path, big: bool, order: str, length: int) -> None:
    path = circle(tmp_path / "a.tif", big=big, order=order, length=length)
    with pytest.raises(FindingError, match="is followed by an earlier page"):
        check_tiff(path)


@pytest.mark.parametrize("reader", ["tiff", "folder"])
def test_a_damaged_stack_ends_at_once(tmp_path: Path, reader: str) -> None:
    """The last page of the stack points to the first, so tifffile would never return."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for index in range(3):
            values = np.random.default_rng(index).integers(0, 9, (5, 20, 24), dtype=np.uint8)
            tifffile.imwrite(tmp_path / part / f"a{index}.tif", values, metadata=None)
        path = tmp_path / part / "a1.tif"
        with tifffile.TiffFile(path) as tif:
            last, first = tif.pages[-1].offset, tif.pages[0].offset
            _ = len(tif.pages)
            at = tif.pages.next_page_offset
        assert last > first
        content = bytearray(path.read_bytes())
        content[at : at + 4] = struct.pack("<I", first)
        path.write_bytes(bytes(content))
    began = time.monotonic()
    found = survey(reader, tmp_path)
    assert time.monotonic() - began < 30
    named = [(f.code, Path(f.file).name) for f in found.findings if f.severity == "error"]
    assert named.count(("bad_header", "a1.tif")) == 2


def test_whole_files_pass(tmp_path: Path) -> None:
    for big in (False, True):
        for order in "<>":
            path = tmp_path / f"{big}{order}.tif"
            values = np.zeros((30, 8, 8), np.uint16)
            tifffile.imwrite(path, values, bigtiff=big, byteorder=order, metadata=None)
            check_tiff(path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n")
    check_tiff(tmp_path / "a.png")


def test_a_cut_head_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(SLOW[:5])
    with pytest.raises(FindingError, match="cut off"):
        check_tiff(tmp_path / "a.tif")
