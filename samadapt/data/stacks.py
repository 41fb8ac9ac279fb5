"""Stacks: neighbouring slices of a volume that are seen together.

The encoder sees them together with ``peft.depth``, a dense head with ``head.depth``.

Slice i of a volume belongs to stack i // size. This does not depend on which slices are used for
training, prompted or scored, so the embedding of a slice is the same in training, evaluation and
prediction. If the last stack is not full, it repeats the last slice. A volume of 7 slices in stacks
of 3::

    0 1 2 | 3 4 5 | 6 6 6
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from samadapt.data.types import SliceRef
from samadapt.errors import ConfigError


@dataclass(frozen=True)
class Stacks:
    """How volumes are cut into stacks.

    Attributes:
        size: slices of a stack; 1: the encoder sees each slice alone.
        count: returns the number of slices of a case; it is not called where ``size`` is 1.
    """

    size: int
    count: Callable[[str], int]

    def of(self, ref: SliceRef) -> list[SliceRef]:
        """Return the stack of a slice; the slice itself is at position ``place(ref)``."""
        if self.size == 1:
            return [ref]
        last, first = self.count(ref.case) - 1, ref.index - self.place(ref)
        return [SliceRef(ref.case, min(first + i, last)) for i in range(self.size)]

    def place(self, ref: SliceRef) -> int:
        """Return a slice's position in its stack."""
        return ref.index % self.size

    def whole(self, refs: Sequence[SliceRef]) -> tuple[list[SliceRef], list[int]]:
        """Return the stacks of some slices one after the other, each stack once.

        Returns:
            The slices of the stacks, and the position of each slice of ``refs`` in that list.
        """
        # Where each stack begins in ``members``, by case and number of the stack.
        starts: dict[tuple[str, int], int] = {}
        members: list[SliceRef] = []
        for ref in refs:
            if (ref.case, ref.index // self.size) not in starts:
                starts[ref.case, ref.index // self.size] = len(members)
                members += self.of(ref)
        return members, [starts[r.case, r.index // self.size] + self.place(r) for r in refs]

    def groups(self, refs: Sequence[SliceRef]) -> Iterator[list[SliceRef]]:
        """Yield the slices of each stack.

        Args:
            refs: sorted slices.
        """
        for _, group in groupby(refs, key=lambda ref: (ref.case, ref.index // self.size)):
            yield list(group)

    def parts(self, refs: Sequence[SliceRef], at_once: int) -> Iterator[list[SliceRef]]:
        """Yield the slices of several stacks together.

        Args:
            refs: sorted slices.
            at_once: slices that the encoder takes at once; as many stacks as fit go together.
        """
        groups, stacks = list(self.groups(refs)), max(1, at_once // self.size)
        for start in range(0, len(groups), stacks):
            yield [ref for group in groups[start : start + stacks] for ref in group]


ALONE = Stacks(1, lambda case: 1)
"""No stacks: the encoder sees each slice alone."""


AUTO_STACK = 4
"""Slices of a stack where the data decide. A batch of 8 then holds two stacks, which is the least
that makes a gradient of more than one place."""


def decide_stack(asked: int | Literal["auto"], depths: Sequence[int]) -> int:
    """Return the number of slices that are seen together.

    Args:
        asked: the number, or ``"auto"``: ``AUTO_STACK`` for several volumes. One volume, of which
            a part is held out, has no room for the gap between the parts.
        depths: number of slices of each case.
    """
    if asked != "auto":
        return asked
    return AUTO_STACK if len(depths) > 1 and min(depths) > 1 else 1


def stacks_in_batch(batch_size: int, size: int) -> int:
    """Return how many stacks a batch of slices contains.

    Raises:
        ConfigError: the batch size is not a multiple of the stack's size.
    """
    if batch_size % size:
        more = size * (batch_size // size + 1)
        raise ConfigError(
            f"train.batch_size must be a multiple of {size}, the slices of a volume that are "
            f"seen together (peft.depth, head.depth); got {batch_size}; use {more}"
        )
    return batch_size // size
