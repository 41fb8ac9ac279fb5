"""Carry objects through a volume by the memory of SAM 2 (``sam/tracking.py``).

The slices are divided among the prompts, and are walked, as in ``propagate.py``. What finds an
object on the next slice is what the slices before it left, and not a prompt. All prompted slices of
an object are remembered, wherever it is; its walk downwards knows nothing of the one upwards. A
slice on which SAM 2 finds no object has an empty mask, with which the object ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float

from samadapt.errors import PromptError
from samadapt.inference.clicks_in_turn import asked_last
from samadapt.inference.propagate import CarriedObject, Propagation, Walk
from samadapt.sam.click_disks import obey_clicks, with_click_disks
from samadapt.sam.decode import is_single, to_tensors
from samadapt.sam.tracking import TrackedObjects, Tracker, why_no_memory
from samadapt.sam.types import Prompts
from samadapt.sam.video_memory import MemoryBank, SliceMemory

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.inference.options import PredictionOptions
    from samadapt.sam.segmentation_model import SegmentationModel
    from samadapt.sam.types import ImagePrompts

OBJECTS_AT_ONCE = 8
"""Objects that are prompted together; each has a copy of the embedding."""


@dataclass
class MemoryPropagation(Propagation):
    """A SAM 2 that carries objects through a volume by its memory.

    Attributes:
        depth: number of slices of the volume.

    Raises:
        ConfigError: the model has no memory.
    """

    depth: int = field(kw_only=True)
    _tracker: Tracker = field(init=False)
    _memories: dict[int, dict[int, SliceMemory]] = field(init=False, default_factory=dict)
    _logits: dict[int, dict[int, Tensor]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Open the memory of the model."""
        self._tracker = Tracker(self.sam, self.depth)

    def _prepare(self, prompts: Mapping[int, ImagePrompts]) -> None:
        """Segment what is prompted on all slices, because each walk remembers all of them."""
        for index in sorted(prompts):
            item = prompts[index]
            if not len(item):
                continue
            embedding = self._embedding(index, [])[None]
            if index not in self._spool:  # other objects may come here later
                self._spool.put(index, embedding[0])
            found = self._answers(embedding, item)
            numbers = item.numbers.tolist()
            self.predicted_iou[index] = torch.cat([one.iou for one in found]).float().tolist()
            logits = torch.cat([one.logits for one in found])
            memories = [one.memory.take([row]) for one in found for row in range(len(one.iou))]
            self._logits[index] = dict(zip(numbers, logits, strict=True))
            for number, memory in zip(numbers, memories, strict=True):
                self._memories.setdefault(number, {})[index] = memory

    def _answers(
        self, embedding: Float[Tensor, "1 c g g"], prompts: ImagePrompts
    ) -> list[TrackedObjects]:
        """Segment the objects of a slice by their prompts, some at a time."""
        policy, sam = self.policy, self.sam
        multimask = False if prompts.has_masks else policy.multimask
        asked = asked_last(sam, embedding, self._frame, prompts, policy, multimask=multimask)
        several = is_single(asked) if multimask is None else multimask
        side = 4 * sam.embedding_size
        tensors = to_tensors([asked], [self._frame], side, sam.device)
        if policy.click_disks:
            tensors = with_click_disks(tensors, sam.image_size)
        found = []
        for rows in torch.arange(len(asked), device=sam.device).split(OBJECTS_AT_ONCE):
            copies = embedding.expand(len(rows), -1, -1, -1)
            some = _one_each(tensors, rows)
            answer = self._tracker.prompted(copies, some, multimask=several)
            if policy.click_disks:
                obeyed = obey_clicks(answer.logits[:, :, None], some, sam.image_size)
                answer = replace(answer, logits=obeyed[:, :, 0])
            found.append(answer)
        return found

    def _restarted(self, onward: Any) -> MemoryBank:
        """Forget all but the prompted slices."""
        return MemoryBank(onward.prompted)

    def _begin(
        self,
        index: int,
        prompts: ImagePrompts | None,
        walks: Mapping[tuple[int, int], Walk],
        rest: Sequence[int],
    ) -> tuple[dict[int, Float[Tensor, "1 _ _"]], list[CarriedObject]]:
        """Return what was found by the prompts of a slice, and the memories that it left."""
        del prompts, rest
        found = self._logits.pop(index, {})
        seeds = []
        for number, logits in found.items():
            (mask,) = self._masks_of(logits[None])
            if mask.any():
                bank = MemoryBank(self._memories[number])
                seeds.append(CarriedObject(walks[index, number], bank, int(mask.sum())))
        return found, seeds

    def _carry(
        self, index: int, carried: Sequence[CarriedObject], rest: Sequence[int]
    ) -> tuple[dict[int, Float[Tensor, "1 _ _"]], list[CarriedObject]]:
        """Segment the objects that come from the slice before; drop those that have vanished."""
        found, alive = {}, []
        for item in carried:
            if index not in item.walk.slices:
                continue
            embedding = self._embedding(index, rest)[None]
            step = 1 if index > item.walk.start else -1
            logits = self._tracker.tracked(embedding, item.onward, index, step).logits
            area = int(self._masks_of(logits).sum())
            if area > 0 and area >= self.vanish * item.area:
                found[item.walk.number] = logits[0]
                alive.append(item)
        return found, alive


def make_propagation(options: PredictionOptions, *, depth: int, **given: Any) -> Propagation:
    """Return what carries objects in the way that the options ask for.

    Args:
        options: prompts and options.
        depth: number of slices of the volume.
        given: the other attributes of ``Propagation``.
    """
    if options.propagate == "memory":
        return MemoryPropagation(**given, vanish=options.vanish, depth=depth)
    return Propagation(**given, vanish=options.vanish, carry=options.carry)


def check_memory(sam: SegmentationModel, options: PredictionOptions) -> None:
    """Refuse ``propagate=memory`` if the model has no memory of a video.

    Raises:
        PromptError: it has none; says why.
    """
    if options.propagate == "memory" and (reason := why_no_memory(sam)):
        raise PromptError(
            f"propagate=memory carries objects by the memory of SAM 2: {reason}. "
            "propagate=true works with every model"
        )


def _one_each(prompts: Prompts, rows: Tensor) -> Prompts:
    """Return some of the p objects of one image as one object for each of several images."""

    def taken(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[0, rows][:, None]

    return Prompts(
        points=taken(prompts.points),
        point_labels=taken(prompts.point_labels),
        boxes=taken(prompts.boxes),
        masks=taken(prompts.masks),
    )
