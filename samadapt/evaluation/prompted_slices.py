"""Some slices with their objects, and the answers of a model to prompts that it gets for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from samadapt.evaluation.case_scores import iou as overlap
from samadapt.evaluation.number_of_clicks import MOST_CLICKS
from samadapt.prompts.clicker import PROBABILITY, Clicker, with_click
from samadapt.prompts.drawings import with_drawings
from samadapt.prompts.simulate import objects_in
from samadapt.sam.decode import image_embedding, merge_objects, object_logits, segment_semantic
from samadapt.sam.embed import frame_of
from samadapt.sam.types import ImagePrompts, Prompts
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from samadapt.data.types import Sample
    from samadapt.evaluation.evaluate import SlicePredictor
    from samadapt.prompts.policy import Kind
    from samadapt.sam.types import Frame

Pairs = list[tuple[float, float]]
"""(predicted, true) IoU of each object's mask."""

CLICK_LOGIT = math.log(PROBABILITY / (1 - PROBABILITY))
"""Logit above which a pixel belongs to the mask that the simulated user corrects."""


@dataclass(frozen=True)
class ClickedMasks:
    """The masks of all objects after some clicks.

    Attributes:
        maps: label maps (n, h, w), one per slice.
        pairs: (predicted, true) IoU of each object's mask at the model's threshold.
        iou: IoU of each object's mask at the threshold of the protocol, ``PROBABILITY``.
    """

    maps: list[Array]
    pairs: Pairs
    iou: list[float]


@dataclass(frozen=True)
class PromptedSlices:
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

    def __len__(self) -> int:
        """Return the number n of objects."""
        return len(self.class_ids)

    @classmethod
    def of(cls, predictor: SlicePredictor, samples: Sequence[Sample]) -> PromptedSlices:
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

    def clicked(self) -> Iterator[ClickedMasks]:
        """Click on every object, and yield the masks after each of ``MOST_CLICKS`` clicks.

        A click is placed by ``clicker.py``. An object whose mask has no error left gets no further
        click and keeps its mask.
        """
        users = [Clicker(*pair) for pair in zip(self.truth, self.known, strict=True)]
        found = [np.zeros_like(mask) for mask in self.truth]
        prompts = [ImagePrompts(class_id[None]) for class_id in self.class_ids]
        low: Tensor | None = None
        iou: Tensor | None = None
        for count in range(1, MOST_CLICKS + 1):
            wrong = [
                bool(((mask != true) & known).any())
                for mask, true, known in zip(found, self.truth, self.known, strict=True)
            ]
            for i, (user, mask) in enumerate(zip(users, found, strict=True)):
                # Label -1 is padding: the number of points stays equal among the objects.
                clicked = user.click(mask) if wrong[i] else ((0.0, 0.0), -1)
                prompts[i] = with_click(prompts[i], *clicked)
            # One click is ambiguous: it may mean a part or the whole. Of several masks SAM takes
            # the one with the highest predicted IoU, and one mask from the second click on.
            better, sure = self._decode(prompts, ambiguous=count == 1)
            if low is not None and iou is not None:
                changed = torch.tensor(wrong, device=low.device)
                better = torch.where(changed[:, None, None, None], better, low)
                sure = torch.where(changed, sure, iou)
            low, iou = better, sure
            planes = self._planes(low)
            found = [
                (plane > CLICK_LOGIT) & known
                for plane, known in zip(planes, self.known, strict=True)
            ]
            true = [overlap(mask, truth) for mask, truth in zip(found, self.truth, strict=True)]
            yield ClickedMasks(self.maps(planes), self._overlaps(planes, iou), true)
            # The next prompt is all clicks so far, together with the last mask.
            previous = low.cpu().numpy()
            prompts = [
                replace(item, mask_logits=previous[i : i + 1]) for i, item in enumerate(prompts)
            ]

    def boxed(self, boxes: Sequence[Array]) -> tuple[list[Array], Pairs]:
        """Prompt every object with its box (4,)."""
        prompts = [
            ImagePrompts(class_id[None], boxes=box[None])
            for class_id, box in zip(self.class_ids, boxes, strict=True)
        ]
        # A model that was trained with clicks gives several masks to any single prompt.
        low, iou = self._decode(prompts, ambiguous=self.predictor.policy.is_interactive)
        planes = self._planes(low)
        return self.maps(planes), self._overlaps(planes, iou)

    def drawn(self, kind: Kind) -> tuple[list[Array], Pairs]:
        """Prompt every object with its scribble or its rough mask, as an evaluation does."""
        policy = replace(self.predictor.policy, kind=kind, shares={})
        prompts = [
            with_drawings(ImagePrompts(class_id[None], mask[None]), mask, policy)
            for class_id, mask in zip(self.class_ids, self.truth, strict=True)
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

    @property
    def _by_token_of_class(self) -> bool:
        """Whether the mask tokens stand for classes and no longer for the masks of a prompt."""
        predictor = self.predictor
        return predictor.policy.is_semantic and not predictor.sam.has_class_tokens

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
            token_of_class=self._by_token_of_class,
            click_disks=self.predictor.policy.click_disks,
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

    def _overlaps(self, planes: Sequence[Array], iou: Tensor) -> Pairs:
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
