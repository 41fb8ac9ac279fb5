"""Options that the data set cannot be used with are refused by their key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from scan_files import volume, write

from samadapt.data import open_dataset
from samadapt.data.checks.refusals import check_depth, check_options, check_tiles, share_of
from samadapt.data.tiles import tiling
from samadapt.data.types import Case
from samadapt.errors import ConfigError, DataError

PICTURE = Case("p", Path("p.png"), shape=(8, 8, 1))
VOLUME = Case("v", Path("v.nii"), shape=(8, 8, 4), axis=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("ignore", 1, "drop"), r"data\.on_error must be stop or skip; got 'ignore'"),
        (("stop", 0, "drop"), r"data\.slice_step must be at least 1; got 0"),
        (("stop", 1, "some"), r"data\.empty_slices must be drop, keep or a share.*got 'some'"),
        (("stop", 1, 1.5), r"data\.empty_slices must be .*got 1\.5"),
        (("stop", 1, float("nan")), r"data\.empty_slices"),
    ],
)
def test_wrong_options_name_their_key(options: tuple[str, int, str | float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_options(*options)


def test_a_share_of_empty_slices() -> None:
    check_options("skip", 3, "0.25")
    assert [share_of(empty) for empty in ("drop", "keep", "0.25", 1)] == [0, 1, 0.25, 1]


def test_stacks_need_volumes() -> None:
    check_depth(1, [PICTURE, VOLUME])
    check_depth(4, [VOLUME])
    with pytest.raises(ConfigError, match=r"4 neighbouring slices .* p\.png has only one slice"):
        check_depth(4, [VOLUME, PICTURE])


def test_tiles_need_pictures() -> None:
    check_tiles(None, [VOLUME])
    check_tiles(tiling(64, 0.25), [PICTURE])
    flat = replace(VOLUME, shape=(8, 8, 1))  # a volume file with one slice
    for case in (VOLUME, flat):
        with pytest.raises(ConfigError, match=r"data\.tile=64 .* v\.nii is a volume"):
            check_tiles(tiling(64, 0.25), [PICTURE, case])


def test_neighbours_need_volumes(make_folder: Callable[..., Path]) -> None:
    root = make_folder(4)
    with pytest.raises(ConfigError, match=r"data\.neighbours=1: .* has only one slice"):
        open_dataset("folder", root, neighbours=1)


def test_errors_stop_or_are_left_out(scans: Path) -> None:
    for name in ("c1", "c3"):
        (scans / "labels" / f"{name}.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"nifti: 2 errors in the data set:(?s:.*)on_error=skip"):
        open_dataset("nifti", scans, intensity="ct")
    dataset = open_dataset("nifti", scans, intensity="ct", on_error="skip")
    assert dataset.left_out == ["c1", "c3"]


def test_where_nothing_is_left_skipping_is_not_advised(tmp_path: Path) -> None:
    write(tmp_path, "c0", volume(0)[0])
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "c0.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match="1 error in the data set") as error:
        open_dataset("nifti", tmp_path, intensity="ct", on_error="skip")
    assert "on_error=skip" not in str(error.value)
