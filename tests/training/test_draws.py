"""Which kind of prompt a batch has, and which slices."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from samadapt.data.types import SliceRef
from samadapt.errors import ConfigError
from samadapt.prompts.policy import PromptPolicy
from samadapt.prompts.shares import normalised
from samadapt.system import processes
from samadapt.system.launchers import Place
from samadapt.training.draws import BatchDraws

SHARES = {"box": 1, "interactive": 1, "semantic": 2}
EMPTY = range(0, 12, 3)
REFS = [SliceRef("volume", index) for index in range(12)]


@dataclass(frozen=True)
class Slices:
    """Training samples without images: every third slice holds nothing."""

    policy: PromptPolicy

    def of(self, policy):
        return Slices(policy)

    def usable(self, refs):
        return [ref for ref in refs if self.policy.finds_classes or ref.index not in EMPTY]

    def is_empty(self, item):
        return item.index in EMPTY

    def items(self, refs):
        return list(refs)


def draws_of(shares=None, seed=0, size=2):
    policy = PromptPolicy("mixed", shares=normalised(shares or SHARES))
    return BatchDraws(Slices(policy), REFS, size, seed)


def several(draws, count):
    drawn = [draws.next() for _ in range(count)]
    return [(one.ways[0][0].kind, [ref.index for ref in one.items]) for one in drawn]


def test_slices_without_any_object_cannot_be_prompted():
    policy = PromptPolicy("mixed", shares=normalised(SHARES))
    empty = [REFS[index] for index in EMPTY]
    with pytest.raises(ConfigError, match="none of 4 training slices holds an object"):
        BatchDraws(Slices(policy), empty, 2, seed=0)


def test_kinds_come_by_their_shares_and_prompts_get_slices_with_objects():
    found = several(draws_of(), 800)
    counts = Counter(kind for kind, _ in found)
    for kind, share in normalised(SHARES).items():
        assert counts[kind] == pytest.approx(800 * share, abs=60)
    for kind, indices in found:
        assert kind == "semantic" or not set(indices) & set(EMPTY)
    seen = {index for kind, indices in found if kind == "semantic" for index in indices}
    assert seen == set(range(12))


def test_a_resumed_run_goes_on_with_the_same_batches():
    whole = several(draws_of(), 30)
    np.random.default_rng(0).random(5)  # what others draw does not matter
    resumed = draws_of()
    resumed.drawn = 2 * 11
    assert several(resumed, 19) == whole[11:]
    assert several(draws_of(seed=1), 30) != whole


def test_processes_take_shares_of_the_same_batches(monkeypatch):
    """Kinds, slices and random numbers are those of a single process."""

    def drawn():
        draws = draws_of(size=5)
        return [draws.next() for _ in range(20)]

    whole, parts = drawn(), []
    for rank in range(2):
        monkeypatch.setattr(processes, "_place", Place(rank, 2))
        parts.append(drawn())
    for one, *others in zip(whole, *parts, strict=True):
        assert all(one.ways == other.ways for other in others)
        for rank, other in enumerate(others):
            assert other.items == one.items[rank::2]
            assert other.random.seeds == one.random.seeds[rank::2]
            for mine, its in zip(one.random.own[rank::2], other.random.own, strict=True):
                assert mine.bit_generator.state == its.bit_generator.state


def test_one_kind_visits_every_slice_once_an_epoch():
    draws = BatchDraws(Slices(PromptPolicy("box")), REFS, 3, 0)
    found = several(draws, 4)
    assert sorted(index for _, indices in found for index in indices) == list(range(12))
    assert {kind for kind, _ in found} == {"box"}


def test_empty_slices_come_at_their_share_and_both_parts_in_epochs():
    samples = Slices(PromptPolicy("semantic", negatives=0.25))
    draws = BatchDraws(samples, REFS, 4, 0)
    found = several(draws, 8)
    for _, indices in found:
        assert len(set(indices) & set(EMPTY)) == 1
    empty = [index for _, indices in found for index in indices if index in EMPTY]
    filled = [index for _, indices in found for index in indices if index not in EMPTY]
    assert sorted(empty[:4]) == sorted(empty[4:]) == list(EMPTY)
    assert sorted(filled[:8]) == sorted(set(range(12)) - set(EMPTY))
    resumed = BatchDraws(samples, REFS, 4, 0)
    resumed.drawn = 4 * 5
    assert several(resumed, 3) == found[5:]
    none = several(BatchDraws(Slices(PromptPolicy("semantic", negatives=0.0)), REFS, 4, 0), 8)
    assert not {index for _, indices in none for index in indices} & set(EMPTY)


def test_slices_that_are_all_alike_are_one_part():
    samples = Slices(PromptPolicy("semantic", negatives=0.25))
    for refs in ([REFS[i] for i in EMPTY], [ref for i, ref in enumerate(REFS) if i not in EMPTY]):
        found = several(BatchDraws(samples, refs, 2, 0), len(refs) // 2)
        assert len({i for _, indices in found for i in indices}) == len(refs)


def test_every_kind_trains_on_all_slices_by_its_share():
    policy = PromptPolicy("mixed", shares=normalised(SHARES), every_kind=True)
    draws = BatchDraws(Slices(policy), REFS, 3, 0)
    seen = []
    for _ in range(4):
        drawn = draws.next()
        assert {own.kind: weight for own, weight in drawn.ways} == normalised(SHARES)
        seen += [ref.index for ref in drawn.items]
    assert sorted(seen) == list(range(12))
    prompted = normalised({"box": 1, "point": 1})
    policy = PromptPolicy("mixed", shares=prompted, every_kind=True)
    indices = {
        ref.index for _ in range(9) for ref in BatchDraws(Slices(policy), REFS, 3, 0).next().items
    }
    assert not indices & set(EMPTY)
