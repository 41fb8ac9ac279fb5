"""Predict the slices of held-out cases and score whole volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from samadapt.data.stacks import ALONE, Stacks
from samadapt.data.tiles import PictureTile, assemble
from samadapt.data.types import IGNORED, SliceRef
from samadapt.evaluation.case_scores import CaseClassScore, score_case, summarise
from samadapt.evaluation.clicking import corrected_prompts
from samadapt.evaluation.confidence import (
    ObjectScore,
    match_components,
    match_numbers,
    match_object,
)
from samadapt.evaluation.false_positives import (
    FalsePositives,
    count_false_positives,
    summarise_false_positives,
)
from samadapt.evaluation.instances import (
    ObjectMatches,
    components,
    match_objects,
    summarise_objects,
)
from samadapt.evaluation.label_stack import LabelStack, choose_slice
from samadapt.evaluation.postprocess import postprocess
from samadapt.evaluation.scores import OVERLAP
from samadapt.evaluation.second_pass import SecondPass
from samadapt.prompts.annotations import given_prompts, has_prompts
from samadapt.prompts.drawings import with_drawings
from samadapt.prompts.policy import SCORED_CLICKS
from samadapt.prompts.simulate import simulate
from samadapt.sam.decode import (
    image_embedding,
    merge_objects,
    object_logits,
    region_labels,
    semantic_labels,
    semantic_logits,
)
from samadapt.sam.embed import embed_features, frame_of
from samadapt.sam.mean_prediction import DecodedObjects, MeanLogits, object_means
from samadapt.sam.mirror import AS_IT_IS, Mirror, mirrored, mirrored_prompts, turned_back
from samadapt.sam.types import ImagePrompts
from samadapt.sam.watershed import without_seams
from samadapt.system import processes
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from samadapt.data.types import Sample
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.sam.segmentation_model import SegmentationModel
    from samadapt.sam.types import Frame
    from samadapt.sam.watershed import Watershed

Place = int | PictureTile
"""Where a sample lies in its case: the number of its slice, or its tile of the picture."""


@dataclass(frozen=True)
class SlicePrediction:
    """The prediction of one slice.

    It has n maps: one for all classes, or one for each class if classes are independent.

    Attributes:
        labels: (n, h, w) uint8 class ids, 0 where nothing was found.
        numbers: (n, h, w) int32 number (from 1) of the object that each pixel was given to; 0:
            none. In a tile with numbered objects it is the data set's number, or the class id if
            one prompt stands for a whole class; otherwise the position of the prompt. None without
            prompts.
        iou: (n, h, w) float32 IoU that the mask decoder predicts for the object; None without
            prompts.
        scores: of each prompted object its score and whether it matches its ground truth, if that
            was asked for.
        probability: (n, h, w) float16 probability of the most probable class, without prompts, if
            it was asked for, or if the model separates objects.
        distances: (2K, h, w) float16 distances to the centre of each class's objects and to their
            border, if the model separates objects without prompts; see ``sam/watershed.py``.
    """

    labels: Array
    numbers: Array | None = None
    iou: Array | None = None
    scores: Sequence[ObjectScore] = ()
    probability: Array | None = None
    distances: Array | None = None


@dataclass(frozen=True)
class SlicePredictor:
    """A model as evaluation uses it: it predicts slices that come with their ground truth.

    Attributes:
        sam: the model, base or adapted.
        first_trainable_block: ``features`` are the input of this encoder block; -1: they are
            pixels, and the whole encoder runs on them. See ``sam/embed.py``.
        features: returns the features (b, ...) of images (h, w, 3), given also their keys if
            ``keys_of`` knows them.
        policy: how objects are prompted. Boxes are exact and points central, without noise.
        classes: number K of classes.
        autocast: returns the context of forward passes.
        batch_size: slices in one forward pass.
        independent: each class is predicted on its own map, so that classes with equal boxes do
            not take pixels from each other. Otherwise one map holds all classes.
        overlapping: a pixel may belong to several classes, so that a model without prompts decides
            for each class by itself. Pass ``independent=True`` as well.
        stacks: which slices the encoder sees together.
        image_of: reads slices that are not scored but belong to the stacks of those that are.
        keys_of: returns the keys of slices' stored features; empty if they are not stored.
        mirrors: the mirrored copies of the slices over which probabilities are averaged.
        unstored: returns the features of images that are not stored, such as mirrored ones; None:
            ``features`` does.
        second_pass: refines what is found without prompts; None: nothing does.
        scores_objects: also return what the confidence of objects is fitted to and measured by.
        carry: predicts all slices of a case together, from objects that are prompted on one slice
            each; None: each object is prompted on each of its slices.
    """

    sam: SegmentationModel
    first_trainable_block: int
    features: Callable[..., Tensor]
    policy: PromptPolicy
    classes: int
    autocast: Callable[[], AbstractContextManager[Any]]
    batch_size: int = 8
    independent: bool = False
    overlapping: bool = False
    stacks: Stacks = ALONE
    image_of: Callable[[SliceRef], Array] | None = None
    keys_of: Callable[[Sequence[SliceRef]], Sequence[str]] = lambda refs: ()
    mirrors: Sequence[Mirror] = (AS_IT_IS,)
    unstored: Callable[[Sequence[Array]], Tensor] | None = None
    second_pass: SecondPass | None = None
    scores_objects: bool = False
    carry: Callable[[SlicePredictor, Sequence[Sample]], list[SlicePrediction]] | None = None

    @torch.no_grad()
    def predict(self, samples: Sequence[Sample]) -> list[SlicePrediction]:
        """Predict each slice. With prompts, pixels outside every prompted object are 0."""
        with self.autocast():
            if self.policy.is_semantic:
                return self._predict_classes(samples)
            return self._predict_objects(samples)

    def _predict_classes(self, samples: Sequence[Sample]) -> list[SlicePrediction]:
        frames = [frame_of(self.sam, sample.image) for sample in samples]
        # Generators: the logits of one slice at a time are in memory at the size of the image.
        decoded = [
            semantic_logits(
                self.sam,
                self.embed(samples, mirror),
                frames,
                self.classes,
                background_token=self.policy.background_token,
            )
            for mirror in self.mirrors
        ]
        label = region_labels if self.overlapping else semantic_labels
        found = []
        for sample, *each in zip(samples, *decoded, strict=True):
            mean = MeanLogits(exclusive=not self.overlapping)
            apart = MeanLogits(exclusive=False)  # of the distances, if the model predicts some
            for mirror, logits in zip(self.mirrors, each, strict=True):
                planes = turned_back(logits[0, 0], mirror)
                mean.add(planes[: self.classes])
                apart.add(planes[self.classes :])
            if self.second_pass is not None:
                self.second_pass.add_to(mean, sample.image)
            labels = label(mean.logits[None, None], self.classes)[0].cpu().numpy()
            # (h, w), or (K, h, w) if classes overlap, becomes (n, h, w).
            maps = labels.reshape(-1, *labels.shape[-2:])
            separates = self.sam.watershed is not None
            if not self.scores_objects and not separates:
                found.append(SlicePrediction(maps))
                continue
            shares = mean.probabilities
            best = shares if self.overlapping else shares.amax(0, keepdim=True)
            distances = apart.probabilities.half().cpu().numpy() if separates else None
            probability = best.half().cpu().numpy()
            found.append(SlicePrediction(maps, probability=probability, distances=distances))
        return found

    def _predict_objects(self, samples: Sequence[Sample]) -> list[SlicePrediction]:
        prompts = {index: self.prompts_of(sample) for index, sample in enumerate(samples)}
        prompted = [index for index, objects in prompts.items() if len(objects)]
        # The classes of each map
        every = range(1, self.classes + 1)
        groups = [[class_id] for class_id in every] if self.independent else [list(every)]
        shapes = [(len(groups), *sample.labels.shape) for sample in samples]
        labels = [np.zeros(shape, np.uint8) for shape in shapes]
        numbers = [np.zeros(shape, np.int32) for shape in shapes]
        iou = [np.zeros(shape, np.float32) for shape in shapes]
        scores: list[list[ObjectScore]] = [[] for _ in samples]
        found = [SlicePrediction(*one) for one in zip(labels, numbers, iou, scores, strict=True)]
        if not prompted:  # slices without a prompt are not embedded
            return found
        frames = [frame_of(self.sam, samples[index].image) for index in prompted]
        chosen = [samples[index] for index in prompted]
        embeddings = [
            image_embedding(self.sam, self.embed(chosen, mirror)) for mirror in self.mirrors
        ]
        if self.policy.is_interactive:
            first = [prompts[index] for index in prompted]
            clicks = SCORED_CLICKS - 1
            disks = self.policy.click_disks
            clicked = corrected_prompts(
                self.sam, embeddings[0], frames, first, chosen, clicks, click_disks=disks
            )
            prompts = dict(zip(prompted, clicked, strict=True))
        for place, group in enumerate(groups):
            wanted = [prompts[index].of_classes(group) for index in prompted]
            decoded = [
                self._decode(one, frames, wanted, mirror)
                for one, mirror in zip(embeddings, self.mirrors, strict=True)
            ]
            for index, objects, *each in zip(prompted, wanted, *decoded, strict=True):
                masks = [mask for mask, _ in each]
                positions = self._merge(masks, objects, scores[index])
                predicted_iou = torch.stack([one for _, one in each]).mean(0).float().cpu().numpy()
                known = numbers_in_picture(objects, samples[index], self.policy.objects == "class")
                labels[index][place] = objects.class_ids_at(positions)
                # positions (h, w) are 1..p for the objects and 0 for none, so a 0 is put first.
                numbers[index][place] = np.append(0, known)[positions]
                iou[index][place] = np.append(np.float32(0), predicted_iou)[positions]
        return found

    def _decode(
        self,
        embeddings: Tensor,
        frames: Sequence[Frame],
        prompts: Sequence[ImagePrompts],
        mirror: Mirror,
    ) -> list[tuple[DecodedObjects, Tensor]]:
        """Decode the objects of some images in one pass; return their predicted IoU (p,) too."""
        seen = [
            mirrored_prompts(item, mirror, frame)
            for item, frame in zip(prompts, frames, strict=True)
        ]
        policy = self.policy
        masks = object_logits(
            self.sam,
            embeddings,
            frames,
            seen,
            multimask=policy.multimask,
            click_disks=policy.click_disks,
        )
        return [
            (DecodedObjects(self.sam, logits, frame, mirror), iou)
            for (logits, iou), frame in zip(masks, frames, strict=True)
        ]

    def _merge(
        self, masks: Sequence[DecodedObjects], objects: ImagePrompts, scores: list[ObjectScore]
    ) -> Array:
        """Return which object 1..p each pixel (h, w) belongs to; add to ``scores`` if wanted."""
        shape, rows = masks[0].frame.original, np.arange(len(objects))
        planes = (mean.logits for _, mean in object_means(masks, rows))
        positions = merge_objects(planes, shape, self.sam.mask_threshold)
        if self.scores_objects and objects.truth is not None:
            best = np.zeros(shape, np.float32)
            for _, mean in object_means(masks, rows):
                np.maximum(best, mean.probabilities.amax(0).cpu().numpy(), out=best)
            for number, truth in enumerate(objects.truth, start=1):
                scores += match_object(positions == number, truth, best)
        return positions

    def prompts_of(self, sample: Sample) -> ImagePrompts:
        """Return the prompts of a slice's objects, those of its annotation if it has one."""
        if has_prompts(sample):
            objects = given_prompts(sample)
            if self.policy.is_drawing:
                return with_drawings(objects, sample.maps, self.policy)
            return objects
        return simulate(sample.maps, self.policy, instances=sample.instances)

    def embed(self, samples: Sequence[Sample], mirror: Mirror = AS_IT_IS) -> Tensor:
        """Return the embeddings (b, ...) of the samples' images, or of mirrored copies."""
        images, rows = [sample.image for sample in samples], None
        refs = [SliceRef(sample.case, sample.index) for sample in samples]
        if self.stacks.size > 1 and self.image_of is not None:
            # The stacks' missing slices are added; ``rows`` picks the embeddings that are wanted.
            refs, rows = self.stacks.whole(refs)
            images = [self.image_of(ref) for ref in refs]
        if mirror:
            compute = self.features if self.unstored is None else self.unstored
            features = compute([mirrored(image, mirror) for image in images])
        else:
            # The feature plan has already given these slices keys, so their stored features are
            # looked up instead of computed.
            keys = self.keys_of(refs)
            features = self.features(images, keys) if keys else self.features(images)
        embeddings = embed_features(self.sam, features, self.first_trainable_block)
        return embeddings if rows is None else embeddings[rows]


