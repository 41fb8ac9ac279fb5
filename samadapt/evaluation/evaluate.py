"""Predict the slices of held-out cases and score whole volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from samadapt.data.stacks import ALONE, Stacks
from samadapt.data.tiles import Tile, assemble
from samadapt.data.types import IGNORED, SliceRef
from samadapt.evaluation.instances import (
    ObjectMatches,
    components,
    match_objects,
    summarise_objects,
)
from samadapt.evaluation.label_stack import LabelStack, choose_slice
from samadapt.evaluation.metrics import CaseClassScore, score_case, summarise
from samadapt.evaluation.scores import OVERLAP
from samadapt.prompts.annotations import given_prompts, has_prompts
from samadapt.prompts.simulate import simulate
from samadapt.sam.decode import segment_objects, segment_semantic
from samadapt.sam.embed import embed_features, frame_of
from samadapt.sam.types import ImagePrompts
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from samadapt.data.types import Sample
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.sam.model import Sam

Item = TypeVar("Item")
Place = int | Tile


@dataclass(frozen=True)
class SlicePrediction:
    """What was found in one slice.

    Attributes:
        labels: (n, h, w) uint8 class ids, 0 where nothing was found; a map for all classes, or
            one for each where they are independent.
        numbers: (n, h, w) int32 which prompt's object it is, from 1, or in a tile the object's
            number in the data set, where it has one; None without prompts.
        iou: (n, h, w) float32 the IoU that the mask decoder predicts for that object; None
            without prompts.
    """

    labels: Array
    numbers: Array | None = None
    iou: Array | None = None

    def put(
        self, position: int, objects: ImagePrompts, known: Array, numbers: Array, iou: Array
    ) -> None:
        """Fill one map in: what each numbered pixel's object is called and how sure it is."""
        self.labels[position] = objects.names(numbers)
        if self.numbers is not None and self.iou is not None:
            self.numbers[position] = np.append(0, known)[numbers]
            self.iou[position] = np.append(np.float32(0), iou)[numbers]


@dataclass(frozen=True)
class SlicePredictor:
    """A model as evaluation uses it.

    Attributes:
        sam: the model, base or adapted.
        first_trainable_block: the unit of the encoder from which it is run live; -1: from the
            pixels.
        features: images (h, w, 3) to what is fed in there, (b, ...).
        policy: how objects are prompted; boxes are exact and points central, without noise.
        independent: each class is predicted on its own, so that classes whose boxes coincide do
            not take pixels from each other; else one label map holds them all.
        overlapping: a pixel may be of several classes, so that also a model without prompts says
            of each class by itself where it is; then they are independent as well.
        classes: number K of classes.
        autocast: returns the context of forward passes.
        batch_size: slices in one forward pass.
        stacks: the slices that the encoder sees together.
        image_of: reads those that are not scored, for the stacks of those that are.
    """

    sam: Sam
    first_trainable_block: int
    features: Callable[[Sequence[Array]], Tensor]
    policy: PromptPolicy
    classes: int
    autocast: Callable[[], AbstractContextManager[Any]]
    batch_size: int = 8
    independent: bool = False
    overlapping: bool = False
    stacks: Stacks = ALONE
    image_of: Callable[[SliceRef], Array] | None = None

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[Array]:
        """Return the predicted class ids of each slice, 0 where nothing was prompted.

        Each is (1, h, w), or (K, h, w) with a map for each class where they are independent.
        """
        return [found.labels for found in self.find(samples)]

    @torch.no_grad()
    def find(self, samples: Sequence[Sample]) -> list[SlicePrediction]:
        """Return the predicted class ids of each slice, and its objects where they are prompted."""
        with self.autocast():
            if self.policy.is_semantic:
                frames = [frame_of(self.sam, sample.image) for sample in samples]
                maps = segment_semantic(
                    self.sam,
                    self.embed(samples),
                    frames,
                    self.classes,
                    background_token=self.policy.background_token,
                    overlapping=self.overlapping,
                )
                return [SlicePrediction(labels.reshape(-1, *labels.shape[-2:])) for labels in maps]
            return self._objects(samples)

    def _objects(self, samples: Sequence[Sample]) -> list[SlicePrediction]:
        prompts = [self._prompts(sample) for sample in samples]
        prompted = [index for index, objects in enumerate(prompts) if len(objects)]
        every = range(1, self.classes + 1)
        groups = [[class_id] for class_id in every] if self.independent else [list(every)]
        shapes = [(len(groups), *sample.labels.shape) for sample in samples]
        found = [
            SlicePrediction(np.zeros(s, np.uint8), np.zeros(s, np.int32), np.zeros(s, np.float32))
            for s in shapes
        ]
        if not prompted:
            return found
        frames = [frame_of(self.sam, samples[index].image) for index in prompted]
        embeddings = self.embed([samples[index] for index in prompted])
        for position, group in enumerate(groups):
            wanted = [prompts[index].of_classes(group) for index in prompted]
            masks = segment_objects(
                self.sam, embeddings, frames, wanted, multimask=self.policy.is_ambiguous
            )
            for index, objects, (numbers, iou) in zip(prompted, wanted, masks, strict=True):
                known = known_numbers(objects, samples[index], self.policy.objects == "class")
                found[index].put(position, objects, known, numbers, iou)
        return found

    def _prompts(self, sample: Sample) -> ImagePrompts:
        if has_prompts(sample):
            return given_prompts(sample)
        return simulate(sample.maps, self.policy, instances=sample.instances)

    def embed(self, samples: Sequence[Sample]) -> Tensor:
        """Return the embeddings (b, c, g, g) of the samples' images."""
        if self.stacks.size == 1 or self.image_of is None:
            return self._encode([sample.image for sample in samples])
        refs, rows = self.stacks.whole([SliceRef(s.case, s.index) for s in samples])
        return self._encode([self.image_of(ref) for ref in refs])[rows]

    def _encode(self, images: Sequence[Array]) -> Tensor:
        features = self.features(images)
        return embed_features(self.sam, features, self.first_trainable_block)


