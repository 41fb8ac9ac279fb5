"""The oracle gap: one model scored without prompts, with clicks, and with good and bad boxes.

Scores with an exact box are an upper bound that no user reaches by hand. Every setting is scored on
the same slices, and each slice is embedded once:

========================  ==================================================================
setting                   what the model gets for each object
========================  ==================================================================
none                      nothing
1, 3, 5, 8 clicks         simulated clicks (``prompts/clicks.py``) and its own last mask
box                       the exact box of the ground truth
box moved 5, 10, 20 px    that box shifted by so many pixels of an image whose longest side is
                          1024
========================  ==================================================================

All settings but ``none`` use the ground truth. A box keeps its size when it is shifted; the
direction is drawn for each object with a fixed seed. A model that was trained with prompts can tell
only one class without them, so ``none`` is left out for such a model if there are several classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from samadapt.evaluation.case_scores import CaseClassScore, summarise
from samadapt.evaluation.case_scores import iou as overlap
from samadapt.evaluation.evaluate import Place, joined, place_of, score_maps
from samadapt.evaluation.scores import OVERLAP
from samadapt.prompts.clicks import first_clicks, next_clicks
from samadapt.prompts.simulate import SAM_SIDE, boxes_of, objects_in
from samadapt.sam.decode import image_embedding, merge_objects, object_logits, segment_semantic
from samadapt.sam.embed import frame_of
from samadapt.sam.types import ImagePrompts, Prompts
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from samadapt.data.types import Sample, SliceRef
    from samadapt.evaluation.evaluate import SlicePredictor
    from samadapt.sam.types import Frame


NONE = "none"
CLICKS = {1: "1 click", 3: "3 clicks", 5: "5 clicks", 8: "8 clicks"}
BOX = "box"
MOVED = {5: "box moved 5 px", 10: "box moved 10 px", 20: "box moved 20 px"}
SETTINGS = (NONE, *CLICKS.values(), BOX, *MOVED.values())
SEED = 20
"""Seed of the directions in which boxes are shifted."""

Answer = tuple[str, list[Array], list[tuple[float, float]]]
"""A setting's name; label maps (n, h, w), one per slice; (predicted, true) IoU of each object."""


@dataclass
class SettingScores:
    """Scores of a model in one setting.

    Attributes:
        rows: one score for each case and class, over all slices of the case.
        summary: their means; see ``case_scores.summarise``.
        iou: (predicted, true) IoU of each object's mask, for ``calibration.py``.
    """

    rows: list[CaseClassScore] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    iou: list[tuple[float, float]] = field(default_factory=list)


@torch.no_grad()
def score_settings(
    predictor: SlicePredictor,
    refs: Sequence[SliceRef],
    read: Callable[[SliceRef], Sample],
    classes: Sequence[str],
    done: Callable[[int], None] = lambda count: None,
) -> dict[str, SettingScores]:
    """Score a model in every setting.

    Args:
        predictor: the model. Its policy says what an object is. A model that was trained without
            prompts answers for an object with the mask token of the object's class.
        refs: the slices, sorted by case.
        read: returns the sample of a slice. Prompts that came with a sample are not used.
        classes: names of the classes 1..K.
        done: called with the number of slices finished since the last call.

    Returns:
        Scores by the names in ``SETTINGS``, without ``none`` if it means nothing for the model.
    """
    # Without prompts a promptable model gives one mask, which can stand for one class only.
    unprompted = predictor.policy.is_semantic or predictor.classes == 1
    found = {name: SettingScores() for name in SETTINGS if unprompted or name != NONE}
    rng = np.random.default_rng(SEED)
    for case, group in groupby(refs, key=lambda ref: ref.case):
        truth: list[Array] = []
        places: list[Place] = []
        maps: dict[str, list[Array]] = {name: [] for name in found}
        for part in predictor.stacks.parts(list(group), predictor.batch_size):
            samples = [read(ref) for ref in part]
            truth += [sample.truth for sample in samples]
            places += [place_of(sample) for sample in samples]
            with predictor.autocast():
                for name, labels, iou in _settings(predictor, samples, rng, unprompted):
                    maps[name] += labels
                    found[name].iou += iou
            done(len(part))
        whole = joined(truth, places)
        for name, labels in maps.items():
            found[name].rows += score_maps(
                case, joined(labels, places), whole, classes, scores=OVERLAP
            )
    for scores in found.values():
        scores.summary = summarise(scores.rows, classes)
    return found