@dataclass
class Evaluation:
    """Scores of a model.

    Attributes:
        rows: one score for each case and class, over all slices of the case.
        objects: the matched objects of each case and class, if they were asked for.
        false_positives: counts of what was predicted without prompts where there is nothing.
        object_scores: score of each predicted object and whether it matches a true one, if they
            were asked for; see ``confidence.py``.
        summary: the means; see ``case_scores.summarise``.
        shown: for each case, the slice with the most ground truth: (slice, its index in
            ``labels[case]``). Both are empty with ``overlap_only``.
        labels: for each case, the predicted labels of its slices. Where independent classes
            overlap, the highest id is stored.
    """

    rows: list[CaseClassScore] = field(default_factory=list)
    objects: list[ObjectMatches] = field(default_factory=list)
    false_positives: list[FalsePositives] = field(default_factory=list)
    object_scores: list[ObjectScore] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, tuple[SliceRef, int]] = field(default_factory=dict)
    labels: dict[str, LabelStack] = field(default_factory=dict)

    def add(self, other: Evaluation) -> None:
        """Add the scores of other cases; ``summary`` stays as it is."""
        self.rows += other.rows
        self.objects += other.objects
        self.false_positives += other.false_positives
        self.object_scores += other.object_scores
        self.shown |= other.shown
        self.labels |= other.labels


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
    keep_largest: Sequence[int] = (),
    keep_in_pictures: bool = False,
    watershed: Watershed | None = None,
    false_positives: bool = False,
) -> Evaluation:
    """Predict slices and score each case over all of its slices together.

    Args:
        predictor: the model and how it is prompted.
        refs: the slices, sorted by case.
        read: returns the sample of a slice.
        classes: names of the classes 1..K.
        done: called with the number of slices finished since the last call.
        spacing_of: returns a case's (row, column, slice) spacing in mm, or None if it has none.
        tolerance: tolerance of the normalised surface Dice: in mm if the case has a spacing, else
            in pixels.
        overlap_only: compute only Dice and IoU, without intervals. Validation during training uses
            this: its slices may have gaps, which would falsify surface distances.
        instances: match objects too. True: those that the samples number, for pictures;
            ``"components"``: connected components.
        keep_largest: ids of the classes of which only the largest component of a volume is kept.
        keep_in_pictures: keep only the largest component of a picture or a single slice as well.
        watershed: separates the objects that the model found without prompts; None: nothing does,
            and its objects are components.
        false_positives: count what is predicted where there is nothing; without prompts alone,
            because prompts from the ground truth say that something is there.
    """
    score = _CaseScorer(
        predictor,
        read,
        classes,
        # The others are as far, on average.
        lambda count: done(count * processes.count()),
        spacing_of,
        tolerance,
        overlap_only,
        instances,
        keep_largest,
        keep_in_pictures,
        watershed,
        false_positives,
    )
    cases = [list(group) for _, group in groupby(refs, key=lambda ref: ref.case)]
    # Several processes score every n-th case each, and all get the scores of all.
    scored = processes.gather([score(members) for members in processes.share(cases)])
    result = Evaluation()
    for one in processes.shares_joined(scored):
        result.add(one)
    result.summary = summarise(result.rows, classes, intervals=not overlap_only)
    if instances:
        result.summary["instances"] = summarise_objects(result.objects, classes)
    if false_positives:
        counts = summarise_false_positives(result.false_positives, classes)
        result.summary["false_positives"] = counts
    return result


