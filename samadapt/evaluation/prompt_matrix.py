"""The oracle gap: the same model scored with no prompt, with clicks, and with good and bad boxes.

Scores with an exact box are an upper bound that nobody reaches by hand. Here every setting is
scored on the same slices, in one pass over the encoder:

========================  ==================================================================
setting                   what the model is given for each object
========================  ==================================================================
none                      nothing
1, 3, 5, 8 clicks         simulated clicks (``prompts/clicks.py``), the mask so far given back
box                       the exact box of the ground truth
box moved 5, 10, 20 px    that box shifted by so many pixels, where the longest side is 1024
========================  ==================================================================

All but ``none`` use the ground truth. A box is shifted in a direction that is drawn for each object
by a fixed seed; its size stays. Without a prompt a model that was trained with prompts can only
tell one class, so that of several classes ``none`` is not scored for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from samadapt.evaluation.evaluate import Place, in_parts, joined, place_of, score_maps
from samadapt.evaluation.inference import object_labels, segment_semantic
from samadapt.evaluation.metrics import CaseClassScore, summarise
from samadapt.evaluation.metrics import iou as overlap
from samadapt.evaluation.scores import OVERLAP
from samadapt.prompts.clicks import Clicks, first_clicks, next_clicks
from samadapt.prompts.simulate import SAM_SIDE, boxes_of, objects_in
from samadapt.sam.geometry import to_model_boxes, to_model_points
from samadapt.sam.types import Prompts
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from samadapt.data.types import Sample, SliceRef
    from samadapt.evaluation.evaluate import Predictor
    from samadapt.sam.types import Frame


NONE = "none"
CLICKS = {1: "1 click", 3: "3 clicks", 5: "5 clicks", 8: "8 clicks"}
BOX = "box"
MOVED = {5: "box moved 5 px", 10: "box moved 10 px", 20: "box moved 20 px"}
SETTINGS = (NONE, *CLICKS.values(), BOX, *MOVED.values())
OBJECTS_AT_ONCE = 32
"""Objects in one decoder call; bounds the memory."""
SEED = 20
"""Of the directions in which boxes are shifted."""


@dataclass
class Scores:
    """One setting of a model.

    Attributes:
        rows: a score for each case and class, over all of the case's slices.
        summary: their means, as ``metrics.summarise`` gives them.
        iou: (predicted, true) IoU of every object's mask; for ``calibration.py``.
    """

    rows: list[CaseClassScore] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    iou: list[tuple[float, float]] = field(default_factory=list)


@torch.no_grad()
def score_settings(
    predictor: Predictor,
    refs: Sequence[SliceRef],
    read: Callable[[SliceRef], Sample],
    classes: Sequence[str],
    done: Callable[[int], None] = lambda count: None,
) -> dict[str, Scores]:
    """Score a model in every setting.

    Args:
        predictor: the model; its policy says what an object is. One that was trained without
            prompts answers for an object with the mask token of the object's class.
        refs: the slices, sorted by case.
        read: slice to sample; prompts that came with a sample are not used.
        classes: names of the classes 1..K.
        done: called with the number of slices finished since the last call.

    Returns:
        Scores by the names in ``SETTINGS``; without ``none`` where it means nothing.
    """
    unprompted = predictor.policy.is_semantic or predictor.classes == 1
    found = {name: Scores() for name in SETTINGS if unprompted or name != NONE}
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
                for name, answers, iou in _settings(predictor, samples, rng, unprompted):
                    maps[name] += answers
                    found[name].iou += iou
            done(len(part))
        whole = joined(truth, places)
        for name, answers in maps.items():
            found[name].rows += score_maps(
                case, joined(answers, places), whole, classes, scores=OVERLAP
            )
    for scores in found.values():
        scores.summary = summarise(scores.rows, classes)
    return found


Setting = tuple[str, list[Array], list[tuple[float, float]]]
"""A setting's name; label maps (n, h, w), one a slice; the IoU predicted and true of each object"""


