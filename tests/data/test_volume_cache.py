"""The checks and the first use of a volume share one read, within the limit of memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samadapt.data import Dataset, open_dataset
from samadapt.data.checks.survey import survey
from samadapt.data.formats.base import FormatReader
from samadapt.data.formats.nifti.reader import NiftiReader
from samadapt.data.intensity import make_intensity
from samadapt.data.types import Case, SliceRef, Volume
from samadapt.data.volume_cache import PreparedVolume, ScannedVolumes, VolumeCache


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


def test_a_finetune_reads_each_file_once(
    make_scans: Callable[..., Path], run: Callable[..., Any], reads: Counter[str]
) -> None:
    run(make_scans(3), "data=nifti", "train.steps=2")
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
        assert dataset.scanned.take("case_01") is None
        reads.clear()


def test_without_room_files_are_read_again_with_the_same_result(
    make_msd: Callable[..., Path], reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_msd(2)
    expected = open_dataset("nifti", root).samples("case_01")
    reads.clear()
    monkeypatch.setattr("samadapt.data.volume_cache.MEMORY_LIMIT", 100)
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
    assert dataset.scanned.take("case_01") is None
    assert dataset.scanned.take("case_00") is not None
    assert isinstance(dataset.reader, FormatReader)
    dataset.sample(SliceRef("case_00", 0))  # taken above, so it is read again


def test_a_view_counts_as_the_array_that_it_keeps_in_memory() -> None:
    whole, labels = np.ones((4, 4, 4, 10), np.uint8), np.ones((4, 4, 4), np.uint8)
    scanned = ScannedVolumes(make_intensity("rgb"), limit=600)
    scanned.keep(Case("view", Path("x"), values=(1,)), Volume(whole[..., 0], labels))
    assert scanned.take("view") is None
    scanned.keep(Case("alone", Path("x"), values=(1,)), Volume(whole[..., 0].copy(), labels))
    assert scanned.take("alone") is not None
    assert scanned.nbytes == 0


def test_prepared_volumes_take_the_room_of_scanned_ones() -> None:
    array = np.ones((4, 4, 4), np.uint8)
    scanned = ScannedVolumes(make_intensity("rgb"), limit=300)
    for name in ("a", "b"):
        scanned.keep(Case(name, Path("x"), values=(1,)), Volume(array.copy(), array.copy()))
    cache = VolumeCache(limit=300, scanned=scanned)
    cache.get("c", lambda: PreparedVolume(array.copy(), array.copy()))
    assert scanned.take("a") is not None
    assert scanned.take("b") is None


@pytest.mark.parametrize("values", [(1, 255), (1, 256), (-1, 2), (70_000,), (2**40,)])
def test_labels_are_kept_in_a_small_type_without_change(values: tuple[int, ...]) -> None:
    labels = np.resize(np.array([0, *values], np.int64), (4, 5, 6))
    scanned = ScannedVolumes(make_intensity("ct:lung"))
    scanned.keep(Case("a", Path("x"), values=values), Volume(np.ones(labels.shape), labels))
    kept = scanned.take("a")
    assert kept is not None
    np.testing.assert_array_equal(kept.labels, labels)
    assert (kept.labels.dtype == np.uint8) == (values == (1, 255))


def test_another_rule_forgets_what_was_kept() -> None:
    scanned = ScannedVolumes(make_intensity("ct:lung"))
    volume = Volume(np.ones((4, 4, 4), np.float32), np.ones((4, 4, 4), np.uint8))
    scanned.keep(Case("a", Path("x"), values=(1,)), volume)
    scanned.keep_only({"a"}, make_intensity("ct:bone"))
    assert scanned.take("a") is None


def test_the_disk_cache_gives_the_same(make_msd: Callable[..., Path], tmp_path: Path) -> None:
    root = make_msd(3)
    plain = _all_samples(open_dataset("nifti", root))
    for _ in range(2):
        cached = _all_samples(open_dataset("nifti", root, cache_dir=tmp_path / "cache"))
        assert all(np.array_equal(a, b) for a, b in zip(plain, cached, strict=True))
    files = len(list((tmp_path / "cache").iterdir()))
    assert files == 2 * 2
    open_dataset("nifti", root, cache_dir=tmp_path / "cache", intensity="ct").volume("case_01")
    assert len(list((tmp_path / "cache").iterdir())) == files + 2  # another rule, other files


def test_the_memory_cache_drops_the_oldest() -> None:
    made: list[str] = []

    def make(name: str) -> Callable[[], PreparedVolume]:
        def read() -> PreparedVolume:
            made.append(name)
            return PreparedVolume(np.zeros(40, np.uint8), np.zeros(10, np.uint8))

        return read

    cache = VolumeCache(limit=100)
    for name in ("a", "b", "a", "c", "a", "b"):
        cache.get(name, make(name))
    assert made == ["a", "b", "c", "b"]


def _all_samples(dataset: Dataset) -> list[np.ndarray]:
    refs = dataset.slices("train")
    return [
        part for ref in refs for part in (dataset.sample(ref).image, dataset.sample(ref).labels)
    ]


@pytest.mark.parametrize(
    "options", [{}, {"instances": True, "classes": ["one"]}, {"intensity": "ct:lung+bone+brain"}]
)
def test_volumes_that_memory_cannot_hold_are_read_once(
    make_msd: Callable[..., Path],
    reads: Counter[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    root = make_msd(3)
    expected = [open_dataset("nifti", root, **options).samples(f"case_0{n}") for n in range(3)]
    for module in ("dataset", "volume_cache"):
        monkeypatch.setattr(f"samadapt.data.{module}.MEMORY_LIMIT", 100)
    monkeypatch.setattr("samadapt.data.volume_cache.PAGES_KEPT", 1000)
    folder = tmp_path / "scratch"
    dataset = open_dataset("nifti", root, scratch_dir=folder, **options)
    reads.clear()
    for _ in range(3):  # one case after the other, again and again
        for number in range(3):
            for one, other in zip(
                dataset.samples(f"case_0{number}"), expected[number], strict=True
            ):
                np.testing.assert_array_equal(one.image, other.image)
                np.testing.assert_array_equal(one.labels, other.labels)
                np.testing.assert_array_equal(one.instances, other.instances)
    assert set(reads.values()) == {1}
    assert dataset.volume("case_01").nbytes == 0  # a part of the file
    assert not dataset.lacks_room
    assert list(folder.iterdir()) == []  # the file has no name


def test_a_full_disk_leaves_volumes_to_be_read_again(
    make_msd: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_msd(2)
    monkeypatch.setattr("samadapt.data.dataset.MEMORY_LIMIT", 100)
    monkeypatch.setattr("samadapt.data.volume_cache.SPARED", 1 << 60)
    dataset = open_dataset("nifti", root, scratch_dir=tmp_path / "scratch")
    assert dataset.lacks_room
    assert not isinstance(dataset.volume("case_01").image, np.memmap)
