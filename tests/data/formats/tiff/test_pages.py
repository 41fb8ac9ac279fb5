"""The page at full resolution is the picture; pages of equal size are a stack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

from samadapt.data import read_image
from samadapt.data.formats.tiff.reader import is_stack
from samadapt.errors import DataError

FULL = np.random.default_rng(6).integers(0, 256, (64, 96, 3), dtype=np.uint8)
HALF, QUARTER = FULL[::2, ::2], FULL[::4, ::4]
REDUCED = 1


def _write(
    path: Path, pages: Sequence[np.ndarray], kinds: Sequence[int], subifds: Sequence[int] = ()
) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for index, (page, kind) in enumerate(zip(pages, kinds, strict=True)):
            below = subifds[index] if index < len(subifds) else 0
            writer.write(page, photometric="rgb", subfiletype=kind, subifds=below)
    return path


@pytest.mark.parametrize(
    ("pages", "kinds", "subifds"),
    [
        ([FULL, QUARTER], [0, REDUCED], []),
        ([QUARTER, FULL], [REDUCED, 0], []),
        ([FULL, QUARTER], [0, 0], []),
        ([QUARTER, FULL, HALF], [0, 0, 0], []),
        ([QUARTER, HALF, FULL], [REDUCED, REDUCED, REDUCED], []),
        ([FULL, HALF, QUARTER], [0, REDUCED, REDUCED], [2]),
        ([QUARTER, FULL], [REDUCED, 0], [1]),
        ([QUARTER, FULL], [0, 0], [1]),
        ([FULL, FULL[:20, :20], QUARTER], [0, REDUCED, REDUCED], []),
    ],
    ids=[
        *("thumbnail_behind", "thumbnail_first", "untagged", "pyramid", "all_tagged"),
        *("levels_below", "picture_below", "picture_below_untagged", "label_image"),
    ],
)
def test_the_full_resolution_page_is_read(
    tmp_path: Path, pages: list[np.ndarray], kinds: list[int], subifds: list[int]
) -> None:
    path = _write(tmp_path / "a.tif", pages, kinds, subifds)
    assert not is_stack(path)
    np.testing.assert_array_equal(read_image(path).image, FULL)


def test_sizes_that_are_rounded(tmp_path: Path) -> None:
    odd = FULL[:63, :95]
    path = _write(tmp_path / "a.tif", [odd[::16, ::16], odd], [0, 0])
    np.testing.assert_array_equal(read_image(path).image, odd)


def test_equal_pages_stay_a_stack(tmp_path: Path) -> None:
    stack = FULL.transpose(2, 0, 1).copy()
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for plane in stack:
            writer.write(plane, photometric="minisblack", contiguous=False)
    assert is_stack(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.moveaxis(read_image(tmp_path / "a.tif").image, 2, 0), stack)


def test_a_stack_behind_a_thumbnail(tmp_path: Path) -> None:
    stack = FULL.transpose(2, 0, 1).copy()
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(stack[0, ::4, ::4], photometric="minisblack", subfiletype=REDUCED)
        for plane in stack:
            writer.write(plane, photometric="minisblack", contiguous=False, metadata=None)
    assert is_stack(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.moveaxis(read_image(tmp_path / "a.tif").image, 2, 0), stack)


def test_pages_that_are_different_pictures_are_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tif", [FULL, FULL[:30, :90]], [0, 0])
    with pytest.raises(DataError, match=r"a\.tif.*2 \(h x w: 64 x 96, 30 x 90\).*several_pages"):
        read_image(path)


def test_a_page_that_is_cut_off(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tif", [FULL], [0])
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DataError, match=r"a\.tif.*truncated_file"):
        read_image(path)
