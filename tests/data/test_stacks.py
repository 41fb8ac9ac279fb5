"""Slices belong to stacks at fixed places, and no stack has slices of both splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samadapt.config.schema import Head
from samadapt.data.dataset import open_dataset
from samadapt.data.stacks import (
    ALONE,
    AUTO_STACK,
    Stacks,
    decide_stack,
    stacks_in_batch,
)
from samadapt.data.types import SliceRef
from samadapt.errors import ConfigError


def refs(case: str, *indices: int) -> list[SliceRef]:
    return [SliceRef(case, index) for index in indices]


def test_the_last_stack_repeats_the_last_slice() -> None:
    stacks = Stacks(3, {"a": 7, "b": 2}.__getitem__)
    assert stacks.of(SliceRef("a", 4)) == refs("a", 3, 4, 5)
    assert stacks.of(SliceRef("a", 6)) == refs("a", 6, 6, 6)
    assert stacks.of(SliceRef("b", 0)) == refs("b", 0, 1, 1)
    assert ALONE.of(SliceRef("a", 6)) == refs("a", 6)


def test_stacks_are_read_once_each() -> None:
    stacks = Stacks(3, {"a": 7, "b": 2}.__getitem__)
    whole, rows = stacks.whole([*refs("a", 5, 1), *refs("b", 1), *refs("a", 3)])
    assert whole == [*refs("a", 3, 4, 5, 0, 1, 2), *refs("b", 0, 1, 1)]
    assert rows == [2, 4, 7, 0]
    assert ALONE.whole(refs("a", 5, 1)) == (refs("a", 5, 1), [0, 1])


@given(st.integers(1, 5), st.integers(1, 12), st.sets(st.integers(0, 30), min_size=1))
def test_parts_cut_no_stack(size: int, at_once: int, chosen: set[int]) -> None:
    stacks = Stacks(size, lambda case: 31)
    parts = list(stacks.parts(refs("a", *sorted(chosen)), at_once))
    assert [ref.index for part in parts for ref in part] == sorted(chosen)
    numbers = [{ref.index // size for ref in part} for part in parts]
    assert all(not a & b for i, a in enumerate(numbers) for b in numbers[:i])
    assert all(len(found) <= max(1, at_once // size) for found in numbers)
    if size == 1:
        assert all(len(part) == at_once for part in parts[:-1])


@pytest.mark.parametrize("stack", [1, 2, 3])
def test_no_stack_of_a_single_volume_is_on_both_sides(
    make_msd: Callable[..., Path], stack: int
) -> None:
    dataset = open_dataset("nifti", make_msd(1), stack=stack)
    sides = [{ref.index // stack for ref in dataset.slices(side)} for side in ("train", "val")]
    assert dataset.case_splits.slab is not None
    assert dataset.case_splits.slab.gap >= stack - 1
    assert not sides[0] & sides[1]


def test_a_batch_is_whole_stacks() -> None:
    assert stacks_in_batch(6, 3) == 2
    assert stacks_in_batch(4, 1) == 4
    with pytest.raises(ConfigError, match=r"multiple of 3.*got 4; use 6"):
        stacks_in_batch(4, 3)


def test_volumes_are_seen_in_stacks_where_the_data_decide() -> None:
    assert decide_stack(3, [1, 1]) == 3
    assert decide_stack("auto", [20, 30]) == AUTO_STACK
    # The number is written out there, because help texts do not import the data layer.
    described = {item.name: item for item in fields(Head)}["depth"]
    assert f"auto: {AUTO_STACK} if all cases are volumes" in str(described.default)
    assert decide_stack("auto", [20, 1]) == 1
    assert decide_stack("auto", [20]) == 1