@dataclass
class Evaluation:
    """Scores of a model.

    Attributes:
        rows: one score a case and class, over all of the case's slices.
        objects: the matched objects of each case and class, where they were asked for.
        summary: means, as ``metrics.summarise`` gives them.
        shown: for each case the slice with the most ground truth, and its place in ``labels``.
        labels: for each case the predicted labels of its slices; of independent classes the higher
            one shows. Neither is kept of a validation in training.
    """

    rows: list[CaseClassScore] = field(default_factory=list)
    objects: list[ObjectMatches] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, tuple[SliceRef, int]] = field(default_factory=dict)
    labels: dict[str, LabelStack] = field(default_factory=dict)


def evaluate_cases(
    predictor: SlicePredictor,
    refs: Sequence[SliceRef],
    read: Callable[[SliceRef], Sample],
    classes: Sequence[str],
    done: Callable[[int], None] = lambda count: None,
    *,
    spacing_of: Callable[[str], Sequence[float] | None] = lambda case: None,
    tolerance: float = 1.0,
    overlap_only: bool = False,
    instances: bool | Literal["components"] = False,
) -> Evaluation:
    """Predict slices and score each case over all of its slices together.

    Args:
        predictor: the model and how it is prompted.
        refs: the slices, sorted by case.
        read: slice to sample.
        classes: names of the classes 1..K.
        done: called with the number of slices finished since the last call.
        spacing_of: a case's (row, column, slice) spacing in mm, or None where there is none.
        tolerance: of the normalised surface Dice, in mm, in pixels without spacing.
        overlap_only: take Dice and IoU alone, without intervals; as for a validation in training,
            whose slices need not be neighbours.
        instances: match objects too: those that the samples number (of pictures), or components.
    """
    result = Evaluation()
    options = {"tolerance": tolerance, "scores": OVERLAP if overlap_only else None}
    for case, group in groupby(refs, key=lambda ref: ref.case):
        members = list(group)
        truth: list[Array] = []
        shown: list[Array] = []
        predicted: list[Array] = []
        places: list[Place] = []
        whole = _Objects(case, classes, instances)
        for part in predictor.stacks.parts(members, predictor.batch_size):
            samples = [read(ref) for ref in part]
            if instances:
                found = predictor.find(samples)
                predicted += [one.labels for one in found]
                whole.add(samples, found)
            else:
                predicted += predictor(samples)
            truth += [sample.truth for sample in samples]
            shown += [sample.shown for sample in samples]
            places += [place_of(sample) for sample in samples]
            done(len(part))
        result.rows += score_maps(
            case,
            joined(predicted, places),
            joined(truth, places),
            classes,
            **options,
            spacing_mm=spacing_of(case),
        )
        result.objects += whole.matched()
        if not overlap_only:
            chosen = choose_slice(np.stack(shown, axis=-1))
            result.shown[case] = members[chosen], chosen
            result.labels[case] = LabelStack.of(maps.max(axis=0) for maps in predicted)
    result.summary = summarise(result.rows, classes, intervals=not overlap_only)
    if instances:
        result.summary["instances"] = summarise_objects(result.objects, classes)
    return result


