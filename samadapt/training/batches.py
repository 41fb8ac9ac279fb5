"""From slices to training batches: prompts in the model frame, targets on the logits' grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from samadapt.data.types import IGNORED
from samadapt.errors import DataError
from samadapt.prompts.annotations import has_prompts, trainable_prompts
from samadapt.prompts.simulate import boxes_of, simulate
from samadapt.sam.decode import to_tensors
from samadapt.sam.geometry import labels_to_model
from samadapt.sam.types import Frame, ImagePrompts, Prompts
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from samadapt.data.types import Sample
    from samadapt.prompts.policy import PromptPolicy

Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """One micro-batch, with the loss on b images.

    Attributes:
        names: what each image that has the loss is, for messages.
        keys: keys of the images' stored features; empty where they have none.
        images: the images without stored features, (h, w, 3) uint8 in their original frames;
            empty where there are keys.
        prompts: p objects per image in the model frame; empty for ``semantic``.
        targets: (b, p, 4g, 4g) of 0, 1 and -1 for padding and ignored pixels; for ``semantic``
            (b, 4g, 4g) of 0..K and -1, or where classes overlap or are not all annotated
            (b, K, 4g, 4g) of 0, 1 and -1.
        trained: positions, among all images, of the b that have the loss; None: all.
    """

    names: list[str]
    keys: list[str]
    images: list[Array]
    prompts: Prompts
    targets: Tensor
    trained: Tensor | None = None


class Sampler:
    """Endless shuffled indices whose state is two numbers, so that a resumed run goes on as it was.

    Every epoch visits each index once, in an order drawn from the seed and the epoch. Each process
    of several takes its own share: ``shard`` is (its number, how many there are).
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1)
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world = shard
        self.drawn = 0

    def next(self) -> list[int]:
        """Return the indices of this process's next batch."""
        drawn = self.batch_size * self.world
        positions = range(self.drawn + self.rank, self.drawn + drawn, self.world)
        self.drawn += drawn
        return [int(self._order(at // self.length)[at % self.length]) for at in positions]

    def _order(self, epoch: int) -> Array:
        return np.random.default_rng([self.seed, epoch]).permutation(self.length)


def make_batch(
    samples: Sequence[Sample],
    policy: PromptPolicy,
    frame_of: Callable[[Array], Frame],
    side: int,
    rng: np.random.Generator,
    trained: Sequence[int] | None = None,
    keys: Sequence[str] = (),
) -> Batch:
    """Prompt the objects of some slices and bring everything to the model's frame.

    Args:
        samples: slices; with box or point prompts each that is trained on must have an object.
        policy: how objects are prompted.
        frame_of: where an image lies in the model's square.
        side: 4g, side of the decoder's grid.
        rng: source of the noise of prompts.
        trained: positions of the b slices that have the loss, the others being seen alone; None:
            all.
        keys: keys of the slices' stored features; empty where they have none.

    Raises:
        DataError: naming a slice that has no object to prompt.
    """
    images = [] if keys else [sample.image for sample in samples]
    rows = None
    if trained is not None and len(trained) < len(samples):
        rows, samples = torch.tensor(trained), [samples[place] for place in trained]
    names = [f"{sample.case}[{sample.index}]" for sample in samples]
    frames = [frame_of(sample.image) for sample in samples]
    if policy.is_semantic:
        maps = [
            _semantic_target(sample.truth, frame, side)
            for sample, frame in zip(samples, frames, strict=True)
        ]
        targets = torch.from_numpy(np.stack(maps).astype(np.int64))
        return Batch(names, list(keys), images, Prompts(), targets, rows)
    chosen = choose_objects(samples, policy, rng)
    targets = torch.stack(
        [
            torch.stack(
                [
                    _target(mask, sample.unknown(int(class_id)), frame, side)
                    for mask, class_id in zip(_masks(objects), objects.class_ids, strict=True)
                ]
            )
            for objects, sample, frame in zip(chosen, samples, frames, strict=True)
        ]
    )
    return Batch(names, list(keys), images, to_tensors(chosen, frames), targets, rows)


def choose_objects(
    samples: Sequence[Sample], policy: PromptPolicy, rng: np.random.Generator
) -> list[ImagePrompts]:
    """Return the objects of b slices that are prompted, as many of each, in the original frame.

    At most ``policy.max_objects`` of a slice: each costs a pass of the decoder, and slices with
    many objects would otherwise outweigh the others. Where there are more, large ones are likelier.

    Raises:
        DataError: naming a slice that has no object to prompt.
    """
    chosen = [_choose(sample, policy, rng) for sample in samples]
    most = min(policy.max_objects, max(len(objects) for objects in chosen))
    return _alike([objects.take(_draw(objects, most, rng)) for objects in chosen])


def endless(
    items: Sequence[Item], sampler: Sampler, make: Callable[[Sequence[Item]], Batch]
) -> Iterator[Batch]:
    """Yield batches of the items that the sampler draws, for ever."""
    while True:
        yield make([items[index] for index in sampler.next()])


def _choose(sample: Sample, policy: PromptPolicy, rng: np.random.Generator) -> ImagePrompts:
    objects = (
        trainable_prompts(sample)
        if has_prompts(sample)
        else simulate(sample.maps, policy, rng, instances=sample.instances)
    )
    if len(objects) == 0:
        raise DataError(
            f"{sample.case}, {sample.part} {sample.index}: no object of at least "
            f"{policy.min_area} pixels to prompt; lower prompts.min_area or use "
            "data.empty_slices=drop"
        )
    return objects


def _draw(objects: ImagePrompts, wanted: int, rng: np.random.Generator) -> Array:
    """Draw objects: all different where there are enough, else each at least once.

    The chance of an object grows with the square root of its area, that is with its diameter. With
    equal chances the many specks of a picture win over its one large object; with chances
    proportional to area, small objects are hardly ever trained on.
    """
    count = len(objects)
    if count > wanted:
        diameters = np.sqrt(_masks(objects).sum(axis=(1, 2), dtype=np.float64) + 1)
        chances = diameters / diameters.sum()
        return np.asarray(rng.choice(count, wanted, replace=False, p=chances))
    return np.resize(rng.permutation(count), wanted)


def _alike(chosen: list[ImagePrompts]) -> list[ImagePrompts]:
    """Give every object a box where some image's annotation brings boxes and another's points."""
    if all(objects.boxes is None for objects in chosen):
        return chosen
    return [
        replace(objects, boxes=boxes_of(_masks(objects))) if objects.boxes is None else objects
        for objects in chosen
    ]


def _masks(objects: ImagePrompts) -> Array:
    if objects.truth is None:
        raise DataError("objects without ground truth cannot be trained on")
    return objects.truth


def _semantic_target(truth: Array, frame: Frame, side: int) -> Array:
    """Return what ``Sample.truth`` is on the decoder's grid."""
    if truth.ndim == 2:
        return labels_to_model(truth, frame, side)
    return np.stack([labels_to_model(plane, frame, side) for plane in truth])


def _target(mask: Array, unknown: Array, frame: Frame, side: int) -> Tensor:
    """Return an object's target (4g, 4g), which is not known everywhere."""
    target = np.where(unknown, IGNORED, mask.astype(np.int64))
    return torch.from_numpy(labels_to_model(target, frame, side))