def _settings(
    predictor: Predictor, samples: Sequence[Sample], rng: np.random.Generator, unprompted: bool
) -> Iterator[Setting]:
    """Answer a batch of slices in every setting."""
    batch = _Batch.of(predictor, samples)
    if unprompted:
        yield NONE, batch.without_prompt(), []
    if not len(batch.ids):
        for name in SETTINGS[1:]:
            yield name, batch.maps([]), []
        return
    yield from batch.clicked()
    boxes = [boxes_of(mask[None])[0] for mask in batch.masks]
    yield (BOX, *batch.boxed(boxes))
    turns = rng.uniform(0, 2 * np.pi, len(boxes))
    for pixels, name in MOVED.items():
        moved = [
            shift_box(box, mask.shape, pixels, turn)
            for box, mask, turn in zip(boxes, batch.masks, turns, strict=True)
        ]
        yield (name, *batch.boxed(moved))


def shift_box(box: Array, shape: tuple[int, ...], pixels: float, turn: float) -> Array:
    """Shift a box, of which at least a pixel stays in the image.

    Args:
        box: (4,) XYXY pixels.
        shape: (h, w) of the image.
        pixels: how far, where the longest side is 1024.
        turn: direction in radians, from x towards y.
    """
    height, width = shape[:2]
    far = pixels * max(height, width) / SAM_SIDE
    moved = box + far * np.array([np.cos(turn), np.sin(turn)] * 2)
    low = np.clip(moved[:2], 0, [width - 1, height - 1])
    high = np.clip(moved[2:], low + 1, [width, height])
    return np.concatenate([low, high]).astype(np.float32)


