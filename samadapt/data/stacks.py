"""Stacks: neighbouring slices of a volume that the encoder sees together (``Method.stack``).

Slice i of a volume belongs to stack i // size, whichever slices are trained on, prompted or scored;
the last stack repeats the last slice. So a slice's embedding is the same in training, evaluation
and prediction, however the volume is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from samadapt.data.types import SliceRef
from samadapt.errors import ConfigError


@dataclass(frozen=True)
class Stacks:
    """How volumes are cut into stacks.

    Attributes:
        size: slices of a stack; 1: each slice is seen by itself.
        count: a case's number of slices; not asked for where ``size`` is 1.
    """

    size: int
    count: Callable[[str], int]

    def of(self, ref: SliceRef) -> list[SliceRef]:
        """Return the stack of a slice, which lies in it at ``place(ref)``."""
        if self.size == 1:
            return [ref]
        last, first = self.count(ref.case) - 1, ref.index - self.place(ref)
        return [SliceRef(ref.case, min(first + i, last)) for i in range(self.size)]

    def place(self, ref: SliceRef) -> int:
        """Return a slice's position in its stack."""
        return ref.index % self.size

    def whole(self, refs: Sequence[SliceRef]) -> tuple[list[SliceRef], list[int]]:
        """Return the stacks of some slices, each once and one behind the other.

        Returns:
            The slices of the stacks, and the position of each of ``refs`` among them.
        """
        starts: dict[tuple[str, int], int] = {}
        members: list[SliceRef] = []
        for ref in refs:
            if (ref.case, ref.index // self.size) not in starts:
                starts[ref.case, ref.index // self.size] = len(members)
                members += self.of(ref)
        return members, [starts[r.case, r.index // self.size] + self.place(r) for r in refs]

    def groups(self, refs: Sequence[SliceRef]) -> Iterator[list[SliceRef]]:
        """Yield sorted slices by stack."""
        for _, group in groupby(refs, key=lambda ref: (ref.case, ref.index // self.size)):
            yield list(group)

    def parts(self, refs: Sequence[SliceRef], at_once: int) -> Iterator[list[SliceRef]]:
        """Yield sorted slices, those of as many stacks together as have ``at_once`` slices."""
        groups, stacks = list(self.groups(refs)), max(1, at_once // self.size)
        for start in range(0, len(groups), stacks):
            yield [ref for group in groups[start : start + stacks] for ref in group]


ALONE = Stacks(1, lambda case: 1)
"""Each slice by itself."""


def stacks_in_batch(batch_size: int, size: int) -> int:
    """Return how many stacks a batch of slices holds.

    Raises:
        ConfigError: it would cut a stack.
    """
    if batch_size % size:
        more = size * (batch_size // size + 1)
        raise ConfigError(
            f"train.batch_size must be a multiple of peft.depth={size}, since a batch holds whole "
            f"stacks of slices; got {batch_size}; use {more}"
        )
    return batch_size // size
