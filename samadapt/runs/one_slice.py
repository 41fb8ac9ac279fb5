"""Compare the ways of carrying objects through volumes, for ``evaluate prompts=one_slice``.

Each object is prompted on its middle slice and carried to all others: by prompts that its mask
makes on the next slice (``propagate=true`` of ``samadapt predict``), by the mask itself
(``carry=mask``), and by the memory of SAM 2 (``propagate=memory``) if the model has one. The slices
are embedded once for all ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samadapt.data.types import IGNORED, SliceRef
from samadapt.evaluation.one_slice import CarriedScore, summarise_carried, zone_scores
from samadapt.inference.memory_propagation import MemoryPropagation
from samadapt.inference.propagate import Propagation, plan_walks
from samadapt.inference.spool import Spool
from samadapt.prompts.middle_slice import VolumeObject, by_middle_slice, objects_of_volume
from samadapt.reports.one_slice import write_one_slice
from samadapt.reports.tables import STATES
from samadapt.runs.oracle_gap import untrained
from samadapt.sam.decode import image_embedding
from samadapt.sam.embed import frame_of
from samadapt.sam.tracking import why_no_memory
from samadapt.system import processes

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.data.dataset import Dataset
    from samadapt.data.types import Sample
    from samadapt.evaluation.evaluate import SlicePredictor
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.runs.scorer import Scorer
    from samadapt.sam.segmentation_model import SegmentationModel
    from samadapt.sam.types import Frame
    from samadapt.system.arrays import Array


@dataclass
class OneSlice:
    """The scores of two models on objects that are prompted on one slice.

    Attributes:
        scorer: scores the model of the run, which changes from the base to the adapted one.
        refs: the slices that are scored.
        objects: by state (``zero_shot``, ``adapted``): the scores of each object in each way.
    """

    scorer: Scorer
    refs: Sequence[SliceRef]
    objects: dict[str, list[CarriedScore]] = field(default_factory=dict)

    def measure(self, state: str) -> None:
        """Score the run's model as it is now, under the name of one of ``STATES``."""
        context = self.scorer.context
        predictor = self.scorer.predictor(self._policy(state))
        scores = self.objects.setdefault(state, [])
        with context.progress.phase(f"one slice, {STATES[state]}", units=len(self.refs)):
            cases = [list(group) for _, group in groupby(self.refs, key=lambda ref: ref.case)]
            own = []
            for refs in processes.share(cases):
                with torch.no_grad(), predictor.autocast(), Spool() as spool:
                    volume = PromptedVolume(context.dataset, predictor, refs, spool)
                    own.append(
                        [one for way in ways_of(context.model) for one in volume.scores(way)]
                    )
                context.progress.advance(len(refs) * processes.count())
            for found in processes.shares_joined(processes.gather(own)):
                scores += found

    def _policy(self, state: str) -> PromptPolicy:
        """Return how objects are prompted: by the main kind of the adapter that takes prompts."""
        context = self.scorer.context
        if context.policy.is_mixed:
            main = context.policy.of_kind(context.policy.main_kind)
            boxes = context.policy.answering(points=False)
            context = replace(context, policy=boxes if main.is_semantic else main)
        return untrained(context.zero_shot_policy) if state == "zero_shot" else context.policy

    def summary(self) -> dict[str, Any]:
        """Return the entry ``one_slice`` of ``summary.json``."""
        names = self.scorer.context.dataset.classes
        found = {state: summarise_carried(one, names) for state, one in self.objects.items()}
        return {"one_slice": found}

    def write(self, directory: Path, summary: dict[str, Any]) -> None:
        """Write ``one_slice.csv``.

        Args:
            directory: its folder.
            summary: what ``summary`` returned; the file has each object instead.
        """
        del summary
        write_one_slice(directory, self.objects)


def ways_of(sam: SegmentationModel) -> list[str]:
    """Return the ways in which a model can carry objects."""
    return ["prompt", "mask", *([] if why_no_memory(sam) else ["memory"])]


