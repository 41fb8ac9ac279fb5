"""Measure a box and five clicks in whole volumes, for ``evaluate prompts=volume_clicks``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samadapt.data.types import IGNORED
from samadapt.errors import ConfigError, DataError
from samadapt.evaluation.evaluate import joined, mask_of_class, place_of, score_maps
from samadapt.evaluation.volume_clicks import (
    SCORES,
    TOLERANCE_MM,
    VOLUME_CLICKS,
    CorrectedClass,
    corrected_classes,
    summarise_corrections,
)
from samadapt.inference.corrected_object import CorrectedObject
from samadapt.inference.memory_propagation import MemoryPropagation
from samadapt.inference.propagate import Propagation
from samadapt.inference.spool import Spool
from samadapt.prompts.volume_clicker import volume_box, volume_click
from samadapt.reports.tables import STATES
from samadapt.reports.volume_clicks import write_volume_clicks
from samadapt.runs.oracle_gap import untrained
from samadapt.sam.decode import image_embedding, object_numbers
from samadapt.sam.embed import frame_of
from samadapt.sam.tracking import why_no_memory
from samadapt.system import processes

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.data.dataset import Dataset
    from samadapt.data.types import SliceRef
    from samadapt.evaluation.case_scores import CaseClassScore
    from samadapt.evaluation.evaluate import SlicePredictor
    from samadapt.runs.scorer import Scorer
    from samadapt.sam.segmentation_model import SegmentationModel
    from samadapt.sam.types import Frame
    from samadapt.system.arrays import Array


@dataclass
class VolumeClicks:
    """The scores of two models with a box and clicks in volumes.

    Attributes:
        scorer: scores the model of the run, which changes from the base to the adapted one.
        refs: the slices that are scored.
        by_memory: objects are carried by the memory of SAM 2, and not by prompts.
        classes: by state (``zero_shot``, ``adapted``): the scores of each class in each case.
    """

    scorer: Scorer
    refs: Sequence[SliceRef]
    by_memory: bool = False
    classes: dict[str, list[CorrectedClass]] = field(default_factory=dict)

    def measure(self, state: str) -> None:
        """Score the run's model as it is now, under the name of one of ``STATES``."""
        context = self.scorer.context
        if context.policy.is_mixed:  # a box and clicks
            context = replace(context, policy=context.policy.answering(points=True))
        is_base = state == "zero_shot"
        policy = untrained(context.zero_shot_policy) if is_base else context.policy
        predictor = self.scorer.predictor(policy)
        scores = self.classes.setdefault(state, [])
        with context.progress.phase(f"box and clicks, {STATES[state]}", units=len(self.refs)):
            cases = [list(group) for _, group in groupby(self.refs, key=lambda ref: ref.case)]
            own = []
            for refs in processes.share(cases):
                with torch.no_grad(), predictor.autocast(), Spool() as spool:
                    volume = _Volume(self.scorer, predictor, refs, spool, by_memory=self.by_memory)
                    own.append(corrected_classes(list(volume.answers())))
                context.progress.advance(len(refs) * processes.count())
            for found in processes.shares_joined(processes.gather(own)):
                scores += found

    def summary(self) -> dict[str, Any]:
        """Return the entry ``volume_clicks`` of ``summary.json``."""
        names = self.scorer.context.dataset.classes
        found = {state: summarise_corrections(one, names) for state, one in self.classes.items()}
        return {"volume_clicks": found}

    def write(self, directory: Path, summary: dict[str, Any]) -> None:
        """Write ``volume_clicks.csv`` and ``volume_clicks.png``.

        Args:
            directory: their folder.
            summary: what ``summary`` returned.
        """
        write_volume_clicks(directory, self.classes, summary["volume_clicks"])


def refuse_without_memory(sam: SegmentationModel) -> None:
    """Refuse ``propagate=memory`` for a model that has no memory.

    Raises:
        ConfigError: says why it has none.
    """
    if reason := why_no_memory(sam):
        raise ConfigError(
            f"propagate=memory carries objects by the memory of SAM 2: {reason}. Leave it out"
        )


def refuse_pictures(data: Dataset, prompts: str) -> None:
    """Refuse a data set in which an object lies in one slice only.

    Args:
        data: the data set.
        prompts: what was asked for, for the message.

    Raises:
        ConfigError: no case is a volume whose slices are seen together.
    """
    if all(case.shape[2] == 1 for case in data.cases):
        raise ConfigError(
            f"prompts={prompts} scores volumes; {data.name} has cases of one slice. "
            "prompts=matrix counts the clicks on each slice"
        )