def _settings(
    predictor: SlicePredictor,
    samples: Sequence[Sample],
    rng: np.random.Generator,
    unprompted: bool,
) -> Iterator[Answer]:
    """Answer a batch of slices in every setting."""
    batch = _PromptedSlices.of(predictor, samples)
    if unprompted:
        yield NONE, batch.without_prompt(), []
    if not len(batch.class_ids):
        # All settings but ``none`` prompt objects, and these slices have no object.
        for name in SETTINGS[1:]:
            yield name, batch.maps([]), []
        return
    yield from batch.clicked()
    boxes = [boxes_of(mask[None])[0] for mask in batch.truth]
    yield (BOX, *batch.boxed(boxes))
    # One direction for each object, shared by all distances: the box moves farther along it.
    turns = rng.uniform(0, 2 * np.pi, len(boxes))
    for pixels, name in MOVED.items():
        moved = [
            shift_box(box, mask.shape, pixels, turn)
            for box, mask, turn in zip(boxes, batch.truth, turns, strict=True)
        ]
        yield (name, *batch.boxed(moved))


def shift_box(box: Array, shape: tuple[int, ...], pixels: float, turn: float) -> Array:
    """Shift a box and keep at least one pixel of it in the image.

    Args:
        box: (4,) XYXY pixels.
        shape: (h, w) of the image.
        pixels: distance, in pixels of an image whose longest side is 1024.
        turn: direction in radians, from x towards y.
    """
    height, width = shape[:2]
    far = pixels * max(height, width) / SAM_SIDE
    moved = box + far * np.array([np.cos(turn), np.sin(turn)] * 2)
    low = np.clip(moved[:2], 0, [width - 1, height - 1])
    high = np.clip(moved[2:], low + 1, [width, height])
    return np.concatenate([low, high]).astype(np.float32)


