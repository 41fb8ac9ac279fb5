"""Choose how an adapter finds masks without prompts, on the held-out cases of its data set.

The model sees each tuning image once for each kind of prompt, with all thresholds at 0. Thresholds
are then tried on these candidates, and those with the highest mean segmentation accuracy are kept.
Half of the cases choose and the other half are scored, so that the scores are not those of the
cases that the thresholds were fitted to. The predicted IoU gets a threshold of its own, and not a
share of the image's best, so that an image with nothing to find may stay empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.adapters.record import AdapterRecord, read_record
from samadapt.config.compose import parse_settings
from samadapt.config.evaluate_arguments import EvaluateArguments
from samadapt.errors import ConfigError
from samadapt.evaluation.instances import components
from samadapt.evaluation.mask_scores import (
    ScoredMask,
    match_masks,
    score_mask,
    summarise_masks,
)
from samadapt.inference.automatic import MaskFinder
from samadapt.runs.context import open_data
from samadapt.runs.recorded_configuration import evaluation_config, recorded_keys
from samadapt.sam.mask_tools import decode_mask

if TYPE_CHECKING:
    from samadapt.data.dataset import Dataset
    from samadapt.data.types import Sample, SliceRef
    from samadapt.evaluation.instances import ObjectMatches
    from samadapt.inference.mask_options import MaskOptions
    from samadapt.inference.segmenter import Segmenter
    from samadapt.sam.automatic_masks import FoundMask
    from samadapt.system.arrays import Array

STABILITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
NMS = (0.5, 0.7)
SHARES = np.linspace(0, 0.95, 20)
"""Quantiles of the predicted IoU of the candidates that are tried as its threshold."""
SIDES = (0.25, 0.75)
"""Quantiles of the sides of true objects that are tried as the sides of prompting boxes."""


@dataclass(frozen=True)
class TunedMasks:
    """What was chosen.

    Attributes:
        options: the options of ``samadapt masks`` that were chosen.
        before: scores of the options that were given, on the cases that did not choose.
        after: the same with the chosen options.
        chosen_on: number of images that chose.
        scored_on: number of images that were scored.
    """

    options: MaskOptions
    before: dict[str, float | None]
    after: dict[str, float | None]
    chosen_on: int
    scored_on: int


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
        images: number of images, half of which choose.
        progress: called with the number of images that are done and of all.

    Raises:
        ConfigError: the data set is not found, or fewer than two held-out cases have objects.
        AdapterError: the adapter takes no prompts.
    """
    record = read_record(adapter)
    dataset = _open(adapter, record, root)
    choosing, scoring = _halves(dataset, images)
    samples = [dataset.sample(ref) for ref in (*choosing, *scoring)]
    given = MaskFinder(segmenter, options, is_adapted=True)
    kinds = [given.options]
    if given.options.refine and not given.options.box_sides:
        sides = _sides(samples[: len(choosing)])
        kinds.append(replace(given.options, box_sides=sides))
    best: tuple[float, MaskOptions] | None = None
    before: dict[str, float | None] = {}
    seen: dict[tuple[float, ...], list[_Image]] = {}
    for number, kind in enumerate(kinds):
        loose = MaskFinder(segmenter, _loose(kind), is_adapted=True)
        pictures = []
        for index, sample in enumerate(samples):
            pictures.append(_look(loose, sample))
            progress(number * len(samples) + index + 1, len(kinds) * len(samples))
        seen[tuple(kind.box_sides or ())] = pictures
        if kind is given.options:
            before = _scores(segmenter, kind, pictures[len(choosing) :])
        for tried in _tries(kind, pictures[: len(choosing)]):
            value = _scores(segmenter, tried, pictures[: len(choosing)])["msa"] or 0.0
            if best is None or value > best[0]:
                best = value, tried
    chosen = kinds[0] if best is None else best[1]
    scored = seen[tuple(chosen.box_sides or ())][len(choosing) :]
    after = _scores(segmenter, chosen, scored)
    return TunedMasks(chosen, before, after, len(choosing), len(scoring))


def _open(adapter: Path, record: AdapterRecord, root: str | None) -> Dataset:
    """Open the data set of an adapter, as ``samadapt evaluate`` does."""
    keys = {**recorded_keys(adapter, record), "adapter": str(adapter)}
    if root is not None:
        keys["data"] = {**keys["data"], "root": root}
    asked = parse_settings(EvaluateArguments, [], keys, origin=str(adapter))
    return open_data(evaluation_config(asked, record))


def _halves(dataset: Dataset, images: int) -> tuple[list[SliceRef], list[SliceRef]]:
    """Return the slices that choose and those that are scored, of different cases.

    Raises:
        ConfigError: fewer than two held-out cases have objects.
    """
    refs = [ref for ref in dataset.slices("val") if _truth(dataset.sample(ref)).any()]
    cases = list(dict.fromkeys(ref.case for ref in refs))
    if len(cases) < 2:
        raise ConfigError(
            f"tune=true: expected at least two held-out cases with objects; {dataset.name} has "
            f"{len(cases)}. Give thresholds yourself (min_iou, min_stability)"
        )
    halves = []
    for part in (cases[::2], cases[1::2]):
        own = [ref for ref in refs if ref.case in part]
        count = max(1, images // 2)
        halves.append(own[:: -(-len(own) // count)])
    return halves[0], halves[1]


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


def _scores(
    segmenter: Segmenter, options: MaskOptions, pictures: Sequence[_Image]
) -> dict[str, float | None]:
    """Return the scores of options on images whose candidates are known."""
    generator = MaskFinder(segmenter, options, is_adapted=True).generator
    generator.min_mask_region_area = 0  # cleaned masks would have to be compared anew
    matches: list[ObjectMatches] = []
    masks, overlaps = 0, 0.0
    for picture in pictures:
        kept = [picture.scored[id(one)] for one in generator.select(picture.candidates)]
        matches.append(match_masks(picture.case, kept, picture.true_objects))
        masks += len(kept)
        overlaps += sum(one.best for one in kept)
    mean = overlaps / masks if masks else None
    return {**summarise_masks(matches), "masks": float(masks), "mean_iou": mean}


def tuned_yaml(tuned: TunedMasks) -> dict[str, Any]:
    """Return the content of the file that ``settings=FILE`` reads: keys, and their scores."""
    # All that was in force while thresholds were chosen, but for what only memory depends on.
    sides = list(tuned.options.box_sides or ())
    keys: dict[str, Any] = asdict(tuned.options) | {"box_sides": sides}
    del keys["points_per_batch"]
    return {
        "options": keys,
        "scores": {"before": tuned.before, "after": tuned.after},
        "images": {"chosen_on": tuned.chosen_on, "scored_on": tuned.scored_on},
    }
