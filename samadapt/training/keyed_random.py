"""Where the random numbers of a training come from.

Each slice of each batch has a generator of its own, which follows from the seed and from its place
in the endless order of the training. So the numbers depend neither on how many processes share a
batch, nor on what was drawn before, and a resumed run needs nothing but its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

SLICE_STREAM, MODEL_STREAM, BATCH_STREAM = 0x736C6963, 0x6D6F6465, 0x62617463
"""``slic``, ``mode`` and ``batc`` in ASCII: tell generators apart that start from the same seed."""


@dataclass(frozen=True)
class BatchRandom:
    """The generators of one batch.

    Attributes:
        shared: draws what concerns the batch as a whole, alike in all processes.
        own: one generator for each slice, or for each stack of slices.
        seeds: a number for each stack, for what is drawn inside the model.
    """

    shared: np.random.Generator
    own: Sequence[np.random.Generator]
    seeds: tuple[int, ...] = ()

    @classmethod
    def at(cls, seed: int, batch: int, places: Sequence[int]) -> BatchRandom:
        """Return the generators of batch number ``batch``, whose stacks lie at these places."""
        shared = np.random.default_rng([seed, BATCH_STREAM, batch])
        own = [np.random.default_rng([seed, SLICE_STREAM, place]) for place in places]
        inside = [np.random.default_rng([seed, MODEL_STREAM, place]) for place in places]
        return cls(shared, own, tuple(int(rng.integers(2**62)) for rng in inside))

    @classmethod
    def of(cls, rng: np.random.Generator, count: int) -> BatchRandom:
        """Return generators for ``count`` slices that are all the same one."""
        return cls(rng, [rng] * count)

    def of_slices(self, lengths: Sequence[int]) -> BatchRandom:
        """Return the generators of all slices; those of a stack share the one of the stack."""
        pairs = zip(self.own, lengths, strict=True)
        return replace(self, own=[rng for rng, length in pairs for _ in range(length)])

    def some(self, places: Sequence[int]) -> BatchRandom:
        """Return the generators of the slices at these places."""
        return replace(self, own=[self.own[place] for place in places])