@dataclass(frozen=True)
class _PromptedSlices:
    """Some slices, embedded once, and the n objects in all of them.

    Attributes:
        embeddings: (b, ...), as ``embed`` returns them; None if no setting needs them.
        owner: (n,) position of each object's slice.
        class_ids: (n,) class of each object.
        truth: n arrays (h, w) bool, the objects.
        known: n arrays (h, w) bool, the pixels at which the truth is known for the object's class.
    """

    predictor: SlicePredictor
    samples: Sequence[Sample]
    frames: Sequence[Frame]
    embeddings: Tensor | None
    owner: Array
    class_ids: Array
    truth: list[Array]
    known: list[Array]

    @classmethod
    def of(cls, predictor: SlicePredictor, samples: Sequence[Sample]) -> _PromptedSlices:
        """Find the objects of the samples, and embed the slices if any setting needs it."""
        policy = predictor.policy
        parts = [objects_in(s.maps, policy.objects, policy.min_area, s.instances) for s in samples]
        owner = np.repeat(np.arange(len(parts)), [len(ids) for ids, _ in parts])
        class_ids = np.concatenate([ids for ids, _ in parts])
        needed = len(owner) or policy.is_semantic or predictor.classes == 1
        return cls(
            predictor=predictor,
            samples=samples,
            frames=[frame_of(predictor.sam, sample.image) for sample in samples],
            embeddings=predictor.embed(samples) if needed else None,
            owner=owner,
            class_ids=class_ids,
            truth=[mask for _, masks in parts for mask in masks],
            known=[
                ~samples[int(image)].unknown(int(class_id))
                for image, class_id in zip(owner, class_ids, strict=True)
            ],
        )

    def without_prompt(self) -> list[Array]:
        """Return the label maps of a model that gets no prompt."""
        embeddings, sam = self._embedded(), self.predictor.sam
        if self.predictor.policy.is_semantic:
            found = segment_semantic(
                sam,
                embeddings,
                self.frames,
                self.predictor.classes,
                background_token=self.predictor.policy.background_token,
                overlapping=self.predictor.overlapping,
            )
            return [labels.reshape(-1, *labels.shape[-2:]) for labels in found]
        embedding = image_embedding(sam, embeddings)
        logits = sam.decode(embedding, Prompts(), multimask=False).logits
        planes = [self._original(logits[i], frame) for i, frame in enumerate(self.frames)]
        return [(plane > sam.mask_threshold).astype(np.uint8) for plane in planes]

    def clicked(self) -> Iterator[Answer]:
        """Click on every object up to the largest number of clicks.

        An object whose mask has no error left gets no further click and keeps its mask.
        """
        prompts = []
        for mask, class_id in zip(self.truth, self.class_ids, strict=True):
            points, labels = first_clicks(mask[None])
            prompts.append(ImagePrompts(class_id[None], points=points, point_labels=labels))
        # One click is ambiguous: it may mean a part or the whole. Of several masks SAM takes the
        # one with the highest predicted IoU, and one mask from the second click on.
        low, iou = self._decode(prompts, ambiguous=True)
        threshold = self.predictor.sam.mask_threshold
        for count in range(1, max(CLICKS) + 1):
            planes = self._planes(low)
            if count in CLICKS:
                yield CLICKS[count], self.maps(planes), self._overlaps(planes, iou)
            if count == max(CLICKS):
                return
            previous = low.cpu().numpy()
            wrong = []
            for i, (plane, true, known) in enumerate(
                zip(planes, self.truth, self.known, strict=True)
            ):
                mask = (plane > threshold) & known
                point, label = next_clicks(true[None], mask[None])
                wrong.append(bool(label[0, 0] >= 0))
                # The next prompt is all clicks so far, together with the last mask.
                prompts[i] = replace(
                    prompts[i],
                    points=np.concatenate([prompts[i].points, point], axis=1),
                    point_labels=np.concatenate([prompts[i].point_labels, label], axis=1),
                    mask_logits=previous[i : i + 1],
                )
            better, sure = self._decode(prompts, ambiguous=False)
            changed = torch.tensor(wrong, device=low.device)
            low = torch.where(changed[:, None, None, None], better, low)
            iou = torch.where(changed, sure, iou)

    def boxed(self, boxes: Sequence[Array]) -> tuple[list[Array], list[tuple[float, float]]]:
        """Prompt every object with its box (4,)."""
        prompts = [
            ImagePrompts(class_id[None], boxes=box[None])
            for class_id, box in zip(self.class_ids, boxes, strict=True)
        ]
        low, iou = self._decode(prompts, ambiguous=False)
        planes = self._planes(low)
        return self.maps(planes), self._overlaps(planes, iou)

    def maps(self, planes: Sequence[Array]) -> list[Array]:
        """Return the label maps of the objects' logits, one for each slice.

        Each is (1, h, w), in which the higher logit wins where objects overlap; or (K, h, w), a
        map for each class, if classes are scored independently and take no pixels from each other.
        """
        every = list(range(1, self.predictor.classes + 1))
        groups = [[class_id] for class_id in every] if self.predictor.independent else [every]
        threshold = self.predictor.sam.mask_threshold
        found = []
        for image, sample in enumerate(self.samples):
            shape = sample.labels.shape
            labels = np.zeros((len(groups), *shape), np.uint8)
            for place, group in enumerate(groups):
                chosen = np.flatnonzero((self.owner == image) & np.isin(self.class_ids, group))
                if len(chosen):
                    logits = torch.from_numpy(np.stack([planes[int(i)] for i in chosen]))
                    numbers = merge_objects([logits], shape, threshold)
                    # numbers (h, w) are 1..n in the order of ``chosen``, and 0 where no object is.
                    labels[place] = np.append(0, self.class_ids[chosen])[numbers]
            found.append(labels)
        return found

    def _decode(self, prompts: list[ImagePrompts], *, ambiguous: bool) -> tuple[Tensor, Tensor]:
        """Decode every object.

        Args:
            prompts: one item for each object.
            ambiguous: of several masks take the one with the highest predicted IoU.

        Returns:
            Logits (n, 1, 4g, 4g) in the model frame, and predicted IoU (n,).
        """
        decoded = object_logits(
            self.predictor.sam,
            image_embedding(self.predictor.sam, self._embedded()),
            self.frames,
            prompts,
            images=self.owner.tolist(),
            multimask=ambiguous,
            token_of_class=self.predictor.policy.is_semantic,
        )
        logits, iou = zip(*decoded, strict=True)
        return torch.cat(logits).float(), torch.cat(iou).float()

    def _planes(self, low: Tensor) -> list[Array]:
        """Return the logits (h, w) of each object in its original frame."""
        return [
            self._original(logits[None], self.frames[image])[0]
            for logits, image in zip(low, self.owner, strict=True)
        ]

    def _original(self, logits: Tensor, frame: Frame) -> Array:
        """Bring logits (p, 1, 4g, 4g) back to (p, h, w)."""
        planes: Array = self.predictor.sam.postprocess(logits[None], frame)[0, :, 0].cpu().numpy()
        return planes

    def _overlaps(self, planes: Sequence[Array], iou: Tensor) -> list[tuple[float, float]]:
        """Return the (predicted, true) IoU of each object's mask."""
        threshold = self.predictor.sam.mask_threshold
        true = [
            overlap((plane > threshold) & known, mask)
            for plane, known, mask in zip(planes, self.known, self.truth, strict=True)
        ]
        return list(zip(iou.tolist(), true, strict=True))

    def _embedded(self) -> Tensor:
        if self.embeddings is None:
            raise RuntimeError("these slices were not embedded")
        return self.embeddings
