"""The oracle gap: one model scored without prompts, with clicks, and with good and bad boxes.

Scores with an exact box are an upper bound that no user reaches by hand. Every setting is scored on
the same slices, and each slice is embedded once:

========================  ==================================================================
setting                   what the model gets for each object
========================  ==================================================================
none                      nothing
1, 3, 5, 8, 20 clicks     simulated clicks (``prompts/clicker.py``) and its own last mask
box                       the exact box of the ground truth
box moved 5, 10, 20 px    that box shifted by so many pixels of an image whose longest side is
                          1024
scribble                  points along a curve through the object (``prompts/scribbles.py``)
rough mask                its mask, disturbed (``prompts/rough_masks.py``)
========================  ==================================================================

All settings but ``none`` use the ground truth. A box keeps its size when it is shifted; the
direction is drawn for each object with a fixed seed. A model that was trained with prompts can tell
only one class without them, so ``none`` is left out for such a model if there are several classes.

The clicks also give the number of clicks (``number_of_clicks.py``) and the curve of Dice against
1 to 20 clicks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samadapt.evaluation.case_scores import CaseClassScore, summarise
from samadapt.evaluation.evaluate import Place, joined, place_of, score_maps
from samadapt.evaluation.label_stack import LabelStack
from samadapt.evaluation.number_of_clicks import MOST_CLICKS, ClickedObject, ClickScores
from samadapt.evaluation.prompted_slices import Pairs, PromptedSlices
from samadapt.evaluation.scores import OVERLAP
from samadapt.prompts.policy import Kind
from samadapt.prompts.simulate import SAM_SIDE, boxes_of
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from samadapt.data.types import Sample, SliceRef
    from samadapt.evaluation.evaluate import SlicePredictor


NONE = "none"
CLICKS = {1: "1 click", **{n: f"{n} clicks" for n in range(2, MOST_CLICKS + 1)}}
"""Name of each number of clicks."""
SHOWN_CLICKS = (1, 3, 5, 8, MOST_CLICKS)
BOX = "box"
MOVED = {5: "box moved 5 px", 10: "box moved 10 px", 20: "box moved 20 px"}
DRAWN: dict[Kind, str] = {"scribble": "scribble", "mask": "rough mask"}
SETTINGS = (NONE, *(CLICKS[n] for n in SHOWN_CLICKS), BOX, *MOVED.values(), *DRAWN.values())
SEED = 20
"""Seed of the directions in which boxes are shifted."""

Answer = tuple[str, list[Array], Pairs]
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


@dataclass
class PromptMatrix:
    """Scores of a model with every kind of prompt.

    Attributes:
        settings: by the names in ``SETTINGS``, without ``none`` if it means nothing for the model.
        clicks: the number of clicks, and the scores after each of them.
    """

    settings: dict[str, SettingScores]
    clicks: ClickScores = field(default_factory=ClickScores)


@torch.no_grad()
def score_settings(
    predictor: SlicePredictor,
    refs: Sequence[SliceRef],
    read: Callable[[SliceRef], Sample],
    classes: Sequence[str],
    done: Callable[[int], None] = lambda count: None,
) -> PromptMatrix:
    """Score a model in every setting.

    Args:
        predictor: the model. Its policy says what an object is. A model that was trained without
            prompts answers for an object with the mask token of the object's class.
        refs: the slices, sorted by case.
        read: returns the sample of a slice. Prompts that came with a sample are not used.
        classes: names of the classes 1..K.
        done: called with the number of slices finished since the last call.
    """
    # Without prompts a promptable model gives one mask, which can stand for one class only.
    unprompted = predictor.policy.is_semantic or predictor.classes == 1
    names = [name for name in SETTINGS if unprompted or name != NONE]
    matrix = PromptMatrix({name: SettingScores() for name in names})
    curve = dict(zip(CLICKS.values(), matrix.clicks.rows, strict=True))
    rng = np.random.default_rng(SEED)
    for case, group in groupby(refs, key=lambda ref: ref.case):
        answers = _CaseAnswers()
        for part in predictor.stacks.parts(list(group), predictor.batch_size):
            samples = [read(ref) for ref in part]
            answers.truth += [sample.truth for sample in samples]
            answers.places += [place_of(sample) for sample in samples]
            with predictor.autocast():
                batch = PromptedSlices.of(predictor, samples)
                clicked = _clicked(batch, matrix.clicks.objects, classes)
                for name, labels, iou in chain(_settings(batch, rng, unprompted), clicked):
                    answers.add(name, labels)
                    if name in matrix.settings:
                        matrix.settings[name].iou += iou
            done(len(part))
        for name, rows in answers.scored(case, classes):
            if name in matrix.settings:
                matrix.settings[name].rows += rows
            if name in curve:
                curve[name].extend(rows)
    for scores in matrix.settings.values():
        scores.summary = summarise(scores.rows, classes)
    return matrix


@dataclass
class _CaseAnswers:
    """What a model answers on the slices of one case.

    Attributes:
        truth: ``Sample.truth`` of each slice.
        places: where each slice or tile lies.
        maps: by name of the setting, the n label maps of each slice, compressed: there are about
            thirty settings.
    """

    truth: list[Array] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    maps: dict[str, list[LabelStack]] = field(default_factory=dict)

    def add(self, name: str, labels: Sequence[Array]) -> None:
        """Add the label maps (n, h, w) of some slices in one setting."""
        self.maps.setdefault(name, []).extend(map(LabelStack.of, labels))

    def scored(
        self, case: str, classes: Sequence[str]
    ) -> Iterator[tuple[str, list[CaseClassScore]]]:
        """Yield the name of each setting and the scores over all slices together."""
        truth = joined(self.truth, self.places)
        for name, stacks in self.maps.items():
            maps = [np.stack([stack[n] for n in range(len(stack))]) for stack in stacks]
            yield (
                name,
                score_maps(case, joined(maps, self.places), truth, classes, scores=OVERLAP),
            )


def _settings(
    batch: PromptedSlices, rng: np.random.Generator, unprompted: bool
) -> Iterator[Answer]:
    """Answer a batch of slices in every setting without clicks."""
    if unprompted:
        yield NONE, batch.without_prompt(), []
    if not len(batch):
        # All settings but ``none`` prompt objects, and these slices have no object.
        for name in (BOX, *MOVED.values(), *DRAWN.values()):
            yield name, batch.maps([]), []
        return
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
    for kind, name in DRAWN.items():
        yield (name, *batch.drawn(kind))


def _clicked(
    batch: PromptedSlices, objects: list[ClickedObject], classes: Sequence[str]
) -> Iterator[Answer]:
    """Answer a batch of slices after each click, and add its objects to ``objects``."""
    if not len(batch):
        for name in CLICKS.values():
            yield name, batch.maps([]), []
        return
    rounds = []
    for name, masks in zip(CLICKS.values(), batch.clicked(), strict=True):
        yield name, masks.maps, masks.pairs
        rounds.append(masks.iou)
    for number, iou in enumerate(zip(*rounds, strict=True)):
        sample = batch.samples[int(batch.owner[number])]
        class_name = classes[int(batch.class_ids[number]) - 1]
        objects.append(ClickedObject(sample.case, sample.index, class_name, iou))


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