def score_maps(
    case: str, maps: Array, truth: Array, classes: Sequence[str], **options: Any
) -> list[CaseClassScore]:
    """Score label maps (n, h, w, d): one for all classes, or one for each.

    Args:
        case: name of the case.
        maps: predicted class ids.
        truth: (h, w, d) class ids, or ``IGNORED``; or (K, h, w, d), see ``Sample.truth``.
        classes: names of the classes 1..K.
        options: of ``score_case``.
    """
    if len(maps) == 1 and truth.ndim == 3:
        return score_case(case, maps[0], truth, classes, **options)
    rows = []
    for k, name in enumerate(classes):
        predicted = (maps[k if len(maps) > 1 else 0] == k + 1) * np.uint8(1)
        rows += score_case(case, predicted, plane_of(truth, k + 1), [name], **options)
    return rows


def plane_of(truth: Array, class_id: int) -> Array:
    """Return (h, w, d) int8: 1 where truth is a class, 0 or ``IGNORED`` elsewhere."""
    if truth.ndim == 4:
        own: Array = truth[class_id - 1]
        return own
    plane: Array = (truth == class_id).astype(np.int8)
    plane[truth == IGNORED] = IGNORED
    return plane


def known_numbers(objects: ImagePrompts, sample: Sample, per_class: bool) -> Array:
    """Return the numbers (p,) by which prompted objects are told apart, of a tile in its picture.

    Several tiles see parts of one object: it has the number of the data set, or that of its class
    where a prompt stands for all of a class.
    """
    if sample.tile is None or sample.instances is None or objects.truth is None:
        return np.arange(1, len(objects) + 1)
    if per_class:
        return objects.class_ids
    return np.array([sample.instances[mask][0] for mask in objects.truth], np.int64)


def place_of(sample: Sample) -> Place:
    """Return where a sample lies in its case: its tile of a picture, or its slice's number."""
    return sample.index if sample.tile is None else sample.tile


def joined(parts: Sequence[Array], places: Sequence[Place]) -> Array:
    """Put the slices (..., h, w) of a case at their places: (..., h, w, d).

    Where slices were left out between others, as by a held-out slab, there are empty ones:
    distances across are then those in the patient. Tiles make one slice, the picture.
    """
    tiles = [place for place in places if isinstance(place, Tile)]
    if tiles:
        return assemble(parts, tiles)[..., None]
    indices = np.array(places)
    volume = np.zeros((*parts[0].shape, indices[-1] - indices[0] + 1), parts[0].dtype)
    for part, index in zip(parts, indices - indices[0], strict=True):
        volume[..., index] = part
    return volume


def in_parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield the items in order, at most ``size`` at once."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@dataclass
class _Objects:
    """The slices of one case, gathered to match its objects."""

    case: str
    classes: Sequence[str]
    kind: bool | Literal["components"]
    places: list[Place] = field(default_factory=list)
    truth: list[Array] = field(default_factory=list)
    numbered: list[Array] = field(default_factory=list)
    found: list[SlicePrediction] = field(default_factory=list)

    def add(self, samples: Sequence[Sample], found: Sequence[SlicePrediction]) -> None:
        """Take slices in."""
        self.found += found
        self.places += [place_of(sample) for sample in samples]
        self.truth += [sample.truth for sample in samples]
        self.numbered += [sample.instances for sample in samples if sample.instances is not None]

    def matched(self) -> list[ObjectMatches]:
        """Match the objects of every class over all slices together."""
        if not self.kind:
            return []
        truth = joined(self.truth, self.places)
        maps = joined([found.labels for found in self.found], self.places)
        sure = self._joined("iou")
        rows = []
        for label, name in enumerate(self.classes, start=1):
            own = label - 1 if len(maps) > 1 else 0
            plane = plane_of(truth, label)
            predicted, true = (maps[own] == label) & (plane != IGNORED), plane == 1
            if self.kind is True:
                numbers = self._joined("numbers")
                numbered = joined(self.numbered, self.places)
                one = components(predicted) if numbers is None else numbers[own] * predicted
                other = numbered * true
            else:
                one, other = components(predicted), components(true)
            scores = None if sure is None else sure[own]
            rows.append(match_objects(self.case, name, one, other, scores))
        return rows

    def _joined(self, name: Literal["numbers", "iou"]) -> Array | None:
        parts = [getattr(found, name) for found in self.found]
        if any(part is None for part in parts):
            return None
        return joined(parts, self.places)
