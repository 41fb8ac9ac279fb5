"""Which slices a batch holds, and by which kind of prompt they train.

Everything follows from the seed and from the number ``drawn``, so a resumed run goes on with the
batches that it would have had, whatever else drew random numbers and however many processes there
are: each takes its share of every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from samadapt.errors import ConfigError
from samadapt.system import processes
from samadapt.training.batches import Sampler
from samadapt.training.keyed_random import BatchRandom

if TYPE_CHECKING:
    from samadapt.data.types import SliceRef
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.training.samples import TrainingSamples, TrainingStack

    Version = tuple[SliceRef, int]
    """A slice and the number of its variant; 0 is the slice itself."""

KIND_STREAM = 0x6B696E64
"""``kind`` in ASCII: tells the generator of kinds from others that start from the same seed."""


FORESEEN = 20_000
"""Stacks whose order is known in advance. To draw so many takes about a second."""


@dataclass(frozen=True)
class Drawn:
    """What a process trains on in one micro-batch.

    Attributes:
        ways: how the slices are prompted, with weights: one way of weight 1, or with
            ``prompts.every_kind`` each of the kinds with its share.
        items: the stacks of slices.
        random: a generator for each stack.
    """

    ways: list[tuple[PromptPolicy, float]]
    items: list[TrainingStack]
    random: BatchRandom


class BatchDraws:
    """Draws the kind of prompt of each batch, and the stacks of slices that it holds.

    With one kind of prompt every epoch visits each stack once. With ``negatives``, batches without
    prompts take this share of their stacks from those that hold no class. With several kinds each
    batch draws its kind, and takes the next stacks of that kind: all of them without prompts, else
    those with an object.

    Args:
        samples: the training slices, whose policy says which kinds there are.
        refs: the slices to train on.
        batch_size: stacks in one batch of all processes together.
        seed: of order, kinds and random numbers.

    Raises:
        ConfigError: no slice has an object to prompt.
    """

    def __init__(
        self,
        samples: TrainingSamples,
        refs: Sequence[SliceRef],
        batch_size: int,
        seed: int,
    ) -> None:
        policy = samples.policy
        self.policies = {kind: policy.of_kind(kind) for kind in policy.kinds}
        self.shares, self.every_kind = policy.shares, policy.every_kind
        self.seed, self.batch_size = seed, batch_size
        self.items: dict[str, list[TrainingStack]] = {}
        self._samplers: dict[str, Sampler] = {}
        prompted = [own for own in self.policies.values() if not own.is_semantic]
        # All kinds with prompts need an object, and reading the slices takes time.
        needs_object = policy.is_mixed and not (policy.every_kind and policy.finds_classes)
        with_object = samples.of(prompted[0]).usable(refs) if needs_object else refs
        for kind, own in self.policies.items():
            items, rare = samples.of(own).items(refs if own.is_semantic else with_object), None
            if own.is_semantic and own.negatives is not None:
                # Stacks without any class come last, as a part of their own.
                empty = [item for item in items if samples.is_empty(item)]
                items = [*(item for item in items if not samples.is_empty(item)), *empty]
                if 0 < len(empty) < len(items):
                    rare = len(empty), own.negatives
            if not items:
                raise ConfigError(
                    f"data: none of {len(refs)} training slices holds an object for "
                    f"prompts={kind}; check the masks of the training cases, or split the cases "
                    "otherwise (data.val_every, data.fold)"
                )
            self.items[kind] = items
            self._samplers[kind] = Sampler(len(items), batch_size, seed, rare)

    @property
    def drawn(self) -> int:
        """Stacks that all processes have drawn so far."""
        return next(iter(self._samplers.values())).drawn

    @drawn.setter
    def drawn(self, count: int) -> None:
        for sampler in self._samplers.values():
            sampler.drawn = count

    def next(self) -> Drawn:
        """Return what this process trains on in the next batch."""
        kind, first = self._kind(), self.drawn
        # Every kind moves on, so that one number says where all of them are.
        places = {name: sampler.next() for name, sampler in self._samplers.items()}
        items = [self.items[kind][place] for place in places[kind]]
        own = processes.share(range(first, first + self.batch_size))
        random = BatchRandom.at(self.seed, first // self.batch_size, own)
        if not self.every_kind:
            return Drawn([(self.policies[kind], 1.0)], items, random)
        ways = [(one, self.shares[name]) for name, one in self.policies.items()]
        return Drawn(ways, items, random)

    def _kind(self) -> str:
        """Return the kind of the next batch, which is that of all processes."""
        if len(self.policies) == 1 or self.every_kind:
            return "semantic" if "semantic" in self.policies else next(iter(self.policies))
        number = self.drawn // self.batch_size
        rng = np.random.default_rng([self.seed, KIND_STREAM, number])
        return str(rng.choice(list(self.shares), p=list(self.shares.values())))


def first_read(draws: BatchDraws, samples: TrainingSamples, batches: int | None) -> list[Version]:
    """Return the versions of slices that the next batches read, in the order of their first use.

    Args:
        draws: draws the batches of one process; it is left as it was.
        samples: the training slices, whose versions are fixed.
        batches: how many batches; None: as many as ``FORESEEN`` allows.
    """
    found: dict[Version, None] = {}
    began = draws.drawn
    limit = -(-FORESEEN // draws.batch_size)
    for _ in range(limit if batches is None else min(batches, limit)):
        drawn = draws.next()
        for item, rng in zip(drawn.items, drawn.random.own, strict=True):
            number = samples.draw_variant(rng)
            found.update(dict.fromkeys((ref, number) for ref in item.refs))
    draws.drawn = began
    return list(found)
