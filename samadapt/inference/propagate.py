"""Carry objects that are prompted on some slices of a volume to the other slices.

Each object walks in both directions from each slice on which it is prompted. Its mask on one slice
makes the prompts on the next: one for each part of the mask if the adapter was trained with a
prompt for each component. Between two prompted slices the nearer one leads; of two equally near
ones the lower one. All objects walk together, first upwards and then downwards, so that a slice is
embedded once. What both directions need is set aside between them (``spool.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from samadapt.errors import PromptError
from samadapt.inference.clicks_in_turn import answers_to_prompts
from samadapt.inference.spool import Spool
from samadapt.prompts.scribbles import scribbles_in
from samadapt.prompts.simulate import boxes_of, objects_in, points_in, widened
from samadapt.sam.types import ImagePrompts, joined_prompts
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.inference.options import Carry, PredictionOptions
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.sam.segmentation_model import SegmentationModel
    from samadapt.sam.types import Frame

LEAST_PART = 0.03
"""Share of a mask's area below which a part of the mask is not carried on by itself."""

Embed = Callable[[Sequence[int]], tuple["Tensor", "list[Frame]"]]
"""Returns the embeddings (b, c, g, g) of slices and their frames."""


@dataclass(frozen=True)
class Walk:
    """The way of one object from a prompted slice in one direction.

    Attributes:
        number: number of the object, from 1.
        start: the prompted slice.
        limit: the last slice of the walk. It is below ``start`` if the walk goes downwards.
    """

    number: int
    start: int
    limit: int

    @property
    def slices(self) -> range:
        """The slices of the walk without the prompted one."""
        if self.limit >= self.start:
            return range(self.start + 1, self.limit + 1)
        return range(self.limit, self.start)


@dataclass(frozen=True)
class CarriedObject:
    """An object on its way to the next slice.

    Attributes:
        walk: where it goes.
        onward: what finds it on the next slice: ``ImagePrompts`` with a prompt for each part of its
            mask, or its memories (``memory_propagation.py``).
        area: pixels of its mask on the prompted slice.
    """

    walk: Walk
    onward: Any
    area: int