class PromptedVolume:
    """One volume and its objects, each prompted on its middle slice.

    Args:
        data: the data set.
        predictor: the model, and how it is prompted.
        refs: the scored slices of the case, in order.
        spool: keeps the embeddings.
    """

    def __init__(
        self, data: Dataset, predictor: SlicePredictor, refs: Sequence[SliceRef], spool: Spool
    ) -> None:
        self.data, self.predictor, self.spool = data, predictor, spool
        self.case, self.first = refs[0].case, refs[0].index
        self.depth = refs[-1].index - self.first + 1
        samples = [data.sample(ref) for ref in refs]
        self.indices = np.array([ref.index for ref in refs])
        self.frame: Frame = frame_of(predictor.sam, samples[0].image)
        self.objects = objects_of_volume(samples, predictor.policy)
        self.known = {
            class_id: [_known(one, class_id) for one in samples]
            for class_id in {one.class_id for one in self.objects}
        }

    def scores(self, way: str) -> list[CarriedScore]:
        """Return the scores of all objects that are carried in one way."""
        places = {int(index) - self.first: place for place, index in enumerate(self.indices)}
        prompts = {
            int(self.indices[place]) - self.first: items
            for place, items in by_middle_slice(self.objects).items()
        }
        counts = {one.number: self._true_pixels(one) for one in self.objects}
        by_number = {one.number: one for one in self.objects}
        up, down = plan_walks(prompts, self.depth, None)
        for index, found in self._propagation(way)(prompts, up, down):
            if (place := places.get(index)) is None:
                continue
            for number, mask in zip(found, self._masks(list(found.values())), strict=True):
                one = by_number[number]
                mask = mask & self.known[one.class_id][place]
                counts[number][place, 1:] = mask.sum(), (mask & one.on(place)).sum()
        return [self._score(way, one, counts[one.number]) for one in self.objects]

    def _true_pixels(self, one: VolumeObject) -> Array:
        """Return counts (n, 3) on the scored slices, of which only the truth is known yet."""
        counts = np.zeros((len(self.indices), 3), np.int64)
        for place, known in enumerate(self.known[one.class_id]):
            counts[place, 0] = (one.on(place) & known).sum()
        return counts

    def _score(self, way: str, one: VolumeObject, counts: Array) -> CarriedScore:
        middle = int(self.indices[one.middle])
        return CarriedScore(
            way=way,
            case=self.case,
            class_name=self.data.classes[one.class_id - 1],
            number=one.number,
            slice_index=middle,
            **zone_scores(counts, np.abs(self.indices - middle)),
        )

    def _masks(self, logits: Sequence[Tensor]) -> Array:
        """Return masks (p, h, w) in the original frame, given logits (1, 4g, 4g) of p objects."""
        sam = self.predictor.sam
        large = sam.postprocess(torch.stack(list(logits))[None].float(), self.frame)[0, :, 0]
        masks: Array = (large > sam.mask_threshold).cpu().numpy()
        return masks

    def _propagation(self, way: str) -> Propagation:
        sam = self.predictor.sam
        given: dict[str, Any] = {
            "sam": sam,
            "embed": self._embed,
            "policy": self.predictor.policy,
            "threshold": sam.mask_threshold,
            "ahead": self.predictor.batch_size,
        }
        if way == "memory":
            return MemoryPropagation(**given, depth=self.depth)
        return Propagation(**given, carry="mask" if way == "mask" else "prompt")

    def _embed(self, indices: Sequence[int]) -> tuple[Tensor, list[Frame]]:
        """Return the embeddings of slices, counted from the first scored one."""
        sam = self.predictor.sam
        missing = [index for index in indices if index not in self.spool]
        if missing:
            refs = [SliceRef(self.case, self.first + index) for index in missing]
            samples = [self.data.sample(ref) for ref in refs]
            embeddings = image_embedding(sam, self.predictor.embed(samples))
            for index, one in zip(missing, embeddings, strict=True):
                self.spool.put(index, one)
        found = torch.stack([self.spool.get(index) for index in indices])
        return found.to(sam.device), [self.frame] * len(indices)


def _known(sample: Sample, class_id: int) -> Array:
    """Return where (h, w) it is known whether a class is there."""
    truth = sample.truth
    plane = truth[class_id - 1] if truth.ndim == 3 else truth
    known: Array = plane != IGNORED
    return known