@dataclass(frozen=True)
class _CaseScorer:
    """Predicts and scores the slices of one case; see ``evaluate_cases``."""

    predictor: SlicePredictor
    read: Callable[[SliceRef], Sample]
    classes: Sequence[str]
    done: Callable[[int], None]
    spacing_of: Callable[[str], Sequence[float] | None]
    tolerance: float
    overlap_only: bool
    instances: bool | Literal["components"]
    keep_largest: Sequence[int]
    keep_in_pictures: bool
    watershed: Watershed | None
    false_positives: bool

    def __call__(self, members: Sequence[SliceRef]) -> Evaluation:
        """Return the scores of a case, without means."""
        found, case, classes = Evaluation(), members[0].case, self.classes
        slices, shown = self._predicted(members)
        # Scores are those of the whole volume or picture, not means over slices or tiles.
        truth = joined(slices.truth, slices.places)
        maps = joined(slices.labels, slices.places)
        if self.keep_largest and (self.keep_in_pictures or maps.shape[-1] > 1):
            # A copy: the joined maps of tiles may be those of a slice.
            maps = maps.copy()
            for own in maps:
                postprocess(own, self.keep_largest, ())
            slices.use(maps)
        if self.watershed is not None:
            slices.separate(self.watershed, maps, len(classes))
        found.rows = score_maps(
            case,
            maps,
            truth,
            classes,
            tolerance=self.tolerance,
            scores=OVERLAP if self.overlap_only else None,
            spacing_mm=self.spacing_of(case),
        )
        found.object_scores = slices.object_scores(maps, truth, len(classes))
        if self.false_positives:
            found.false_positives = slices.false_positives(case, maps, truth, classes)
        if self.instances:
            numbered = self.instances is True
            found.objects = slices.match_objects(case, maps, truth, classes, numbered=numbered)
        if not self.overlap_only:
            chosen = choose_slice(np.stack(shown, axis=-1))
            found.shown[case] = members[chosen], chosen
            found.labels[case] = LabelStack.of(slices.shown(self.watershed is not None))
        return found

    def _predicted(self, members: Sequence[SliceRef]) -> tuple[_CaseSlices, list[Array]]:
        """Return the predicted slices, and the truth of each as it is shown."""
        slices, shown = _CaseSlices(), []
        keep_objects = bool(self.instances) or self.watershed is not None
        predictor, carry = self.predictor, self.predictor.carry
        parts = [members] if carry else predictor.stacks.parts(members, predictor.batch_size)
        for part in parts:
            samples = [self.read(ref) for ref in part]
            found = carry(predictor, samples) if carry else predictor.predict(samples)
            slices.add(samples, found, keep_objects=keep_objects)
            shown += [sample.shown for sample in samples]
            self.done(len(part))
        return slices, shown


