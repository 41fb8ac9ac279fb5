"""The part of the training data that chooses the best step, apart from what is reported.

A step chosen on the held-out cases would be chosen for them: the scores at the end must come from
cases that no decision has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samadapt.data.tiles import PictureTile
    from samadapt.data.types import SliceRef

EVERY = 10
"""One case in so many is kept from training to choose the best step; at least one."""

GAP = 3
"""Slices left out on either side where they come from a single volume."""


def selection_split(
    refs: Sequence[SliceRef],
    cases: int | None = None,
    owner: Callable[[str], str] = lambda case: case,
    tile: Callable[[SliceRef], PictureTile | None] = lambda ref: None,
    gap: int = GAP,
) -> tuple[list[SliceRef], list[SliceRef]]:
    """Divide training slices into those that train and those that choose the best step.

    With several cases every tenth case chooses. A single volume gives a tenth of its slices, in one
    block at a quarter of the way, with a gap on either side; of a single picture's tiles those
    that overlap a choosing one are left out.

    Args:
        refs: the training slices, sorted.
        cases: at most so many cases choose; the others that were drawn train.
        owner: case to patient, whose cases stay together.
        tile: where a tile lies in its picture; None of a slice.
        gap: slices left out on either side of the block of a single volume, ``GAP`` at least.

    Returns:
        (training slices, choosing slices); no slice or case is in both.
    """
    names = list(dict.fromkeys(ref.case for ref in refs))
    if len(names) == 1:
        size = max(1, len(refs) // EVERY)
        start = max(0, len(refs) // 4 - size // 2)
        choosing = list(refs[start : start + size])
        if places := [place for ref in choosing if (place := tile(ref)) is not None]:
            others = [*refs[:start], *refs[start + size :]]
            return [ref for ref in others if not _touches(tile(ref), places)], choosing
        gap = max(gap, GAP)
        left = refs[: max(0, start - gap)]
        right = refs[start + size + gap :]
        return [*left, *right], choosing
    owners = list(dict.fromkeys(map(owner, names)))
    if len(owners) == 1:  # one patient alone: by case
        owners, owner = names, lambda case: case
    chosen = set(owners[EVERY // 2 :: EVERY] or owners[-1:])
    if cases is not None:
        chosen = set(sorted(chosen)[:cases])
    return (
        [ref for ref in refs if owner(ref.case) not in chosen],
        [ref for ref in refs if owner(ref.case) in chosen],
    )


def _touches(one: PictureTile | None, others: Sequence[PictureTile]) -> bool:
    return one is not None and any(one.overlaps(other) for other in others)
