"""Predict whole volumes from a prompt on one slice of each object, with the memory of SAM 2.

Adapters of ``prompts=propagate`` are used in this way, so they are validated and scored in it. An
object is prompted on its middle slice and carried both ways, until the model finds it no more or
the scored slices end. So what leaks past the end of the object counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from samadapt.data.types import SliceRef
from samadapt.evaluation.evaluate import SlicePrediction
from samadapt.inference.memory_propagation import MemoryPropagation
from samadapt.inference.propagate import plan_walks
from samadapt.prompts.middle_slice import prompts_on_middle_slices
from samadapt.sam.decode import image_embedding, object_numbers
from samadapt.sam.embed import frame_of

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.data.types import Sample
    from samadapt.evaluation.evaluate import SlicePredictor
    from samadapt.sam.types import Frame, ImagePrompts
    from samadapt.system.arrays import Array


def carry_objects(
    predictor: SlicePredictor,
    samples: Sequence[Sample],
    read: Callable[[SliceRef], Sample],
) -> list[SlicePrediction]:
    """Predict the slices of one case.

    Args:
        predictor: the model, and how it is prompted.
        samples: the scored slices, in order.
        read: reads the slices between them, which objects pass too.

    Returns:
        The labels of each of ``samples``.

    Raises:
        ConfigError: the model has no memory.
    """
    sam, case, first = predictor.sam, samples[0].case, samples[0].index
    depth = samples[-1].index - first + 1
    scored = {sample.index - first: place for place, sample in enumerate(samples)}
    prompts: dict[int, ImagePrompts] = {}
    class_of: dict[int, int] = {}
    for place, objects in prompts_on_middle_slices(samples, predictor.policy).items():
        prompts[samples[place].index - first] = objects
        class_of.update(zip(objects.numbers.tolist(), objects.class_ids.tolist(), strict=True))
    every = list(range(1, predictor.classes + 1))
    groups = [[class_id] for class_id in every] if predictor.independent else [every]
    frame = frame_of(sam, samples[0].image)
    labels = np.zeros((len(samples), len(groups), *frame.original), np.uint8)

    def embed(indices: Sequence[int]) -> tuple[Tensor, list[Frame]]:
        seen = [
            samples[scored[index]] if index in scored else read(SliceRef(case, first + index))
            for index in indices
        ]
        return image_embedding(sam, predictor.embed(seen)), [frame] * len(seen)

    propagation = MemoryPropagation(
        sam,
        embed,
        predictor.policy,
        sam.mask_threshold,
        ahead=predictor.batch_size,
        depth=depth,
    )
    up, down = plan_walks(prompts, depth, None)
    with predictor.autocast():
        for index, found in propagation(prompts, up, down):
            if index in scored:
                for plane, group in zip(labels[scored[index]], groups, strict=True):
                    own = {n: one for n, one in found.items() if class_of[n] in group}
                    plane[:] = _merged(predictor, own, class_of, frame)
    return [SlicePrediction(one) for one in labels]


def _merged(
    predictor: SlicePredictor,
    found: Mapping[int, Tensor],
    class_of: Mapping[int, int],
    frame: Frame,
) -> Array:
    """Return the class ids (h, w) of objects on a slice, given their logits (1, 4g, 4g)."""
    if not found:
        return np.zeros(frame.original, np.uint8)
    sam, logits = predictor.sam, torch.stack(list(found.values()))
    positions = object_numbers(sam, logits, frame, sam.mask_threshold)
    classes: Array = np.array([0, *(class_of[number] for number in found)], np.uint8)[positions]
    return classes
