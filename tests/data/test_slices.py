"""Splits, slabs, slices and the policy for empty ones; the caches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.data import Case, Dataset, SliceRef, open_dataset
from samadapt.data.classes import make_table
from samadapt.data.formats.base import label_presence
from samadapt.data.splits import make_fold, make_splits
from samadapt.data.volume_cache import PreparedVolume, VolumeCache
from samadapt.errors import ConfigError


def test_slices_are_those_of_the_masks(make_msd: Callable[..., Path]) -> None:
    dataset = open_dataset("nifti", make_msd(6))
    for name in dataset.train:
        filled = dataset.volume_labels(name).any(axis=(0, 1))
        indices = [ref.index for ref in dataset.slices("train") if ref.case == name]
        assert indices == np.flatnonzero(filled).tolist() == [0, 1, 2, 3]
        for column in range(2):
            has_class = (dataset.volume_labels(name) == column + 1).any(axis=(0, 1))
            np.testing.assert_array_equal(dataset.presence(name)[:, column], has_class)
    assert dataset.slices("train").left_out == {"empty": 8, "step": 0, "gap": 0}


def test_validation_keeps_every_slice(make_msd: Callable[..., Path]) -> None:
    dataset = open_dataset("nifti", make_msd(6), slice_step=3, empty_slices="drop")
    assert len(dataset.slices("val")) == 2 * 6
    assert dataset.slices("val").left_out == {"empty": 0, "step": 0, "gap": 0}
    taken = dataset.slices("train")
    assert {ref.index for ref in taken} == {0, 3}
    assert taken.left_out == {"empty": 0, "step": 16, "gap": 0}
    assert {ref.case for ref in taken}.isdisjoint(ref.case for ref in dataset.slices("val"))


def test_policies_for_empty_slices(make_msd: Callable[..., Path]) -> None:
    root = make_msd(6)
    dataset = open_dataset("nifti", root, empty_slices="keep")
    assert len(dataset.slices("train")) == 24
    assert len(dataset.slices("train", empty="drop")) == 16
    half = open_dataset("nifti", root, empty_slices=0.5, seed=1)
    assert len(half.slices("train")) == 20
    assert half.slices("train").left_out["empty"] == 4
    assert half.slices("train") == open_dataset("nifti", root, empty_slices=0.5, seed=1).slices(
        "train"
    )
    for seed in range(2, 9):  # another seed chooses others
        other = open_dataset("nifti", root, empty_slices=0.5, seed=seed)
        if other.slices("train") != half.slices("train"):
            break
    else:
        pytest.fail("the seed is not used")
    for bad in ("some", 1.5, -0.1):
        with pytest.raises(ConfigError, match="empty_slices"):
            open_dataset("nifti", root, empty_slices=bad)


def test_max_cases_reads_the_first_by_name(make_msd: Callable[..., Path]) -> None:
    root = make_msd(6)
    (root / "imagesTr" / "case_05.nii.gz").write_bytes(b"")
    dataset = open_dataset("nifti", root, max_cases=3)
    assert [case.name for case in dataset.cases] == ["case_00", "case_01", "case_02"]


def test_listed_splits(make_msd: Callable[..., Path]) -> None:
    root = make_msd(4)
    dataset = open_dataset("nifti", root, split={"val": ["case_02"]})
    assert dataset.splits()["train"] == ["case_00", "case_01", "case_03"]
    assert dataset.splits()["val"] == ["case_02"]
    both = {"val": ["case_02"], "train": ["case_02"]}
    with pytest.raises(ConfigError, match="both sides: case_02"):
        open_dataset("nifti", root, split=both)
    with pytest.raises(ConfigError, match="case_9"):
        open_dataset("nifti", root, split={"val": ["case_9"]})
    with pytest.raises(ConfigError, match="did you mean 'val'"):
        open_dataset("nifti", root, split={"vall": ["case_02"]})
    with pytest.raises(ConfigError, match="one volume"):
        open_dataset("nifti", root, split={"slab": [0.4, 0.6]})
    with pytest.raises(ConfigError, match="val_every"):
        open_dataset("nifti", root, val_every=1)


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(2, 10))
def test_every_case_is_on_exactly_one_side(count: int, every: int) -> None:
    cases = [Case(f"c{index:03d}", Path("x")) for index in range(count)]
    parts = make_splits(cases, None, every)
    assert sorted([*parts.train, *parts.val]) == [case.name for case in cases]
    assert parts.val == [f"c{index:03d}" for index in range(0, count, every)]


@settings(deadline=None)
@given(
    st.integers(5, 200),
    st.floats(0.2, 5),
    st.floats(0, 0.8),
    st.floats(0.05, 0.2),
    st.floats(0, 20),
)
def test_a_slab_keeps_its_distance(
    depth: int, spacing: float, low: float, width: float, gap_mm: float
) -> None:
    case = Case("only", Path("x"), shape=(4, 4, depth), spacing_mm=(1, 1, spacing))
    slab = make_splits([case], {"slab": [low, low + width], "gap_mm": gap_mm}).slab
    assert slab is not None
    train, val = set(slab.indices("train")), set(slab.indices("val"))
    assert val
    assert all(0 <= index < depth for index in train | val)
    assert val == set(range(min(val), max(val) + 1))
    for index in train:
        distance = min(abs(index - held) for held in (min(val), max(val)))
        assert (distance - 1) * spacing >= gap_mm - 1e-6
        assert distance > 1


def test_bad_slab() -> None:
    case = Case("only", Path("x"), shape=(4, 4, 9), spacing_mm=(1, 1, 1))
    with pytest.raises(ConfigError, match="rising fractions"):
        make_splits([case], {"slab": [0.6, 0.4]})


@settings(deadline=None)
@given(st.lists(st.integers(-3, 70000), min_size=12, max_size=12))
def test_presence_is_what_a_plain_search_finds(flat: list[int]) -> None:
    labels = np.array(flat, dtype=np.int32).reshape(2, 2, 3)
    values, presence, zeros = label_presence(labels, [np.s_[:, :, i] for i in range(3)])
    assert list(values) == sorted(set(flat) - {0})
    assert zeros.tolist() == [(labels[:, :, index] == 0).any() for index in range(3)]
    for index in range(3):
        found = set(labels[:, :, index].ravel().tolist()) - {0}
        assert {v for v, there in zip(values, presence[index], strict=True) if there} == found


def test_samples(make_msd: Callable[..., Path], tools: Any) -> None:
    dataset = open_dataset("nifti", make_msd(2))
    samples = dataset.samples("case_01")
    assert [sample.index for sample in samples] == list(range(6))
    sample = dataset.sample(SliceRef("case_01", 2))
    image, _ = tools.volume_pair(1)
    low, high = np.percentile(image, (0.5, 99.5))
    expected = np.clip((image - low) / (high - low), 0, 1) * 255
    upright = expected[::-1, ::-1, 2].T
    assert sample.image.shape == (9, 8, 3)
    assert sample.image.dtype == np.uint8
    assert sample.labels.dtype == np.int16
    for channel in range(3):
        assert np.abs(sample.image[:, :, channel] - upright).max() <= 0.51
    sample.labels[:] = 7  # a sample is the caller's own
    assert dataset.sample(SliceRef("case_01", 2)).labels.max() <= 2


def _all_samples(dataset: Dataset) -> list[np.ndarray]:
    refs = dataset.slices("train")
    return [
        part for ref in refs for part in (dataset.sample(ref).image, dataset.sample(ref).labels)
    ]


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


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_folds_hold_out_every_case_once_and_no_patient_twice(
    patients: list[int], folds: int
) -> None:
    cases = [
        Case(f"case_{n:02}", Path("x"), patient=f"p{patient}" if patient else "")
        for n, patient in enumerate(patients)
    ]
    people = len({case.patient or case.name for case in cases})
    if people < folds:
        with pytest.raises(ConfigError, match="Use fewer folds"):
            make_fold(cases, 0, folds)
        return
    held: list[str] = []
    for fold in range(folds):
        parts = make_fold(cases, fold, folds)
        assert sorted([*parts.train, *parts.val]) == [case.name for case in cases]
        sides = [
            {case.patient for case in cases if case.name in names and case.patient}
            for names in (parts.train, parts.val)
        ]
        assert not sides[0] & sides[1]
        assert parts.val
        held += parts.val
    assert sorted(held) == [case.name for case in cases]
    assert make_fold(cases, 0, folds).val == make_splits(cases, None, folds).val


def test_a_listed_patient_on_both_sides_is_refused_without_naming_him() -> None:
    cases = [Case(name, Path("x"), patient="Doe^John") for name in ("a", "b")]
    cases.append(Case("c", Path("x")))
    with pytest.raises(ConfigError, match="of one patient, but on both sides: a, b") as caught:
        make_splits(cases, {"val": ["b"]})
    assert "Doe" not in str(caught.value)
    assert make_splits(cases, {"val": ["a", "b"]}).train == ["c"]


def test_values_below_zero_are_no_class_unless_it_is_said() -> None:
    with pytest.raises(ConfigError, match=r"the masks hold values below 0 \(-1\)"):
        make_table(None, None, [-1, 1])
    table = make_table(None, {"organ": 1}, [-1, 1])
    assert table.remap(np.array([[-1, 0, 1]])).tolist() == [[0, 0, 1]]