@dataclass
class _CaseSlices:
    """The slices of one case and what was predicted in them.

    Attributes:
        places: where each slice or tile lies.
        truth: ``Sample.truth`` of each.
        labels: predicted class ids (n, h, w) of each.
        instances: object numbers (h, w) of the data set, of those that have them.
        numbers: predicted object numbers (n, h, w) of each; None where there are none.
        iou: predicted IoU (n, h, w) of each; None where there is none.
        scores: of the prompted objects of all; see ``SlicePrediction``.
        probability: of each; see ``SlicePrediction``.
        distances: of each; see ``SlicePrediction``.
        separated: (n, h, w, d) numbers of the objects that a watershed separated in the whole case;
            None where there was none.
    """

    places: list[Place] = field(default_factory=list)
    truth: list[Array] = field(default_factory=list)
    labels: list[Array] = field(default_factory=list)
    instances: list[Array] = field(default_factory=list)
    numbers: list[Array | None] = field(default_factory=list)
    iou: list[Array | None] = field(default_factory=list)
    scores: list[ObjectScore] = field(default_factory=list)
    probability: list[Array | None] = field(default_factory=list)
    distances: list[Array | None] = field(default_factory=list)
    separated: Array | None = None

    def add(
        self,
        samples: Sequence[Sample],
        found: Sequence[SlicePrediction],
        *,
        keep_objects: bool,
    ) -> None:
        """Add some slices; their objects only if they will be matched."""
        self.places += [place_of(sample) for sample in samples]
        self.truth += [sample.truth for sample in samples]
        self.labels += [one.labels for one in found]
        self.scores += [score for one in found for score in one.scores]
        self.probability += [one.probability for one in found]
        if keep_objects:
            self.instances += [s.instances for s in samples if s.instances is not None]
            self.numbers += [one.numbers for one in found]
            self.iou += [one.iou for one in found]
            self.distances += [one.distances for one in found]

    def separate(self, watershed: Watershed, maps: Array, classes: int) -> None:
        """Separate the objects of each class in the whole picture, all tiles together.

        Args:
            watershed: how.
            maps: predicted class ids (n, h, w, 1) of the picture.
            classes: number K of classes.
        """
        distances = self._joined(self.distances)
        if distances is None:  # the objects were prompted
            return
        self.separated = numbers = np.zeros(maps.shape, np.int32)
        found = watershed.separate_classes(maps[..., 0], distances[..., 0], classes)
        for _, place, own in found:
            first = numbers[place].max()
            numbers[place, ..., 0][own > 0] = own[own > 0] + first

    def shown(self, separates: bool) -> Iterator[Array]:
        """Yield the labels (h, w) of each slice for drawing, with seams between objects if wanted.

        Args:
            separates: the model separates objects; the base model that it is compared with has the
                objects that were prompted.
        """
        numbers = self.separated if self.separated is not None else self._joined(self.numbers)
        for place, labels in zip(self.places, self.labels, strict=True):
            top = labels.max(axis=0)
            if not separates or numbers is None:
                yield top
                continue
            whole = numbers.max(axis=0)
            own = whole[..., 0] if isinstance(place, int) else place.cut(whole[..., 0])
            yield without_seams(top, own)

    def use(self, maps: Array) -> None:
        """Take the labels (n, h, w) of each slice from joined maps (n, h, w, d)."""
        first = min(place for place in self.places if isinstance(place, int))
        self.labels = [maps[..., place - first] for place in self.places if isinstance(place, int)]

    def match_objects(
        self, case: str, maps: Array, truth: Array, classes: Sequence[str], *, numbered: bool
    ) -> list[ObjectMatches]:
        """Match the objects of every class over all slices together.

        Args:
            case: name of the case.
            maps: predicted class ids (n, h, w, d).
            truth: see ``score_maps``.
            classes: names of the classes 1..K.
            numbered: objects are those that the data set numbers; otherwise components.
        """
        scored, numbers = self._joined(self.iou), self._joined(self.numbers)
        if (
            self.separated is not None
        ):  # the mean probability orders the objects, as there is no IoU
            scored, numbers = self._joined(self.probability), self.separated
        rows = []
        for label, name in enumerate(classes, start=1):
            # Ignored voxels belong to neither the predicted nor the true objects.
            own = label - 1 if len(maps) > 1 else 0
            true_mask = mask_of_class(truth, label)
            predicted, true = (maps[own] == label) & (true_mask != IGNORED), true_mask == 1
            if numbered:
                predicted_objects = (
                    components(predicted) if numbers is None else numbers[own] * predicted
                )
                true_objects = joined(self.instances, self.places) * true
            else:
                predicted_objects, true_objects = components(predicted), components(true)
            scores = None if scored is None else scored[own]
            rows.append(match_objects(case, name, predicted_objects, true_objects, scores))
        return rows

    def false_positives(
        self, case: str, maps: Array, truth: Array, classes: Sequence[str]
    ) -> list[FalsePositives]:
        """Count what is predicted of each class where there is nothing of it.

        Args:
            case: name of the case.
            maps: predicted class ids (n, h, w, d).
            truth: see ``score_maps``.
            classes: names of the classes 1..K.
        """
        # Tiles are parts of one picture.
        indices = [place if isinstance(place, int) else 0 for place in self.places]
        scored = [index - min(indices) for index in indices]
        rows = []
        for label, name in enumerate(classes, start=1):
            own = maps[label - 1 if len(maps) > 1 else 0] == label
            found = count_false_positives(case, name, own, mask_of_class(truth, label), scored)
            rows += [] if found is None else [found]
        return rows

    def object_scores(self, maps: Array, truth: Array, classes: int) -> list[ObjectScore]:
        """Return the score of each predicted object, and whether it matches a true one.

        Objects that were not prompted are the components of each class over all slices together, or
        those that the model separates.

        Args:
            maps: predicted class ids (n, h, w, d).
            truth: see ``score_maps``.
            classes: number K of classes.
        """
        shares = self._joined(self.probability)
        if shares is None:
            return self.scores
        found: list[ObjectScore] = []
        for label in range(1, classes + 1):
            own = label - 1 if len(maps) > 1 else 0
            true_mask = mask_of_class(truth, label)
            predicted = (maps[own] == label) & (true_mask != IGNORED)
            if self.separated is None:
                found += match_components(predicted, true_mask == 1, shares[own])
                continue
            numbers = self.separated[own] * predicted
            true = (
                joined(self.instances, self.places)
                if self.instances
                else components(true_mask == 1)
            )
            found += match_numbers(numbers, true * (true_mask == 1), shares[own])
        return found

    def _joined(self, parts: Sequence[Array | None]) -> Array | None:
        """Join the parts; None unless every slice has one."""
        present = [part for part in parts if part is not None]
        return joined(present, self.places) if len(present) == len(self.places) else None


