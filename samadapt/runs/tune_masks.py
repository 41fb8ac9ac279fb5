"""Choose how an adapter finds masks without prompts, on the validation cases of its training.

The model sees each picture once for each kind of prompt, with all thresholds at 0. Thresholds are
then tried on these candidates, and those with the highest mean segmentation accuracy are kept, if
they are better than the given ones. With several pictures that is asked of pictures that did not
choose: each is scored with what all others choose, since thresholds that fit one picture alone make
others worse. The predicted IoU gets a threshold of its own, and not a share of the image's best, so
that an image with nothing to find may stay empty.

The validation cases chose the best step of the training, and no weight was trained on them. The
held-out cases choose nothing: they score the given and the chosen thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from samadapt.adapters.record import AdapterRecord, read_record
from samadapt.config.compose import from_yaml, parse_settings
from samadapt.config.evaluate_arguments import EvaluateArguments
from samadapt.data.checks.training_record import seen
from samadapt.errors import ConfigError
from samadapt.evaluation.instances import components
from samadapt.evaluation.mask_scores import (
    ScoredMask,
    match_masks,
    score_mask,
    segmentation_accuracy,
    summarise_masks,
)
from samadapt.inference.automatic import MaskFinder
from samadapt.prompts.policy import PromptPolicy
from samadapt.runs.context import open_data
from samadapt.runs.recorded_configuration import evaluation_config, recorded_keys
from samadapt.runs.run_slices import split_training
from samadapt.sam.mask_tools import decode_mask
from samadapt.training.samples import TrainingSamples

if TYPE_CHECKING:
    from samadapt.data.dataset import Dataset
    from samadapt.data.types import Sample, SliceRef
    from samadapt.inference.mask_options import MaskOptions
    from samadapt.inference.segmenter import Segmenter
    from samadapt.sam.automatic_masks import FoundMask
    from samadapt.system.arrays import Array

ENOUGH = 8
"""Validation pictures, and objects in them, below which a choice is a guess. In a measurement two
pictures of nuclei chose thresholds that were worse on others."""
STABILITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
NMS = (0.5, 0.7)
SHARES = np.linspace(0, 0.95, 20)
"""Quantiles of the predicted IoU of the candidates that are tried as its threshold."""
SIDES = (0.25, 0.75)
"""Quantiles of the sides of true objects that are tried as the sides of prompting boxes."""


Scores = dict[str, float | None]
"""``msa``, ``map``, ``pq``, ``sq``, ``rq``, ``mean_iou`` and ``masks``; None: undefined."""


@dataclass(frozen=True)
class TunedMasks:
    """What was chosen.

    Attributes:
        options: the options of ``samadapt masks`` that are best on the validation pictures.
        is_tuned: whether they differ from what was given.
        validation: scores of the given and of the chosen options where they were chosen.
        held_out: the same on held-out pictures; None: there is none with an object.
        chosen_on: number of validation pictures.
        objects: number of their true objects.
        scored_on: number of held-out pictures.
    """

    options: MaskOptions
    is_tuned: bool
    validation: tuple[Scores, Scores]
    held_out: tuple[Scores, Scores] | None
    chosen_on: int
    objects: int
    scored_on: int

    @property
    def warnings(self) -> list[str]:
        """What the user must know about the choice."""
        if min(self.chosen_on, self.objects) >= ENOUGH:
            return []
        few = (
            f"thresholds were tried on {self.chosen_on} validation pictures with {self.objects} "
            f"objects; below {ENOUGH} of either they may fit these alone. Compare the scores of "
            "the held-out pictures before you use them"
        )
        return [few]


@dataclass(frozen=True)
class _Image:
    """One image with its candidates and how each lies on the true objects."""

    case: str
    candidates: list[FoundMask]
    scored: dict[int, ScoredMask]
    true_objects: int


def tune_masks(
    segmenter: Segmenter,
    adapter: Path,
    options: MaskOptions,
    root: str | None,
    *,
    images: int,
    progress: Callable[[int, int], None],
) -> TunedMasks:
    """Choose thresholds, and for a model of boxes the kind of prompt.

    Args:
        segmenter: the adapter.
        adapter: its directory.
        options: what is given; a grid, crops and ``min_area`` stay as they are.
        root: folder of the data set; None: where the training found it.
        images: largest number of validation pictures, and of held-out ones.
        progress: called with the number of images that are done and of all.

    Raises:
        ConfigError: the data set is not found, or no validation case has an object.
        AdapterError: the adapter takes no prompts.
    """
    record = read_record(adapter)
    dataset = _open(adapter, record, root)
    choosing = [dataset.sample(ref) for ref in _validation(dataset, adapter, record, images)]
    scoring = [dataset.sample(ref) for ref in _held_out(dataset, record, images)]
    given = MaskFinder(segmenter, options, is_adapted=True).options
    kinds = [given]
    if given.refine and not given.box_sides:
        kinds.append(replace(given, box_sides=_sides(choosing)))
    done, total = 0, len(kinds) * len(choosing) + 2 * len(scoring)

    def look(kind: MaskOptions, samples: Sequence[Sample]) -> list[_Image]:
        nonlocal done
        loose = MaskFinder(segmenter, _loose(kind), is_adapted=True)
        found = []
        for sample in samples:
            found.append(_look(loose, sample))
            done += 1
            progress(done, total)
        return found

    looked = [look(kind, choosing) for kind in kinds]
    first = last = (given, looked[0])  # the given options and the chosen ones, with their pictures
    tried = [
        (options, pictures)
        for kind, pictures in zip(kinds, looked, strict=True)
        for options in _tries(kind, pictures)
    ]
    if tried:
        accuracies = np.array([_accuracies(segmenter, *one) for one in tried])
        if is_better(accuracies, _accuracies(segmenter, *first)):
            last = tried[int(accuracies.mean(axis=1).argmax())]
    held_out = None
    if scoring:
        before = after = look(given, scoring)
        if last[1] is not first[1]:
            after = look(last[0], scoring)
        held_out = _scores(segmenter, given, before), _scores(segmenter, last[0], after)
    progress(total, total)
    return TunedMasks(
        options=last[0],
        is_tuned=last is not first,
        validation=(_scores(segmenter, *first), _scores(segmenter, *last)),
        held_out=held_out,
        chosen_on=len(choosing),
        objects=sum(picture.true_objects for picture in looked[0]),
        scored_on=len(scoring),
    )


def is_better(tried: Float[np.ndarray, "t n"], given: Float[np.ndarray, " n"]) -> bool:
    """Return whether options that pictures choose are better than the given ones on others.

    Args:
        tried: the accuracy of each of t options on each of n pictures.
        given: that of the given options.
    """
    if tried.mean(axis=1).max() <= given.mean():
        return False
    if len(given) == 1:
        return True
    # For each picture, the options that all other pictures choose.
    chosen = (tried.sum(axis=1, keepdims=True) - tried).argmax(axis=0)
    return bool(tried[chosen, np.arange(len(given))].mean() > given.mean())


def _open(adapter: Path, record: AdapterRecord, root: str | None) -> Dataset:
    """Open the data set of an adapter, as ``samadapt evaluate`` does."""
    keys = {**recorded_keys(adapter, record), "adapter": str(adapter)}
    if root is not None:
        keys["data"] = {**keys["data"], "root": root}
    asked = parse_settings(EvaluateArguments, [], keys, origin=str(adapter))
    return open_data(evaluation_config(asked, record))


def _validation(
    dataset: Dataset, adapter: Path, record: AdapterRecord, images: int
) -> list[SliceRef]:
    """Return slices that chose the best step of the training, and on which no weight was trained.

    Raises:
        ConfigError: there is none with an object.
    """
    file = adapter.parent / "config.yaml"
    cases = from_yaml(file).train.validate_cases if file.is_file() else None
    samples = TrainingSamples(dataset, PromptPolicy.from_dict(record.prompt))
    refs = samples.usable(dataset.slices("train"))
    if record.trained_on is not None:  # data.train_cases may have left cases out
        refs = seen(dataset, refs, record.trained_on, same_slices=True)
    _, choosing = split_training(dataset, refs, cases)
    found = _some(dataset, choosing, images)
    if not found:
        raise ConfigError(
            "tune=true chooses on the validation cases of the training, and "
            + ("it had none (train.validate_cases=0)" if cases == 0 else "none has an object here")
            + ". Give thresholds yourself (min_iou, min_stability)"
        )
    return found


def _held_out(dataset: Dataset, record: AdapterRecord, images: int) -> list[SliceRef]:
    """Return held-out slices with objects that the adapter has never seen."""
    refs = dataset.slices("val")
    known = set(seen(dataset, refs, record.trained_on or {}, same_slices=True))
    return _some(dataset, [ref for ref in refs if ref not in known], images)


def _some(dataset: Dataset, refs: Sequence[SliceRef], images: int) -> list[SliceRef]:
    """Return at most ``images`` slices with objects, spread evenly."""
    own = [ref for ref in refs if _truth(dataset.sample(ref)).any()]
    return own[:: max(1, math.ceil(len(own) / images))]


def _truth(sample: Sample) -> Array:
    """Return the true objects (h, w), numbered from 1."""
    if sample.instances is not None:
        return sample.instances
    numbers = np.zeros(sample.labels.shape, np.int32)
    # Touching components of different classes are different objects.
    for label in np.unique(sample.labels[sample.labels > 0]).tolist():
        own = components(sample.labels == label)
        numbers[own > 0] = own[own > 0] + numbers.max()
    return numbers


def _sides(samples: Sequence[Sample]) -> tuple[float, ...]:
    """Return sides of boxes, in pixels, that fit the true objects."""
    from scipy.ndimage import find_objects

    sides = [
        max(part.stop - part.start for part in box)
        for sample in samples
        for box in find_objects(_truth(sample))
        if box is not None
    ]
    return tuple(sorted({float(round(value)) for value in np.quantile(sides, SIDES)}))


def _loose(options: MaskOptions) -> MaskOptions:
    return replace(options, min_iou=0.0, relative_iou=0.0, min_stability=0.0)


def _look(finder: MaskFinder, sample: Sample) -> _Image:
    """Return the candidates of a sample, compared with its true objects."""
    truth = _truth(sample)
    areas = np.bincount(truth.ravel())
    found = finder.candidates(sample.image)
    scored = {id(one): score_mask(decode_mask(one.runs), truth, areas, one.iou) for one in found}
    return _Image(sample.case, found, scored, int((areas[1:] > 0).sum()))


def _tries(options: MaskOptions, pictures: Sequence[_Image]) -> list[MaskOptions]:
    """Return the options that are tried on the candidates."""
    ious = [mask.iou for picture in pictures for mask in picture.candidates]
    if not ious:
        return []
    levels = sorted({max(0.0, round(float(v), 3)) for v in np.quantile(ious, SHARES)})
    return [
        replace(options, min_iou=level, relative_iou=0.0, min_stability=stability, nms=nms)
        for level, stability, nms in product(levels, STABILITIES, NMS)
        if level <= 1
    ]


def _kept(
    segmenter: Segmenter, options: MaskOptions, pictures: Sequence[_Image]
) -> list[list[ScoredMask]]:
    """Return the masks that options keep of the candidates of each image."""
    generator = MaskFinder(segmenter, options, is_adapted=True).generator
    generator.min_mask_region_area = 0  # cleaned masks would have to be compared anew
    return [
        [picture.scored[id(one)] for one in generator.select(picture.candidates)]
        for picture in pictures
    ]


def _accuracies(
    segmenter: Segmenter, options: MaskOptions, pictures: Sequence[_Image]
) -> Float[np.ndarray, " n"]:
    """Return the mean segmentation accuracy of options on each image; all have objects."""
    kept = _kept(segmenter, options, pictures)
    matches = [
        match_masks(picture.case, masks, picture.true_objects)
        for picture, masks in zip(pictures, kept, strict=True)
    ]
    return np.array([segmentation_accuracy(match) for match in matches])


def _scores(segmenter: Segmenter, options: MaskOptions, pictures: Sequence[_Image]) -> Scores:
    """Return the scores of options on images whose candidates are known."""
    kept = _kept(segmenter, options, pictures)
    matches = [
        match_masks(picture.case, masks, picture.true_objects)
        for picture, masks in zip(pictures, kept, strict=True)
    ]
    overlaps = [one.best for masks in kept for one in masks]
    mean = math.fsum(overlaps) / len(overlaps) if overlaps else None
    return {**summarise_masks(matches), "masks": float(len(overlaps)), "mean_iou": mean}


def tuned_yaml(tuned: TunedMasks) -> dict[str, Any]:
    """Return the content of the file that ``settings=FILE`` reads: keys, and their scores."""
    # All that was in force while thresholds were chosen, but for what only memory depends on.
    sides = list(tuned.options.box_sides or ())
    keys: dict[str, Any] = asdict(tuned.options) | {"box_sides": sides}
    del keys["points_per_batch"]
    pairs = {"validation": tuned.validation, "held_out": tuned.held_out}
    return {
        "options": keys,
        "is_tuned": tuned.is_tuned,
        "scores": {
            name: {"given": pair[0], "chosen": pair[1]} for name, pair in pairs.items() if pair
        },
        "images": {"chosen_on": tuned.chosen_on, "scored_on": tuned.scored_on},
        "objects": tuned.objects,
        "warnings": tuned.warnings,
    }