@dataclass(frozen=True)
class _Batch:
    """Some slices, embedded once, and the n objects in all of them.

    Attributes:
        owner: (n,) position of each object's slice.
        ids: (n,) its class.
        masks: n arrays (h, w) bool.
        known: n arrays (h, w) bool: where it is known whether a pixel is of the object.
    """

    predictor: Predictor
    samples: Sequence[Sample]
    frames: Sequence[Frame]
    embeddings: Tensor | None
    owner: Array
    ids: Array
    masks: list[Array]
    known: list[Array]

    @classmethod
    def of(cls, predictor: Predictor, samples: Sequence[Sample]) -> _Batch:
        """Find the objects of the samples and embed the slices that are needed."""
        policy = predictor.policy
        parts = [objects_in(s.maps, policy.objects, policy.min_area, s.instances) for s in samples]
        owner = np.repeat(np.arange(len(parts)), [len(ids) for ids, _ in parts])
        classes = np.concatenate([ids for ids, _ in parts])
        needed = len(owner) or policy.is_semantic or predictor.classes == 1
        return cls(
            predictor,
            samples,
            [predictor.frame_of(sample.image) for sample in samples],
            predictor.embed(samples) if needed else None,
            owner,
            classes,
            [mask for _, masks in parts for mask in masks],
            [
                ~samples[int(image)].unknown(int(class_id))
                for image, class_id in zip(owner, classes, strict=True)
            ],
        )

    def without_prompt(self) -> list[Array]:
        """Return the label maps of a model that is given nothing."""
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
        logits = sam.decode(embeddings, Prompts(), multimask=False).logits
        planes = [self._original(logits[i], frame) for i, frame in enumerate(self.frames)]
        return [(plane > sam.mask_threshold).astype(np.uint8) for plane in planes]

    def clicked(self) -> Iterator[Setting]:
        """Click on every object until each has had the most clicks, one that is exact no more."""
        points, labels = _joined(first_clicks(mask[None]) for mask in self.masks)
        low, iou = self._answer({"points": points, "point_labels": labels}, None, ambiguous=True)
        for count in range(1, max(CLICKS) + 1):
            planes = self._planes(low)
            if count in CLICKS:
                yield CLICKS[count], self.maps(planes), self._overlaps(planes, iou)
            threshold = self.predictor.sam.mask_threshold
            found = [
                (plane > threshold) & known for plane, known in zip(planes, self.known, strict=True)
            ]
            pairs = zip(self.masks, found, strict=True)
            point, label = _joined(next_clicks(true[None], mask[None]) for true, mask in pairs)
            points, labels = np.concatenate([points, point], 1), np.concatenate([labels, label], 1)
            wrong = torch.from_numpy(label[:, 0] >= 0).to(low.device)
            prompts = {"points": points, "point_labels": labels}
            better, sure = self._answer(prompts, low, ambiguous=False)
            low = torch.where(wrong[:, None, None, None], better, low)
            iou = torch.where(wrong, sure, iou)

    def boxed(self, boxes: Sequence[Array]) -> tuple[list[Array], list[tuple[float, float]]]:
        """Give every object its box (4,)."""
        low, iou = self._answer({"boxes": np.stack(boxes)}, None, ambiguous=False)
        planes = self._planes(low)
        return self.maps(planes), self._overlaps(planes, iou)

    def maps(self, planes: Sequence[Array]) -> list[Array]:
        """Return label maps (1, h, w) of the objects' logits, or (K, h, w), a map for each class.

        Where objects overlap the higher logit wins; classes that are scored each on its own take
        no pixels from each other.
        """
        every = list(range(1, self.predictor.classes + 1))
        groups = [[class_id] for class_id in every] if self.predictor.independent else [every]
        labels = [
            np.zeros((len(groups), *sample.labels.shape), np.uint8) for sample in self.samples
        ]
        for place, group in enumerate(groups):
            for image, answer in enumerate(labels):
                chosen = np.flatnonzero((self.owner == image) & np.isin(self.ids, group))
                if len(chosen):
                    logits = torch.from_numpy(np.stack([planes[int(i)] for i in chosen]))[
                        None, :, None
                    ]
                    ids = torch.from_numpy(self.ids[chosen])[None]
                    threshold = self.predictor.sam.mask_threshold
                    answer[place] = object_labels(logits, ids, threshold)[0].numpy()
        return labels

    def _answer(
        self, prompts: dict[str, Array], previous: Tensor | None, *, ambiguous: bool
    ) -> tuple[Tensor, Tensor]:
        """Decode every object: logits (n, 1, 4g, 4g) in the model frame and predicted IoU (n,).

        Args:
            prompts: ``boxes`` (n, 4), or ``points`` (n, k, 2) and ``point_labels``, in pixels.
            previous: (n, 1, 4g, 4g) logits of the answer before.
            ambiguous: of several masks take the one with the highest predicted IoU.
        """
        sam, semantic = self.predictor.sam, self.predictor.policy.is_semantic
        embeddings = self._embedded()
        low, iou = [], []
        for part in in_parts(range(len(self.ids)), OBJECTS_AT_ONCE):
            rows = np.asarray(part)
            given = self._prompts({key: value[rows] for key, value in prompts.items()}, rows)
            masks = None if previous is None else previous[rows][:, None]
            images = torch.from_numpy(self.owner[rows]).to(embeddings.device)
            output = sam.decode(
                embeddings[images],
                Prompts(**given, masks=masks),
                multimask=semantic or ambiguous,
            )
            logits, sure = output.logits[:, 0].float(), output.iou[:, 0].float()
            ids = torch.from_numpy(self.ids[rows] - 1).to(sure.device)
            chosen = ids if semantic else sure.argmax(dim=1)
            low.append(logits.take_along_dim(chosen[:, None, None, None], dim=1))
            iou.append(sure.take_along_dim(chosen[:, None], dim=1)[:, 0])
        return torch.cat(low), torch.cat(iou)

    def _prompts(self, prompts: dict[str, Array], rows: Array) -> dict[str, Tensor]:
        """Bring prompts of some objects into the model frame: (n, 1, ...)."""
        device = self.predictor.sam.device
        frames = [self.frames[image] for image in self.owner[rows]]
        to_model = {"boxes": to_model_boxes, "points": to_model_points}
        given = {}
        for key, values in prompts.items():
            if key in to_model:
                pairs = zip(values, frames, strict=True)
                values = np.stack([to_model[key](one, frame) for one, frame in pairs])
            kind = torch.int64 if key == "point_labels" else torch.float32
            given[key] = torch.as_tensor(values[:, None], dtype=kind, device=device)
        return given

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
        """Return the IoU (predicted, true) of each object's mask."""
        threshold = self.predictor.sam.mask_threshold
        true = [
            overlap((plane > threshold) & known, mask)
            for plane, known, mask in zip(planes, self.known, self.masks, strict=True)
        ]
        return list(zip(iou.tolist(), true, strict=True))

    def _embedded(self) -> Tensor:
        if self.embeddings is None:
            raise RuntimeError("these slices were not embedded")
        return self.embeddings


def _joined(clicks: Iterable[Clicks]) -> Clicks:
    points, labels = zip(*clicks, strict=True)
    return np.concatenate(points), np.concatenate(labels)
