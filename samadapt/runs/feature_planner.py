"""The frozen features of a run: where they are kept, and when they are computed.

The blocks in front of the first trained one give the same output for an image in every step, so
their output is computed once and kept; see ``training/features.py``. Training slices that are
augmented anew in every step are the exception: their images never come back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.data.stacks import stacks_in_batch
from samadapt.errors import ConfigError
from samadapt.prompts.annotations import has_prompts, lacks_prompts
from samadapt.system import processes
from samadapt.training.draws import FORESEEN, BatchDraws, first_read
from samadapt.training.feature_plan import FeaturePlan, plan_features
from samadapt.training.feature_stores import DiskStore
from samadapt.training.features import Features

if TYPE_CHECKING:
    from samadapt.config.schema import Config
    from samadapt.data.types import Sample, SliceRef
    from samadapt.runs.context import RunContext
    from samadapt.training.draws import Version

FEATURES_BATCH = 8
"""Images in one forward pass of the frozen blocks."""

SUGGESTED_VARIANTS = 4
"""Versions of each slice in the advice on augmentation with kept features."""


@dataclass
class FeaturePlanner:
    """Plans, computes and serves the frozen features of a run.

    Attributes:
        context: the run.
        features: the frozen features by image; without a store until ``plan`` chooses one.
        planned: the features that the run needs; None if none are kept.
        reused: how many of them were there when they were planned.
        when_read: features are computed when they are first read.
    """

    context: RunContext
    features: Features = field(init=False)
    planned: FeaturePlan[Version] | None = field(init=False, default=None)
    reused: int = field(init=False, default=0)
    when_read: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Make the features, without a store."""
        run = self.context
        self.features = Features(
            run.model,
            run.injection.first_trainable_block,
            base_sha256=run.base_sha256,
            autocast=run.autocast,
            dtype=run.precision.dtype,
            store=None,
            batch_size=FEATURES_BATCH,
            route=run.route,
        )

    @property
    def augments_anew(self) -> bool:
        """Whether every step sees augmented training slices that no earlier step saw."""
        return bool(self.context.samples.changes) and not self.context.samples.variants

    @property
    def missing(self) -> int:
        """The number of images whose features are still to be computed."""
        return len(self.planned.missing) if self.planned else 0

    @property
    def left_to_compute(self) -> int:
        """How many of them the next process would have to compute: all that no file has by now."""
        store = self.features.store
        if self.planned is None or not isinstance(store, DiskStore):
            return self.missing
        return self.missing - len(store.use(self.planned.missing))

    def plan(
        self,
        config: Config,
        *,
        train: Sequence[SliceRef],
        others: Sequence[SliceRef],
    ) -> None:
        """Decide where features are kept, and look up which are there.

        Args:
            config: the configuration of the run.
            train: the slices that are trained on; they may be augmented.
            others: the slices that are only scored; the encoder sees them unchanged.

        Raises:
            ConfigError: for ``cache.enabled=on`` where features cannot be kept.
            RunError: when there is too little room for them.
        """
        cache, injection = config.cache, self.context.injection
        if self.context.is_baseline:
            return  # a model that trains from scratch has no frozen blocks
        trained = "input projection" if "input" in injection.groups else "patch embedding"
        blocked = "" if injection.has_frozen_prefix else f"training of the {trained}"
        if cache.enabled == "on" and (blocked or self.augments_anew):
            cause = blocked or "augmentation without cache.variants"
            raise ConfigError(f"cache.enabled=on: {cause} changes every image's features; use off")
        if cache.variants not in (0, "auto") and not self.context.samples.changes:
            raise ConfigError(
                f"cache.variants={cache.variants} keeps augmented versions of each training slice; "
                "name the augmentation with train.augment"
            )
        if cache.enabled == "off" or blocked:
            reason = blocked or "cache.enabled=off"
            self.context.say(f"features: computed anew in every step ({reason})")
            return
        jobs = self.jobs(config, train=train, others=others)
        self.planned = plan_features(
            self.features,
            jobs,
            self._image,
            where=cache.where,
            folder=Path(cache.dir or Path(config.output.dir) / "features"),
            max_bytes=math.inf if cache.max_gb is None else cache.max_gb * 1e9,
        )
        self.reused = self.planned.images - len(self.planned.missing) - self._computed()
        self.context.say(f"features: {self.planned.text}")
        if train and self.augments_anew:
            training, _ = self.context.samples.stacks.whole(train)
            size = SUGGESTED_VARIANTS * len(training) * self.planned.bytes_each
            self.context.say(
                "features of training slices: computed anew in every step (augmentation); "
                f"cache.variants={SUGGESTED_VARIANTS} would keep {SUGGESTED_VARIANTS} versions of "
                f"each in at most {size / 1e9:.2f} GB and compute each once"
            )

    def jobs(
        self,
        config: Config,
        *,
        train: Sequence[SliceRef],
        others: Sequence[SliceRef],
    ) -> list[Version]:
        """Return the versions of slices whose features the run reads, in the order of first use.

        Variant 0 is the unchanged slice. Slices that are augmented in every step have none. What
        is read follows from the seed; a single process whose steps are known takes only that.

        Args:
            config: the configuration of the run.
            train: the slices that are trained on.
            others: the slices that are only scored.
        """
        samples, options = self.context.samples, config.train
        # The encoder sees whole stacks of slices.
        scored = [(ref, 0) for ref in samples.stacks.whole(others)[0]]
        if self.augments_anew or not train or not self.context.has_trained_parameters:
            return scored
        versions = range(max(1, samples.variants))
        whole = [(ref, number) for ref in samples.seen(train) for number in versions]
        if processes.count() > 1:
            return [*whole, *scored]
        stacks = stacks_in_batch(options.slices, self.context.dataset.stack)
        batches = None if options.steps is None else options.steps * options.accumulate
        read = first_read(BatchDraws(samples, train, stacks, config.seed), samples, batches)
        ends = batches is not None and batches * stacks <= FORESEEN
        return [*read, *([] if ends else whole), *scored]

    def compute_when_read(self) -> None:
        """Let features that are planned and missing be computed when they are first read.

        The time they take then counts as that of their own phase.
        """
        if self.planned is None:
            return
        keys = list(dict.fromkeys(self.planned.keys.values()))
        progress = self.context.progress
        self.features.compute_in_order(keys[1:])  # the first was computed to know its size
        self.features.aside = lambda count: progress.aside("features", count)
        self.when_read = True

    def expect_only(self, refs: Sequence[SliceRef]) -> None:
        """Tell the progress display that features of these slices alone are still computed."""
        store = self.features.store
        if self.planned is None or store is None or not self.when_read:
            return
        keys = set(self.keys_of([(ref, 0) for ref in self.context.samples.stacks.whole(refs)[0]]))
        self.context.progress.clock.left["features"] = len(keys - store.use(keys))

    def warm(self, refs: Sequence[SliceRef] | None = None) -> None:
        """Compute the features that are planned and missing.

        Args:
            refs: only those of these slices, and of their stacks; the others are computed when they
                are read. None: all of them.
        """
        if self.planned is None:
            return
        missing, progress = self.planned.missing, self.context.progress
        if refs is not None:
            whole = set(self.context.samples.stacks.whole(refs)[0])
            wanted = {key for (ref, _), key in self.planned.keys.items() if ref in whole}
            missing = [key for key in missing if key in wanted]
        with progress.phase("features"):
            self.features.warm(missing, progress.advance)
        self.say_computed(len(self.planned.missing) - len(missing))

    def say_computed(self, later: int = 0) -> None:
        """Say how many features were computed; ``later`` are still to be."""
        if self.planned is None:
            return
        computed = self._computed()
        unread = self.planned.images - self.reused - computed - later
        self.context.say(
            f"features: {computed} computed, {self.reused} reused"
            + (f", {later} left to the scores" if later else "")
            + (f", {unread} not needed" if unread > 0 else "")
            + ("" if self.augments_anew else "; nothing runs the frozen blocks on them again")
        )

    def _computed(self) -> int:
        """Return how many features were computed and kept; each process did its part."""
        return sum(processes.gather(self.features.kept))

    def keys_of(self, versions: Sequence[Version]) -> list[str]:
        """Return the keys of the features of variants of slices; empty if they are not kept."""
        return self.planned.keys_of(versions) if self.planned else []

    def _image(self, job: Version) -> Any:
        """Return the image of a slice's variant, or None if its stack has nothing to prompt."""
        ref, variant = job
        stacks = self.context.samples.stacks
        stack = [self.context.dataset.sample(one) for one in stacks.of(ref)]
        # Unless objects are carried there, the embedding of a stack without a prompt is never read.
        is_read = self.context.policy.finds_classes or self.context.policy.clip > 1
        if not is_read and not any(map(_is_prompted, stack)):
            return None
        return self.context.samples.variant(stack, variant)[stacks.place(ref)].image


def _is_prompted(sample: Sample) -> bool:
    """Whether evaluation has something to prompt in a slice."""
    if has_prompts(sample):
        return not lacks_prompts(sample)
    return bool((sample.maps > 0).any())