def score_maps(
    case: str, maps: Array, truth: Array, classes: Sequence[str], **options: Any
) -> list[CaseClassScore]:
    """Score predicted label maps: one for all classes, or one for each class.

    Args:
        case: name of the case.
        maps: (n, h, w, d) predicted class ids.
        truth: (h, w, d) class ids, or ``IGNORED``; or (K, h, w, d), see ``Sample.truth``.
        classes: names of the classes 1..K.
        options: of ``score_case``.
    """
    if len(maps) == 1 and truth.ndim == 3:
        return score_case(case, maps[0], truth, classes, **options)
    rows = []
    for k, name in enumerate(classes):
        # Each class is a case of one class, with label 1.
        predicted = (maps[k if len(maps) > 1 else 0] == k + 1) * np.uint8(1)
        rows += score_case(case, predicted, mask_of_class(truth, k + 1), [name], **options)
    return rows


def mask_of_class(truth: Array, class_id: int) -> Array:
    """Return the true mask (h, w, d) int8 of a class: 1 inside, 0 or ``IGNORED`` elsewhere."""
    if truth.ndim == 4:
        own: Array = truth[class_id - 1]
        return own
    mask: Array = (truth == class_id).astype(np.int8)
    mask[truth == IGNORED] = IGNORED
    return mask


