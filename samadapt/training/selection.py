"""Set a part of the training data aside to choose the best step.

The final scores must come from cases that no decision has seen. So the held-out cases cannot choose
the best step; some of the training cases do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samadapt.data.tiles import PictureTile
    from samadapt.data.types import SliceRef

EVERY = 10
"""One of this many training cases chooses the best step; at least one does."""

GAP = 3
"""Slices left out on both sides of the choosing slices of a single volume, since neighbouring
slices look alike."""


def selection_split(
    refs: Sequence[SliceRef],
    cases: int | None = None,
    owner: Callable[[str], str] = lambda case: case,
    tile: Callable[[SliceRef], PictureTile | None] = lambda ref: None,
    gap: int = GAP,
) -> tuple[list[SliceRef], list[SliceRef]]:
    """Divide training slices into slices that train and slices that choose the best step.

    With several cases, every tenth case chooses. A single volume gives a tenth of its slices, in
    one block after a quarter of the volume, with a gap on both sides. For a single picture in
    tiles, tiles that overlap a choosing tile are left out.

    Args:
        refs: the training slices, sorted.
        cases: largest number of cases that choose; the others train. 0: every slice trains.
        owner: returns the patient of a case. All cases of a patient stay together.
        tile: returns the place of a tile in its picture, or None for a slice.
        gap: slices left out on both sides of the block of a single volume, at least ``GAP``.

    Returns:
        (training slices, choosing slices). No slice and no case is in both.
    """
    if cases == 0:
        return list(refs), []
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
    if len(owners) == 1:  # a single patient: divide by case
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
