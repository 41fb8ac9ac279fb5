"""Each case and each patient is in one split; a slab keeps its distance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.data import Case, open_dataset
from samadapt.data.splits import make_fold, make_splits
from samadapt.errors import ConfigError


def test_listed_splits(make_msd: Callable[..., Path]) -> None:
    root = make_msd(4)
    dataset = open_dataset("nifti", root, split={"val": ["case_02"]})
    assert dataset.splits()["train"] == ["case_00", "case_01", "case_03"]
    assert dataset.splits()["val"] == ["case_02"]
    both = {"val": ["case_02"], "train": ["case_02"]}
    with pytest.raises(ConfigError, match="both splits: case_02"):
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


def test_nothing_is_held_out_whatever_is_listed(make_msd: Callable[..., Path]) -> None:
    cases = [Case(name, Path("x"), shape=(4, 4, 9), patient="p") for name in ("a", "b", "c")]
    for chosen in (None, {"val": ["b"]}):
        parts = make_splits(cases, chosen, 0)
        assert (parts.train, parts.val, parts.slab) == (["a", "b", "c"], [], None)
        assert "data.val_every=0" in parts.rule
    assert make_splits(cases[:1], None, 0).slab is None
    dataset = open_dataset("nifti", make_msd(1), val_every=0)
    assert not dataset.slices("val")
    assert "gap" not in {why for why, count in dataset.slices("train").left_out.items() if count}
    assert not [x for x in dataset.findings if x.code == "class_missing_in_split"]


def test_bad_slab() -> None:
    case = Case("only", Path("x"), shape=(4, 4, 9), spacing_mm=(1, 1, 1))
    with pytest.raises(ConfigError, match="rising fractions"):
        make_splits([case], {"slab": [0.6, 0.4]})


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
    with pytest.raises(ConfigError, match="of one patient, but in both splits: a, b") as caught:
        make_splits(cases, {"val": ["b"]})
    assert "Doe" not in str(caught.value)
    assert make_splits(cases, {"val": ["a", "b"]}).train == ["c"]