def numbers_in_picture(objects: ImagePrompts, sample: Sample, per_class: bool) -> Array:
    """Return the numbers (p,) that tell prompted objects apart in their picture.

    Several tiles see parts of one object. In a tile an object therefore has its number in the data
    set, or the id of its class if one prompt stands for the whole class.
    """
    if sample.tile is None or sample.instances is None or objects.truth is None:
        return np.arange(1, len(objects) + 1)
    if per_class:
        return objects.class_ids
    # All pixels of an object have the same number.
    return np.array([sample.instances[mask][0] for mask in objects.truth], np.int64)


def place_of(sample: Sample) -> Place:
    """Return where a sample lies in its case: its tile of a picture, or its slice's number."""
    return sample.index if sample.tile is None else sample.tile


def joined(parts: Sequence[Array], places: Sequence[Place]) -> Array:
    """Put the slices (..., h, w) of a case at their places: (..., h, w, d).

    Slices that were left out between others, such as a held-out slab, are empty, so that distances
    across slices are those in the patient. Tiles make one slice, the picture.
    """
    tiles = [place for place in places if isinstance(place, PictureTile)]
    if tiles:
        return assemble(parts, tiles)[..., None]
    # (..., h, w, d) from the first to the last slice of the case; gaps stay empty.
    indices = np.array(places)
    volume = np.zeros((*parts[0].shape, indices[-1] - indices[0] + 1), parts[0].dtype)
    for part, index in zip(parts, indices - indices[0], strict=True):
        volume[..., index] = part
    return volume
