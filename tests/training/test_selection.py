"""What chooses the best step has no slice and no case in common with what trains."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from samadapt.data.types import SliceRef
from samadapt.training.selection import EVERY, GAP, selection_split


@given(st.integers(2, 60), st.integers(1, 3), st.none() | st.integers(1, 5))
def test_cases_are_on_one_side(count, depth, limit):
    refs = [SliceRef(f"c{i:02d}", j) for i in range(count) for j in range(depth)]
    training, choosing = selection_split(refs, limit)
    assert training
    assert choosing
    assert not {ref.case for ref in training} & {ref.case for ref in choosing}
    assert sorted([*training, *choosing]) == refs
    cases = len({ref.case for ref in choosing})
    wanted = max(1, (count + EVERY // 2 - 1) // EVERY)
    assert cases == (wanted if limit is None else min(wanted, limit))


@given(st.integers(10, 200))
def test_a_single_volume_gives_a_block_with_gaps(count):
    refs = [SliceRef("only", index) for index in range(count)]
    training, choosing = selection_split(refs)
    assert len(choosing) == max(1, count // EVERY)
    numbers = [ref.index for ref in choosing]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert training
    for ref in training:
        assert ref.index < numbers[0] - GAP or ref.index > numbers[-1] + GAP


def test_without_choosing_cases_every_slice_trains():
    for names in (["only"], ["a", "b"], ["c"] * 30):
        refs = [SliceRef(name, index) for index, name in enumerate(names)]
        assert selection_split(refs, 0) == (refs, [])


def test_too_little_leaves_nothing_to_train_on():
    training, choosing = selection_split([SliceRef("only", 0)])
    assert not training
    assert len(choosing) == 1
    assert selection_split([]) == ([], [])
