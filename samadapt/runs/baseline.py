"""The model of a run with ``baseline=unet``, which trains in SAM's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from samadapt.baselines.build import UNetBuild, check_side, fitting_side
from samadapt.baselines.encoders import imagenet_statistics
from samadapt.baselines.injection import WholeModel, train_everything
from samadapt.baselines.unet import UNet, make_unet
from samadapt.errors import ConfigError
from samadapt.sam.watershed import MAPS_PER_CLASS, Watershed

if TYPE_CHECKING:
    from samadapt.config.baseline import Baseline
    from samadapt.config.schema import Config
    from samadapt.data.dataset import Dataset
    from samadapt.data.types import SliceRef

MEASURED_SLICES = 200
"""Training slices, evenly spaced, whose pixels give the mean and the standard deviation."""


def open_baseline(
    options: Baseline, dataset: Dataset, seed: int, watershed: Watershed | None = None
) -> tuple[UNet, WholeModel]:
    """Build the U-Net of a run for its training pictures, with all parameters to be trained.

    Args:
        options: the ``baseline`` group of the configuration.
        dataset: the data set of the run.
        seed: of the random weights.
        watershed: separates objects, with ``head=instances``.

    Raises:
        ConfigError: when an option does not fit, or there is no training slice.
        WeightsError: when pretrained weights cannot be fetched.
    """
    maps = 1 if watershed is None else MAPS_PER_CLASS
    build = replace(unet_build(options, dataset), maps=maps)
    # The weights depend on the seed alone, not on what has drawn random numbers before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make_unet(build, watershed)
    return model, train_everything(model)


def unet_build(options: Baseline, dataset: Dataset) -> UNetBuild:
    """Return the shape of the U-Net that fits the training pictures of a data set.

    Raises:
        ConfigError: when the given image size is no multiple, or there is no training slice.
    """
    refs = dataset.slices("train")
    if not refs:
        raise ConfigError("data: there is no slice to train on; use more cases (data.max_cases)")
    encoder = options.encoder or ""
    side = options.image_size or fitting_side(dataset.longest_side(), encoder)
    check_side(side, encoder)
    mean, std = measure_pictures(dataset, refs)
    if options.pretrained and len(mean) == 3:
        mean, std = imagenet_statistics(encoder)
    return UNetBuild(
        image_size=side,
        channels=len(mean),
        classes=len(dataset.classes),
        filters=options.filters,
        encoder=encoder,
        pretrained=options.pretrained,
        mean=mean,
        std=std,
    )


def evenly(refs: Sequence[SliceRef]) -> list[SliceRef]:
    """Return at most ``MEASURED_SLICES`` of the slices, from the first to the last."""
    count = min(len(refs), MEASURED_SLICES)
    return [refs[index] for index in np.linspace(0, len(refs) - 1, count).round().astype(int)]


def measure_pictures(
    dataset: Dataset, refs: Sequence[SliceRef]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel, after the intensity rule.

    The rule has scaled each volume by its own percentiles already, so one mean and one deviation
    for all of them make a z-score.
    """
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for ref in evenly(refs):
        pixels = dataset.sample(ref).image.astype(np.float64)
        pixels = pixels.reshape(-1, pixels.shape[2])
        count += len(pixels)
        total, squares = total + pixels.sum(axis=0), squares + (pixels**2).sum(axis=0)
    mean = total / count
    # A channel that is the same everywhere has the deviation 0, which must not divide.
    std = np.maximum(np.sqrt(np.maximum(squares / count - mean**2, 0)), 1.0)
    return tuple(mean.round(3).tolist()), tuple(std.round(3).tolist())


def training_report(config: Config, changes: Sequence[str]) -> str:
    """Return the settings that train the U-Net, as lines of text beside those of the model.

    Args:
        config: the configuration of the run.
        changes: names of the random changes.
    """
    train = config.train
    rates = f"{train.decoder_lr:g}"
    if train.lr != train.decoder_lr:
        rates += f", encoder {train.lr:g}"
    rows = {
        "training": f"AdamW {rates}, weight decay {train.weight_decay:g}, {train.schedule} after "
        f"{train.warmup_steps} steps of warm-up, clip {train.clip:g}, {train.slices} slices "
        "a step: keys of the group baseline, not those of the recipe's train",
        "augment": f"{', '.join(changes) or 'none'}, anew in every step; cache.variants does not "
        "apply",
    }
    return "\n".join(f"{key:<8} {text}" for key, text in rows.items())
