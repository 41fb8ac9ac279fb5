"""The number of slices in a batch: what ``auto`` means for a data set, and what does not fit.

With few labels many small steps teach more than few large ones: of five tiles of axons in 480
CPU-seconds, batches of 8, 4 and 2 gave a Dice of 0.780, 0.793 and 0.796, and batches of 12 and 2 of
a U-Net from scratch 0.626 and 0.799. A step has to be worth its fixed cost, so small pictures come
in larger batches.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from samadapt.baselines.build import MAX_SIDE
from samadapt.config.schema import MAX_HEAD_SIDE
from samadapt.data.stacks import stacks_in_batch
from samadapt.runs.context import open_data, stack_of

if TYPE_CHECKING:
    from samadapt.config.schema import Config
    from samadapt.data.dataset import Dataset

FEWEST = 2
"""One picture alone gives too rough a gradient."""

MOST, PIXELS = 8, 200_000
"""Slices and pixels of a batch at most, at the side that a dense head takes."""

BASELINE_MOST, BASELINE_PIXELS = 12, 400_000
"""The same of a U-Net from scratch, which has no encoder beside it."""


def with_batch_size(config: Config) -> Config:
    """Return the configuration with the number of slices that ``train.batch_size=auto`` means.

    The data set is opened for that; with a number nothing is read.

    Args:
        config: the configuration of a run.

    Raises:
        ConfigError: the batch is no multiple of the slices that are seen together.
        DataError: with ``auto``, listing the errors of the files.
    """
    if config.train.batch_size == "auto":
        size = batch_size_for(config, open_data(config, scratch=config.output.dir))
        baseline = config.baseline
        if baseline.name is not None:  # its keys take the place of those of the group train
            baseline = replace(baseline, batch_size=size)
        return replace(config, train=replace(config.train, batch_size=size), baseline=baseline)
    if (stack := stack_of(config)) != "auto":
        stacks_in_batch(config.train.slices, stack)
    return config


def batch_size_for(config: Config, dataset: Dataset) -> int:
    """Return how many slices make a batch of a data set.

    Volumes whose slices are seen together have one stack in a batch. Else larger pictures come in
    smaller batches. A U-Net from scratch, whose number of steps is given, has the largest ones: the
    time of a step then matters less than what it sees.

    Args:
        config: the configuration of a run.
        dataset: its data set.
    """
    if dataset.stack > 1:
        return dataset.stack
    side = dataset.longest_side()
    if config.baseline.name is None:
        side = config.head.size or min(side, MAX_HEAD_SIDE)
        return _between(PIXELS // side**2, MOST)
    if config.train.steps is not None:
        return BASELINE_MOST
    side = config.baseline.image_size or min(side, MAX_SIDE)
    return _between(BASELINE_PIXELS // side**2, BASELINE_MOST)


def _between(count: int, most: int) -> int:
    return max(FEWEST, min(most, count))
