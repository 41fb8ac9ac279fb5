"""Training slices before they are prompted: which can be trained on, and how they are changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from samadapt.prompts.given import has_prompts, trainable_prompts
from samadapt.prompts.objects import objects_in
from samadapt.training.augment import augment, vary

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from samadapt.data.dataset import Dataset
    from samadapt.data.types import Sample, SliceRef
    from samadapt.prompts.policy import PromptPolicy


@dataclass(frozen=True)
class TrainingSamples:
    """What a run trains on.

    Attributes:
        dataset: reads the slices.
        policy: how they are prompted.
        changes: names of random changes; see ``augment.augment``.
        variants: versions of each slice that are drawn from; 0: changed anew each time.
        seed: of the variants.
    """

    dataset: Dataset
    policy: PromptPolicy
    changes: Sequence[str] = ()
    variants: int = 0
    seed: int = 0

    def usable(self, refs: Sequence[SliceRef]) -> list[SliceRef]:
        """Return the slices that have what the prompts need: an object that is large enough."""
        if self.policy.is_semantic:
            return list(refs)
        return [ref for ref in refs if self.has_object(self.dataset.sample(ref))]

    def has_object(self, sample: Sample) -> bool:
        """Whether there is something to prompt in a slice."""
        if self.policy.is_semantic:
            return True
        if has_prompts(sample):
            return len(trainable_prompts(sample)) > 0
        if self.policy.min_area <= 1:
            return bool((sample.labels > 0).any())
        ids, _ = objects_in(
            sample.labels, self.policy.objects, self.policy.min_area, sample.instances
        )
        return len(ids) > 0

    def change(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Change a slice at random, or to one of its variants."""
        if self.variants:
            return self.variant(sample, int(rng.integers(self.variants)))
        return augment(sample, self.changes, rng, self.has_object)

    def variant(self, sample: Sample, number: int) -> Sample:
        """Return one of a slice's fixed versions; 0 is the slice itself."""
        return vary(sample, self.changes, self.seed, number, self.has_object)