class _Volume:
    """One volume and its objects, of which each is all of a class.

    Args:
        scorer: knows the data set.
        predictor: the model.
        refs: all slices of the case.
        spool: keeps the embeddings.
        by_memory: see ``VolumeClicks``.

    Raises:
        DataError: slices are missing between others, so that nothing can be carried across.
    """

    def __init__(
        self,
        scorer: Scorer,
        predictor: SlicePredictor,
        refs: Sequence[SliceRef],
        spool: Spool,
        *,
        by_memory: bool,
    ) -> None:
        self.predictor, self.refs, self.spool = predictor, refs, spool
        self.by_memory = by_memory
        self.data = scorer.context.dataset
        self.case = refs[0].case
        if refs[-1].index - refs[0].index + 1 != len(refs):
            raise DataError(
                f"case {self.case!r}: prompts=volume_clicks carries objects through all slices of "
                f"a volume; {len(refs)} of the slices {refs[0].index} to {refs[-1].index} are "
                "scored, because the others are not annotated"
            )
        samples = [self.data.sample(ref) for ref in refs]
        self.frame: Frame = frame_of(predictor.sam, samples[0].image)
        self.truth = joined([one.truth for one in samples], [place_of(one) for one in samples])

    def answers(self) -> Iterator[list[CaseClassScore]]:
        """Yield the scores of all classes after the box, and after each click."""
        truth, known = self._masks_of_classes()
        objects = {
            label: CorrectedObject(self._propagation, volume_box(mask))
            for label, mask in truth.items()
        }
        for count in range(VOLUME_CLICKS + 1):
            maps = self._maps(objects)
            yield self._scores(maps)
            if count == VOLUME_CLICKS:
                return
            for label, corrected in objects.items():
                found = maps[label - 1 if len(maps) > 1 else 0] == label
                click = volume_click(truth[label], known[label], np.moveaxis(found, -1, 0))
                if click is not None:
                    corrected.click(*click)

    def _masks_of_classes(self) -> tuple[dict[int, Array], dict[int, Array]]:
        """Return the truth (d, h, w) of each class that the case has, and where it is known."""
        truth, known = {}, {}
        for label in range(1, self.predictor.classes + 1):
            mask = np.moveaxis(mask_of_class(self.truth, label), -1, 0)
            if (mask == 1).any():
                truth[label], known[label] = mask == 1, mask != IGNORED
        return truth, known

    def _scores(self, maps: Array) -> list[CaseClassScore]:
        return score_maps(
            self.case,
            maps,
            self.truth,
            self.data.classes,
            spacing_mm=self.data.case(self.case).spacing_mm,
            tolerance=TOLERANCE_MM,
            scores=SCORES,
        )

    def _maps(self, objects: dict[int, CorrectedObject]) -> Array:
        """Return class ids (n, h, w, d): one map, or one for each class if they are independent."""
        sam, every = self.predictor.sam, list(range(1, self.predictor.classes + 1))
        groups = [[label] for label in every] if self.predictor.independent else [every]
        maps = np.zeros((len(groups), *self.frame.original, len(self.refs)), np.uint8)
        for place, group in enumerate(groups):
            for index in range(len(self.refs)):
                labels = [k for k in group if k in objects and index in objects[k].logits]
                if labels:
                    logits = torch.stack([objects[label].logits[index] for label in labels])
                    numbers = object_numbers(sam, logits, self.frame, sam.mask_threshold)
                    maps[place, ..., index] = np.array([0, *labels])[numbers]
        return maps

    def _propagation(self) -> Propagation:
        sam = self.predictor.sam
        given: dict[str, Any] = {
            "sam": sam,
            "embed": self._embed,
            "policy": self.predictor.policy,
            "threshold": sam.mask_threshold,
            "ahead": self.predictor.batch_size,
        }
        if self.by_memory:
            return MemoryPropagation(**given, depth=len(self.refs))
        return Propagation(**given)

    def _embed(self, indices: Sequence[int]) -> tuple[Tensor, list[Frame]]:
        """Return the embeddings of slices, which are computed once a volume."""
        sam = self.predictor.sam
        missing = [index for index in indices if index not in self.spool]
        if missing:
            samples = [self.data.sample(self.refs[index]) for index in missing]
            embeddings = image_embedding(sam, self.predictor.embed(samples))
            for index, one in zip(missing, embeddings, strict=True):
                self.spool.put(index, one)
        found = torch.stack([self.spool.get(index) for index in indices])
        return found.to(sam.device), [self.frame] * len(indices)
