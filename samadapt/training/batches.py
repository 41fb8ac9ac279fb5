"""From slices to training batches: prompts in the model frame, targets on the decoder's grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Integer, Real
from torch import Tensor

from samadapt.data.types import IGNORED
from samadapt.errors import DataError
from samadapt.prompts.absent import move_to_nothing, occupied_pixels
from samadapt.prompts.annotations import has_prompts, trainable_prompts, with_box_and_point
from samadapt.prompts.drawings import with_drawings
from samadapt.prompts.simulate import boxes_of, objects_in, simulate
from samadapt.prompts.through_clip import through_clip
from samadapt.sam.decode import most_points, to_tensors
from samadapt.sam.geometry import labels_to_model
from samadapt.sam.types import Frame, ImagePrompts, Prompts
from samadapt.system import processes
from samadapt.system.arrays import Array
from samadapt.training.click_rounds import Rounds, draw_rounds
from samadapt.training.instance_distances import distance_targets

if TYPE_CHECKING:
    from samadapt.data.types import Sample
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.training.keyed_random import BatchRandom


@dataclass(frozen=True)
class Batch:
    """One micro-batch with the loss on b images, which are the share of this process.

    Attributes:
        names: the case and slice of each of the b images, for messages.
        keys: keys of the stored features of all images; empty if no features are stored.
        images: all images, (h, w, 3) uint8 in their original frames; empty if there are keys.
        prompts: p objects for each of the b images in the model frame; empty for ``semantic``.
        targets: (b, p, 4g, 4g) int64, 1 in the object, 0 outside, -1 for padding and ignored
            pixels. For ``semantic`` (b, 4g, 4g) class ids 0..K or -1; if classes overlap or are
            not all annotated (b, K, 4g, 4g) of 0, 1 and -1. With distances see
            ``distance_targets``.
        trained: positions, among all images, of the b that have the loss; None: all.
        rounds: the rounds of clicks in which the decoder answers; None: it answers once.
        multimask: the decoder gives several masks for each object, or one for each class.
        weight: factor of the loss.
        share: what this process adds of a number that all processes compute: b of the images of
            all for prompted objects, and without prompts the same for each process.
        clip: slices of a clip, whose objects are prompted on the first slice alone; the b images
            are those of whole clips. 1: each image is prompted.
        seeds: one number for each stack, for random changes inside the model.
        others: some of the b images prompted in other ways, with ``trained`` as their positions
            among the b; the encoder runs once for all.
    """

    names: list[str]
    keys: list[str]
    images: list[Array]
    prompts: Prompts
    targets: Real[Tensor, "b ..."]
    trained: Integer[Tensor, " rows"] | None = None
    rounds: Rounds | None = None
    multimask: bool = False
    weight: float = 1.0
    share: float = 1.0
    clip: int = 1
    seeds: tuple[int, ...] = ()
    others: tuple[Batch, ...] = ()

    @property
    def round_count(self) -> int:
        """How often a loss is computed: once for each answer, or for each clip."""
        if self.clip > 1:
            return len(self.targets) // self.clip
        return 1 if self.rounds is None else self.rounds.count


class Sampler:
    """Endless shuffled indices.

    Every epoch visits each index once, in an order that is drawn from the seed and the epoch. The
    whole state is the number ``drawn``, so that a resumed run continues with the same indices.

    Args:
        length: number of indices.
        batch_size: indices in one batch of all processes together.
        seed: of the order.
        rare: (count, share): the last ``count`` indices are a part of their own, and this share of
            what is drawn comes from it. Both parts go on in epochs of their own. None: all indices
            are one part.

    Attributes:
        drawn: indices that all processes have drawn so far.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rare: tuple[int, float] | None = None,
    ) -> None:
        self.length, self.batch_size, self.seed, self.rare = length, batch_size, seed, rare
        self.drawn = 0

    def next(self) -> list[int]:
        """Return this process's share of the indices of the next batch."""
        positions = processes.share(range(self.drawn, self.drawn + self.batch_size))
        self.drawn += self.batch_size
        return [self._index(at) for at in positions]

    def _index(self, at: int) -> int:
        """Return the index at a position of the endless order."""
        if self.rare is None:
            return self._draw(at, self.length)
        count, share = self.rare
        # Of the first n positions, floor(n * share) belong to the rare part, evenly spread.
        before = math.floor(at * share)
        if math.floor((at + 1) * share) > before:
            return self.length - count + self._draw(before, count)
        return self._draw(at - before, self.length - count)

    def _draw(self, at: int, length: int) -> int:
        """Return index number ``at`` of ``length`` indices that are shuffled in every epoch."""
        return int(_order(self.seed, at // length, length)[at % length])


@lru_cache(maxsize=64)
def _order(seed: int, epoch: int, length: int) -> Array:
    """Return the order of an epoch, which many batches read."""
    order: Array = np.random.default_rng([seed, epoch]).permutation(length)
    return order


def make_batch(
    samples: Sequence[Sample],
    policy: PromptPolicy,
    frame_of: Callable[[tuple[int, int]], Frame],
    side: int,
    random: BatchRandom,
    trained: Sequence[int] | None = None,
    keys: Sequence[str] = (),
    distances_of: int = 0,
) -> Batch:
    """Prompt the objects of some slices and bring everything into the model frame.

    Args:
        samples: the slices. With box or point prompts each slice with the loss must have an object.
        policy: how objects are prompted.
        frame_of: returns where an image of a shape (h, w) lies in the model's square.
        side: 4g, the side of the decoder's grid.
        random: the generators of all slices, for the noise of prompts.
        trained: positions of the b slices with the loss; the encoder only sees the others. None:
            all slices.
        keys: keys of the slices' stored features; empty if no features are stored.
        distances_of: number K of classes whose objects the model separates by their distances; 0:
            it does not.

    Raises:
        DataError: a slice has no object to prompt; names the slice.
    """
    images = [] if keys else [sample.image for sample in samples]
    rows = None
    if trained is not None and len(trained) < len(samples):
        rows, samples = torch.tensor(trained), [samples[place] for place in trained]
        random = random.some(trained)
    names = [f"{sample.case}[{sample.index}]" for sample in samples]
    frames = [frame_of(sample.image.shape[:2]) for sample in samples]
    rounds, share = None, 1 / processes.count()
    if policy.is_semantic:
        prompts, targets = Prompts(), semantic_targets(samples, frames, side)
        if distances_of:
            targets = distance_targets(samples, frames, targets, distances_of)
    else:
        firsts = range(0, len(samples), policy.clip)
        asked = [samples[place] for place in firsts]
        chosen, share = choose_objects(asked, policy, random.some(firsts))
        if policy.clip > 1:
            pairs = zip(firsts, chosen, strict=True)
            clips = ((samples[at : at + policy.clip], objects) for at, objects in pairs)
            chosen = [
                one
                for slices, objects in clips
                for one in through_clip(objects, slices, policy.objects)
            ]
        prompts = to_tensors(chosen, frames, side, points=_agree_on_points(chosen))
        targets = object_targets(chosen, samples, frames, side)
        if policy.is_interactive:
            rounds = draw_rounds(policy, prompts.count, random)
    multimask = policy.is_semantic or bool(policy.multimask)
    made = Batch(names, list(keys), images, prompts, targets, rows, rounds, multimask, share=share)
    return replace(made, clip=policy.clip)


def make_batch_of_kinds(
    samples: Sequence[Sample],
    policies: Sequence[tuple[PromptPolicy, float]],
    has_object: Callable[[Sample], bool],
    trained: Sequence[int],
    keys: Sequence[str],
    random: BatchRandom,
    make: Callable[..., Batch],
) -> Batch:
    """Prompt the objects of some slices in several ways, for one pass of the encoder.

    Args:
        samples: the slices.
        policies: how the objects are prompted, and the weight of each way. Slices without an object
            train without prompts alone.
        has_object: whether a slice has an object to prompt.
        trained: positions of the slices with the loss.
        keys: keys of the slices' stored features.
        random: the generators of all slices.
        make: ``make_batch`` with the arguments that are left: it gets samples, a policy, and
            ``trained``, ``keys`` and ``random``.
    """
    # Without prompts all slices train, so such a batch holds the others.
    (first, weight), *rest = sorted(policies, key=lambda item: not item[0].is_semantic)
    batch = make(samples, first, trained=trained, keys=keys, random=random)
    if not rest:
        return batch
    with_object = [place for place, at in enumerate(trained) if has_object(samples[at])]
    chosen = [trained[place] for place in with_object]
    prompted, own_random = [samples[at] for at in chosen], random.some(chosen)
    others = []
    for own, share in rest:
        if prompted:
            made = make(prompted, own, random=own_random)
            others.append(replace(made, trained=torch.tensor(with_object), weight=share))
        else:  # other processes may have some and ask
            _agree(0, 0, has_boxes=False)
            _agree_on_points([])
    return replace(batch, weight=weight, others=tuple(others))


def semantic_targets(
    samples: Sequence[Sample], frames: Sequence[Frame], side: int
) -> Integer[Tensor, "b ..."]:
    """Return the targets of a model without prompts: (b, 4g, 4g), or (b, K, 4g, 4g) planes."""
    targets = []
    for sample, frame in zip(samples, frames, strict=True):
        truth = sample.truth
        if truth.ndim == 2:
            targets.append(labels_to_model(truth, frame, side))
        else:
            targets.append(np.stack([labels_to_model(plane, frame, side) for plane in truth]))
    return torch.from_numpy(np.stack(targets).astype(np.int64))


def object_targets(
    chosen: Sequence[ImagePrompts], samples: Sequence[Sample], frames: Sequence[Frame], side: int
) -> Integer[Tensor, "b p {side} {side}"]:
    """Return the targets (b, p, 4g, 4g) of prompted objects."""
    targets = []
    for objects, sample, frame in zip(chosen, samples, frames, strict=True):
        for mask, class_id in zip(_truth_of(objects), objects.class_ids, strict=True):
            target = np.where(sample.unknown(int(class_id)), IGNORED, mask.astype(np.int64))
            targets.append(torch.from_numpy(labels_to_model(target, frame, side)))
    stacked = torch.stack(targets)
    return stacked.view(len(chosen), -1, side, side)


def choose_objects(
    samples: Sequence[Sample], policy: PromptPolicy, random: BatchRandom
) -> tuple[list[ImagePrompts], float]:
    """Choose and prompt the objects of b slices, p of each, in the original frame.

    With ``policy.negatives`` some of the prompts are moved to where nothing is.

    p is at most ``policy.max_objects``, because each object costs a pass of the decoder and slices
    with many objects would otherwise outweigh the others.

    Returns:
        The objects of each slice, and b as a share of the slices of all processes.

    Raises:
        DataError: a slice has no object to prompt; names the slice.
    """
    prompted = [
        _prompted(sample, policy, rng) for sample, rng in zip(samples, random.own, strict=True)
    ]
    has_boxes = any(objects.boxes is not None for objects in prompted)
    agreed = _agree(len(samples), max(map(len, prompted)), has_boxes=has_boxes)
    most = min(policy.max_objects, agreed.objects)
    chosen = [
        objects.take(_draw(objects, most, rng))
        for objects, rng in zip(prompted, random.own, strict=True)
    ]
    if policy.is_drawing:
        chosen = _drawings(chosen, samples, policy, random)
    elif agreed.has_boxes:
        # Some annotations have boxes and others points. A tensor needs boxes for all or for none.
        chosen = [
            replace(objects, boxes=boxes_of(_truth_of(objects)))
            if objects.boxes is None
            else objects
            for objects in chosen
        ]
    if policy.negatives:
        chosen = [
            move_to_nothing(objects, occupied_pixels(sample), policy.negatives, rng)
            for objects, sample, rng in zip(chosen, samples, random.own, strict=True)
        ]
    return chosen, len(samples) / agreed.slices


@dataclass(frozen=True)
class _Agreed:
    """What all processes know about a batch of prompted objects.

    Attributes:
        slices: number of slices of all processes.
        objects: the largest number of objects in a slice.
        has_boxes: whether any object has a box.
    """

    slices: int
    objects: int
    has_boxes: bool


def _agree(slices: int, objects: int, *, has_boxes: bool) -> _Agreed:
    """Tell the other processes what the own share of a batch holds, and return what all hold."""
    held = processes.gather((slices, objects, has_boxes))
    counts, most, boxes = zip(*held, strict=True)
    return _Agreed(sum(counts), max(most), any(boxes))


def _agree_on_points(chosen: Sequence[ImagePrompts]) -> int:
    """Return the largest number of points of an object in all processes.

    Where an object has fewer, points that are none are added, which are tokens too.
    """
    return max(processes.gather(most_points(chosen)))


def _prompted(sample: Sample, policy: PromptPolicy, rng: np.random.Generator) -> ImagePrompts:
    """Return the objects of a slice that can be trained on, with their prompts.

    Raises:
        DataError: there is none; names the slice.
    """
    if has_prompts(sample):
        objects = trainable_prompts(sample)
        if policy.is_interactive:
            objects = with_box_and_point(objects, rng)
    elif policy.is_drawing:
        found = objects_in(sample.maps, policy.objects, policy.min_area, sample.instances)
        objects = ImagePrompts(*found)
    else:
        objects = simulate(sample.maps, policy, rng, instances=sample.instances)
    if len(objects) == 0:
        raise DataError(
            f"{sample.case}, {sample.part} {sample.index}: no object of at least "
            f"{policy.min_area} pixels to prompt; lower prompts.min_area or use "
            "data.empty_slices=drop"
        )
    return objects


def _drawings(
    chosen: Sequence[ImagePrompts],
    samples: Sequence[Sample],
    policy: PromptPolicy,
    random: BatchRandom,
) -> list[ImagePrompts]:
    """Prompt the objects that were chosen by scribbles or masks, which take some time to make."""
    # All objects of a batch have a scribble outside or none has. Otherwise some would be padded
    # with points that are none, which are tokens too and which no user gives.
    outside = float(random.shared.random() < policy.scribble_outside)
    policy = replace(policy, scribble_outside=outside)
    return [
        with_drawings(objects, sample.maps, policy, rng)
        for objects, sample, rng in zip(chosen, samples, random.own, strict=True)
    ]


def _draw(objects: ImagePrompts, wanted: int, rng: np.random.Generator) -> Array:
    """Draw objects: all different if there are enough, otherwise each at least once.

    The chance of an object is proportional to the square root of its area, that is to its diameter.
    With equal chances the many specks of a picture win over its one large object; with chances
    proportional to the area, small objects are hardly ever trained on.
    """
    count = len(objects)
    if count > wanted:
        diameters = np.sqrt(_truth_of(objects).sum(axis=(1, 2), dtype=np.float64) + 1)
        chances = diameters / diameters.sum()
        return np.asarray(rng.choice(count, wanted, replace=False, p=chances))
    return np.resize(rng.permutation(count), wanted)


def _truth_of(objects: ImagePrompts) -> Array:
    if objects.truth is None:
        raise DataError("objects without ground truth cannot be trained on")
    return objects.truth
