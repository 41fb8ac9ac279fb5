"""The checks and the first use of a volume share one read, within the limit of memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samadapt.data import open_dataset
from samadapt.data.checks.survey import survey
from samadapt.data.formats.base import Reader
from samadapt.data.formats.nifti.reader import NiftiReader
from samadapt.data.types import Case, SliceRef, Volume
from samadapt.data.volumes import VolumeCache


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each file is read, by its folder and name."""
    counts: Counter[str] = Counter()
    load = NiftiReader.load

    def counted(self: NiftiReader, path: Path, *args: Any) -> Any:
        counts[f"{path.parent.name}/{path.name}"] += 1
        return load(self, path, *args)

    monkeypatch.setattr(NiftiReader, "load", counted)
    return counts


def test_checks_and_samples_read_each_file_once(
    make_msd: Callable[..., Path], reads: Counter[str]
) -> None:
    root = make_msd(3)
    survey("nifti", root)
    assert set(reads.values()) == {1}
    assert len(reads) == 6
    reads.clear()
    dataset = open_dataset("nifti", root)
    for _ in range(2):
        for ref in [*dataset.slices("train"), *dataset.slices("val")]:
            dataset.sample(ref)
    assert set(reads.values()) == {1}
    assert len(reads) == 6


def test_the_disk_cache_needs_one_read_as_well(
    make_msd: Callable[..., Path], reads: Counter[str], tmp_path: Path
) -> None:
    root = make_msd(2)
    for _ in range(2):
        dataset = open_dataset("nifti", root, cache_dir=tmp_path / "cache")
        dataset.samples("case_01")
        assert set(reads.values()) == {1}
        assert dataset.volumes.take_checked("case_01") is None
        reads.clear()


def test_without_room_files_are_read_again_with_the_same_result(
    make_msd: Callable[..., Path], reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_msd(2)
    expected = open_dataset("nifti", root).samples("case_01")
    reads.clear()
    monkeypatch.setattr("samadapt.data.dataset.VolumeCache", lambda: VolumeCache(limit=100))
    found = open_dataset("nifti", root).samples("case_01")
    assert reads["imagesTr/case_01.nii.gz"] == reads["labelsTr/case_01.nii.gz"] == 2
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_cases_that_are_left_out_take_no_memory(make_msd: Callable[..., Path], tools: Any) -> None:
    root = make_msd(3)
    odd = np.full((8, 9, 6), 7, np.uint8)
    tools.write_nifti(root / "labelsTr" / "case_01.nii.gz", odd)
    dataset = open_dataset("nifti", root, on_error="skip")
    assert dataset.left_out == ["case_01"]
    assert dataset.volumes.take_checked("case_01") is None
    assert dataset.volumes.take_checked("case_00") is not None
    assert isinstance(dataset.reader, Reader)
    dataset.sample(SliceRef("case_00", 0))  # taken above, so it is read again


def test_a_view_counts_as_the_array_that_it_keeps_in_memory() -> None:
    whole = np.zeros((4, 4, 4, 10), np.uint8)
    cache = VolumeCache(limit=600)
    cache.hold_checked(Case("view", Path("x")), Volume(whole[..., 0]))
    assert cache.take_checked("view") is None
    cache.hold_checked(Case("alone", Path("x")), Volume(whole[..., 0].copy()))
    assert cache.take_checked("alone") is not None