def plan_walks(
    prompts: Mapping[int, ImagePrompts], depth: int, slices: Sequence[int] | None
) -> tuple[list[Walk], list[Walk]]:
    """Divide the slices among the prompts.

    Args:
        prompts: the prompts by slice, with object numbers.
        depth: number of slices.
        slices: first and last slice to go to; None: all.

    Returns:
        The walks upwards and downwards: one of each for every object on every prompted slice.

    Raises:
        PromptError: ``slices`` is not a range, or a prompt lies outside it.
    """
    low, high = _bounds(slices, depth)
    prompted: dict[int, list[int]] = {}
    for index in sorted(prompts):
        for number in prompts[index].numbers.tolist():
            prompted.setdefault(number, []).append(index)
    up, down = [], []
    for number, starts in prompted.items():
        if not low <= starts[0] <= starts[-1] <= high:
            raise PromptError(
                f"slices=[{low}, {high}] must hold every prompted slice; object {number} is "
                f"prompted on {starts}"
            )
        # The middle between two prompted slices is the last slice of the lower one's walk upwards.
        between = [(first + second) // 2 for first, second in pairwise(starts)]
        for start, first, last in zip(
            starts, [low, *(b + 1 for b in between)], [*between, high], strict=True
        ):
            up.append(Walk(number, start, last))
            down.append(Walk(number, start, first))
    return up, down


def check_start(options: PredictionOptions, depth: int) -> None:
    """Check that objects can be carried from slices that the user names.

    Args:
        options: prompts and options.
        depth: number of slices.

    Raises:
        PromptError: there is one slice, or the prompts do not say on which slices they are.
    """
    said = f"propagate={str(options.propagate).lower()}"
    if depth == 1:
        raise PromptError(f"{said} carries objects through a volume; this is one image")
    if not options.names_slices:
        raise PromptError(
            f"{said} starts from the slices that you name: give the prompts by slice, as "
            "boxes={12: [[x0, y0, x1, y1]]}"
        )


def _bounds(slices: Sequence[int] | None, depth: int) -> tuple[int, int]:
    if slices is None:
        return 0, depth - 1
    whole = len(slices) == 2 and all(isinstance(side, int | np.integer) for side in slices)
    if not whole or not 0 <= slices[0] <= slices[1] < depth:
        raise PromptError(
            f"slices must be [first, last], both included, within 0 to {depth - 1}; "
            f"got {list(slices)}"
        )
    return int(slices[0]), int(slices[1])


@dataclass
class Propagation:
    """A model that carries objects through a volume.

    Attributes:
        sam: the model.
        embed: embeds slices.
        policy: how the adapter was prompted in training.
        threshold: logit above which a pixel belongs to an object.
        carry: what a mask becomes on the next slice. ``"prompt"``: what the adapter was trained
            with: the box around it, the point deepest in it, a scribble in it, or the mask as it
            is; ``"mask"``: its logits, as SAM's mask prompt; ``"both"``.
        vanish: an object ends when its area falls below this share of its area on the prompted
            slice.
        ahead: number of slices that are embedded together.
        advance: called once for every slice that is passed.
        predicted_iou: the IoU that the model predicts for the objects (p,) of each prompted slice,
            in the order of its prompts.
    """

    sam: SegmentationModel
    embed: Embed
    policy: PromptPolicy
    threshold: float
    carry: Carry = "prompt"
    vanish: float = 0.1
    ahead: int = 1
    advance: Callable[[], None] = field(default=lambda: None)
    predicted_iou: dict[int, list[float]] = field(init=False, default_factory=dict)
    _again: set[int] = field(init=False)
    _ready: dict[int, Tensor] = field(init=False, default_factory=dict)
    _spool: Spool = field(init=False)
    _frame: Frame = field(init=False)

    def __call__(
        self, prompts: Mapping[int, ImagePrompts], up: Sequence[Walk], down: Sequence[Walk]
    ) -> Iterator[tuple[int, dict[int, Float[Tensor, "1 _ _"]]]]:
        """Walk upwards, then downwards.

        Args:
            prompts: the prompts by slice, with object numbers.
            up: the walks upwards, from ``plan_walks``.
            down: the walks downwards.

        Yields:
            Each slice on which an object was found, once, with the logits (1, 4g, 4g) of each
            object by its number.
        """
        upwards = sorted({i for walk in up for i in range(walk.start, walk.limit + 1)})
        downwards = sorted({i for walk in down for i in range(walk.limit, walk.start)})[::-1]
        self._again = set(downwards)
        with Spool() as self._spool, torch.no_grad():
            self._prepare(prompts)
            # Upwards: segment the prompted objects and carry them on. What a walk downwards needs
            # later waits in ``waiting``, by the slice on which it starts.
            leads = {(walk.start, walk.number): walk for walk in up}
            returns = {(walk.start, walk.number): walk for walk in down}
            waiting: dict[int, list[CarriedObject]] = {}
            kept: dict[int, list[int]] = {}
            carried: list[CarriedObject] = []
            for at, index in enumerate(upwards):
                found, carried = self._carry(index, carried, upwards[at + 1 :])
                begun, seeds = self._begin(index, prompts.get(index), leads, upwards[at + 1 :])
                found |= begun
                carried += seeds
                for seed in seeds:
                    back = returns[index, seed.walk.number]
                    again = CarriedObject(back, self._restarted(seed.onward), seed.area)
                    waiting.setdefault(index, []).append(again)
                # A slice that a walk downwards passes too is yielded then, with what was found now.
                if index in self._again:
                    kept[index] = list(found)
                    for number, logits in found.items():
                        self._spool.put((index, number), logits)
                elif found:
                    yield index, found
                self.advance()
            # Downwards: carry the waiting objects, from the highest prompted slice to the lowest.
            self._again, carried = set(), []
            self._ready.clear()
            for at, index in enumerate(downwards):
                # A walk downwards from slice i has i - 1 as its first slice.
                carried += waiting.pop(index + 1, [])
                found, carried = self._carry(index, carried, downwards[at + 1 :])
                for number in kept.get(index, []):
                    found[number] = self._spool.get((index, number)).to(self.sam.device)
                if found:
                    yield index, found
                self.advance()

    def _prepare(self, prompts: Mapping[int, ImagePrompts]) -> None:
        """Do what must be done on all prompted slices before the first walk."""

    def _restarted(self, onward: Any) -> Any:
        """Return what finds an object on its way downwards, before it has gone anywhere."""
        return onward

    def _begin(
        self,
        index: int,
        prompts: ImagePrompts | None,
        walks: Mapping[tuple[int, int], Walk],
        rest: Sequence[int],
    ) -> tuple[dict[int, Float[Tensor, "1 _ _"]], list[CarriedObject]]:
        """Segment what is prompted on a slice."""
        if prompts is None or not len(prompts):
            return {}, []
        # A mask that is given back says which of several masks is meant.
        multimask = False if prompts.has_masks else self.policy.multimask
        low, masks, iou = self._decode(index, prompts, rest, multimask=multimask)
        self.predicted_iou[index] = iou.float().tolist()
        found, seeds = {}, []
        for number, logits, mask in zip(prompts.numbers.tolist(), low, masks, strict=True):
            found[number] = logits
            if mask.any():
                onward = self._prompts_from(mask, logits)
                seeds.append(CarriedObject(walks[index, number], onward, int(mask.sum())))
        return found, seeds

    def _carry(
        self, index: int, carried: Sequence[CarriedObject], rest: Sequence[int]
    ) -> tuple[dict[int, Float[Tensor, "1 _ _"]], list[CarriedObject]]:
        """Segment the objects that come from the slice before; drop those that have vanished."""
        due = [item for item in carried if index in item.walk.slices]
        if not due:
            return {}, []
        multimask = self.policy.multimask if self.carry == "prompt" else False
        counts = [len(item.onward) for item in due]
        together = joined_prompts([item.onward for item in due])
        low, masks, _ = self._decode(index, together, rest, multimask=multimask)
        # Rows start to end of `low` and `masks` belong to the parts of one object.
        ends = np.cumsum(counts)
        found, alive = {}, []
        for item, start, end in zip(due, ends - counts, ends, strict=True):
            # The parts of an object are one again: the highest logit of its parts counts.
            mask = np.logical_or.reduce(masks[start:end])
            logits = low[start:end].amax(dim=0)
            if mask.sum() > 0 and mask.sum() >= self.vanish * item.area:
                found[item.walk.number] = logits
                onward = self._prompts_from(mask, logits)
                alive.append(CarriedObject(item.walk, onward, item.area))
        return found, alive

    def _decode(
        self, index: int, prompts: ImagePrompts, rest: Sequence[int], *, multimask: bool | None
    ) -> tuple[Float[Tensor, "p 1 _ _"], Array, Float[Tensor, " p"]]:
        """Return logits (p, 1, 4g, 4g), masks (p, h, w) in the original frame, and IoU (p,)."""
        embedding = self._embedding(index, rest)[None]
        ((low, iou),) = answers_to_prompts(
            self.sam, embedding, [self._frame], [prompts], self.policy, multimask=multimask
        )
        return low, self._masks_of(low), iou

    def _masks_of(self, low: Float[Tensor, "p 1 _ _"]) -> Array:
        """Return masks (p, h, w) in the original frame."""
        original = self.sam.postprocess(low[None].float(), self._frame)[0, :, 0]
        found: Array = (original > self.threshold).cpu().numpy()
        return found

    def _embedding(self, index: int, rest: Sequence[int]) -> Float[Tensor, "c g g"]:
        """Return the embedding (c, g, g) of a slice, which is computed once.

        Args:
            index: the slice.
            rest: the slices that follow on this way; some of them are embedded ahead.
        """
        if index not in self._ready:
            if index in self._spool:
                self._ready[index] = self._spool.get(index).to(self.sam.device)
            else:
                wanted = [index, *(i for i in rest if i not in self._spool)][: self.ahead]
                embeddings, frames = self.embed(wanted)
                self._frame = frames[0]
                self._ready |= zip(wanted, embeddings, strict=True)
                for i in self._again.intersection(wanted):
                    self._spool.put(i, self._ready[i])
            # Embeddings of slices that this way has passed are no longer needed.
            self._ready = {i: self._ready[i] for i in self._ready if i == index or i in rest}
        return self._ready[index]

    def _prompts_from(self, mask: Array, logits: Float[Tensor, "1 _ _"]) -> ImagePrompts:
        """Return the prompts that a mask (h, w) on one slice makes on the next."""
        boxes = points = point_labels = masks = mask_logits = None
        parts = mask[None]
        if self.carry == "prompt" and self.policy.objects == "component":
            least = int(LEAST_PART * mask.sum())
            _, large = objects_in(mask.astype(np.uint8), "component", least)
            parts = large if len(large) else parts  # a mask of specks alone: one box around all
        if self.carry != "mask" and self.policy.kind == "mask":
            masks = parts
        elif self.carry != "mask" and self.policy.kind == "scribble":
            points = scribbles_in(parts, self.policy.scribble_points)
            point_labels = np.ones(points.shape[:2], dtype=np.int64)
        elif self.carry != "mask" and self.policy.kind != "point":
            boxes = widened(boxes_of(parts), mask.shape)
        elif self.carry != "mask":
            points = points_in(parts)
            point_labels = np.ones(points.shape[:2], dtype=np.int64)
        if self.carry != "prompt":
            mask_logits = logits[None].float().cpu().numpy()
        return ImagePrompts(
            class_ids=np.ones(len(parts), dtype=np.int64),
            boxes=boxes,
            points=points,
            point_labels=point_labels,
            mask_logits=mask_logits,
            masks=masks,
        )
