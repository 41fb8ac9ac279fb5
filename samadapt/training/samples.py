"""Training slices before they are prompted: which can be trained on, and how they are augmented.

A training step draws stacks (``data/stacks.py``), which have one slice for most methods. All
training slices of a stack have the loss, as in Medical-SAM-Adapter, because the encoder runs on
them anyway. The encoder only sees its other slices: those without an object, those held out, and
those that ``data.slice_step`` skips.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from samadapt.errors import ConfigError
from samadapt.prompts.annotations import has_prompts, trainable_prompts
from samadapt.prompts.simulate import objects_in
from samadapt.training.augment import augment, vary

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from samadapt.data.dataset import Dataset
    from samadapt.data.stacks import Stacks
    from samadapt.data.types import Sample, SliceRef
    from samadapt.prompts.policy import PromptPolicy


@dataclass(frozen=True)
class TrainingStack:
    """A stack of slices, which a step draws together.

    Attributes:
        refs: the slices in order.
        trained: positions of those that have the loss.
    """

    refs: tuple[SliceRef, ...]
    trained: tuple[int, ...]


@dataclass(frozen=True)
class TrainingSamples:
    """The slices that a run trains on.

    Attributes:
        dataset: reads the slices.
        policy: how they are prompted.
        changes: names of the random changes; see ``augment.augment``.
        variants: number of fixed versions of each slice to draw from; 0: every draw is changed
            anew.
        seed: seed of the variants.
    """

    dataset: Dataset
    policy: PromptPolicy
    changes: Sequence[str] = ()
    variants: int = 0
    seed: int = 0

    @property
    def stacks(self) -> Stacks:
        """Which slices the encoder sees together."""
        return self.dataset.stacks

    def of(self, policy: PromptPolicy) -> TrainingSamples:
        """Return the same slices, prompted in another way."""
        return replace(self, policy=policy)

    def usable(self, refs: Sequence[SliceRef]) -> list[SliceRef]:
        """Return the slices that can be prompted: those with an object that is large enough.

        Without prompts, also by a part of the batches, all slices can be used.
        """
        if self.policy.finds_classes:
            return list(refs)
        return [ref for ref in refs if self.has_object(self.dataset.sample(ref))]

    def has_object(self, sample: Sample) -> bool:
        """Whether a slice has an object to prompt."""
        if self.policy.is_semantic:
            return True
        if not has_prompts(sample) and self.policy.min_area <= 1:
            return bool((sample.maps > 0).any())  # cheaper than to count them
        return self.count_objects(sample) > 0

    def count_objects(self, sample: Sample) -> int:
        """Return the number of objects of a slice that are large enough to be prompted."""
        if has_prompts(sample):
            return len(trainable_prompts(sample))
        ids, _ = objects_in(
            sample.maps, self.policy.objects, self.policy.min_area, sample.instances
        )
        return len(ids)

    def is_empty(self, item: TrainingStack) -> bool:
        """Whether none of a stack's slices with the loss holds a class."""
        refs = [item.refs[place] for place in item.trained]
        return not self.dataset.classes_in(refs)

    def items(self, refs: Sequence[SliceRef]) -> list[TrainingStack]:
        """Return the stacks of the training slices, sorted; or their clips, see ``clips``."""
        if self.policy.clip > 1:
            return self.clips(refs)
        places = self.stacks.place
        return [
            TrainingStack(tuple(self.stacks.of(group[0])), tuple(map(places, group)))
            for group in self.stacks.groups(refs)
        ]

    def clips(self, refs: Sequence[SliceRef]) -> list[TrainingStack]:
        """Return the clips that begin at training slices, upwards and downwards.

        A clip goes through training slices, and through slices of the same volumes without a
        class, where its objects have ended.

        Raises:
            ConfigError: no volume has so many neighbouring slices.
        """
        size, cases = self.policy.clip, {ref.case for ref in refs}
        every = self.dataset.slices("train", empty="keep", step=1)
        with_class = set(self.dataset.slices("train", empty="drop", step=1))
        empty = {ref for ref in every if ref.case in cases and ref not in with_class}
        known = {*refs, *empty}
        found = []
        for first in refs:
            for step in (1, -1):
                clip = [replace(first, index=first.index + step * i) for i in range(size)]
                if known.issuperset(clip):
                    found.append(TrainingStack(tuple(clip), tuple(range(size))))
        if not found:
            raise ConfigError(
                f"prompts=propagate: no training volume has prompts.clip={size} neighbouring "
                "slices of which the first holds an object; use a smaller prompts.clip, "
                "data.slice_step=1, or prompts=box for pictures"
            )
        return found

    def seen(self, refs: Sequence[SliceRef]) -> list[SliceRef]:
        """Return the slices that the encoder sees in a training on ``refs``, each once."""
        if self.policy.clip == 1:
            return self.stacks.whole(refs)[0]
        return sorted({ref for clip in self.clips(refs) for ref in clip.refs})

    def take(
        self, items: Sequence[TrainingStack], generators: Sequence[np.random.Generator]
    ) -> tuple[list[Sample], list[int], list[tuple[SliceRef, int]]]:
        """Read the slices of some stacks and augment them at random.

        Args:
            items: the stacks.
            generators: one for each stack.

        Returns:
            All slices, one stack after the other; the positions of those that have the loss; and
            each slice with the number of its variant, or nothing if the slices are changed anew.
        """
        samples: list[Sample] = []
        trained: list[int] = []
        versions: list[tuple[SliceRef, int]] = []
        for item, rng in zip(items, generators, strict=True):
            trained += [len(samples) + place for place in item.trained]
            stack = [self.dataset.sample(ref) for ref in item.refs]
            if self.changes and not self.variants:
                samples += augment(stack, self.changes, rng, self.has_object)
                continue
            number = self.draw_variant(rng)
            samples += self.variant(stack, number)
            versions += [(ref, number) for ref in item.refs]
        return samples, trained, versions

    def draw_variant(self, rng: np.random.Generator) -> int:
        """Return the number of a variant by the first number of a stack's generator."""
        return int(rng.integers(self.variants)) if self.variants else 0

    def variant(self, stack: Sequence[Sample], number: int) -> list[Sample]:
        """Return one of a stack's fixed versions; 0 is the stack itself."""
        return vary(stack, self.changes, self.seed, number, self.has_object)
