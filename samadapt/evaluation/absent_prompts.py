"""Ask a prompted model where nothing is, and count how often it answers with a mask."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samadapt.data.types import SliceRef
from samadapt.errors import DataError
from samadapt.prompts.absent import move_to_nothing, occupied_pixels
from samadapt.sam.decode import image_embedding, object_logits
from samadapt.sam.embed import frame_of

if TYPE_CHECKING:
    from samadapt.data.types import Sample
    from samadapt.evaluation.evaluate import SlicePredictor
    from samadapt.sam.types import ImagePrompts

SEED = 17
"""With the name of the case and the number of the slice, the seed of the places that are asked."""


@dataclass
class AbsentAnswers:
    """What a model answers to prompts where nothing is.

    Attributes:
        asked: number of prompts.
        answered: number of those with a mask that is not empty.
        pixels: pixels of these masks.
        asked_pixels: pixels of the objects whose prompts were moved there, to compare with.
    """

    asked: int = 0
    answered: int = 0
    pixels: int = 0
    asked_pixels: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the counts, and the share of prompts that were answered; None without any."""
        share = self.answered / self.asked if self.asked else None
        return {
            "asked": self.asked,
            "answered": self.answered,
            "share": share,
            "pixels": self.pixels,
            "asked_pixels": self.asked_pixels,
        }


def join_answers(parts: Sequence[Mapping[str, Any]]) -> AbsentAnswers:
    """Add up the results of ``AbsentAnswers.to_dict``."""
    names = [item.name for item in fields(AbsentAnswers)]
    return AbsentAnswers(*(sum(part[name] for part in parts) for name in names))


@torch.no_grad()
def ask_where_nothing_is(
    predictor: SlicePredictor,
    refs: Sequence[SliceRef],
    read: Callable[[SliceRef], Sample],
) -> AbsentAnswers:
    """Move the prompt of every object to a free place of its slice, and count the answers.

    The places depend on case and slice alone, so two models are asked alike. A model that is
    corrected by clicks gets the first one only.

    Args:
        predictor: the model and how it is prompted.
        refs: the slices.
        read: returns the sample of a slice.
    """
    found = AbsentAnswers()
    for part in predictor.stacks.parts(list(refs), predictor.batch_size):
        samples = [read(ref) for ref in part]
        asked = [_asked(predictor, sample) for sample in samples]
        places = [place for place, objects in enumerate(asked) if len(objects)]
        if not places:
            continue
        chosen = [samples[place] for place in places]
        prompts = [asked[place] for place in places]
        frames = [frame_of(predictor.sam, sample.image) for sample in chosen]
        with predictor.autocast():
            embeddings = image_embedding(predictor.sam, predictor.embed(chosen))
            decoded = object_logits(
                predictor.sam, embeddings, frames, prompts, multimask=predictor.policy.multimask
            )
        for (logits, _), frame in zip(decoded, frames, strict=True):
            planes = predictor.sam.postprocess(logits[None].float(), frame)[0, :, 0]
            sizes = (planes > predictor.sam.mask_threshold).sum(dim=(1, 2))
            found.asked += len(sizes)
            found.answered += int((sizes > 0).sum())
            found.pixels += int(sizes.sum())
        found.asked_pixels += sum(int(one.truth.sum()) for one in prompts if one.truth is not None)
    return found


def _asked(predictor: SlicePredictor, sample: Sample) -> ImagePrompts:
    """Return the prompts of a slice's objects at free places, with the objects as their truth."""
    objects = predictor.prompts_of(sample)
    rng = np.random.default_rng([SEED, sample.index, zlib.crc32(sample.case.encode())])
    moved = move_to_nothing(objects, occupied_pixels(sample), 1.0, rng)
    if moved.truth is None or objects.truth is None:
        raise DataError("prompts can only be moved beside objects whose ground truth is known")
    kept = np.flatnonzero(~moved.truth.any(axis=(1, 2)))
    return replace(moved.take(kept), truth=objects.truth[kept])
