"""The method trains the last blocks whole."""

from __future__ import annotations

from samadapt.adapters.injection import inject
from samadapt.methods.full import FullFineTuning
from samadapt.methods.late_blocks import LateBlocks


def test_two_blocks_by_default(fresh):
    late, full = fresh(), fresh()
    injection = inject(late, LateBlocks(decoder="frozen"))
    assert injection.first_trainable_block == injection.depth - 2
    same = inject(full, FullFineTuning(blocks="last:2", decoder="frozen"))
    assert set(injection.parameters) == set(same.parameters)


def test_all_blocks_are_still_blocks_only(fresh):
    injection = inject(fresh(), LateBlocks(blocks="all", decoder="frozen"))
    assert injection.first_trainable_block == 0
    assert set(injection.groups) == {f"block {i}" for i in range(injection.depth)}
