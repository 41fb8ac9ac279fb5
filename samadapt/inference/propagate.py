"""Objects prompted on some slices of a volume, carried to the others.

Each object walks both ways from each slice where it is prompted: its mask on one slice gives the
prompts on the next, one for each part of the mask where the adapter was trained with a prompt a
component. Between two prompted slices the nearer one leads (of two equally near ones the
lower). All objects walk together, upwards first and then downwards, so that a slice is embedded
once: what both ways need is set aside between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from samadapt.errors import PromptError
from samadapt.inference.spool import Spool
from samadapt.prompts.simulate import boxes_of, objects_in, points_in
from samadapt.sam.decode import object_logits
from samadapt.sam.types import ImagePrompts
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.inference.options import Carry
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.sam.model import Sam
    from samadapt.sam.types import Frame

MARGIN = 0.05
"""Share of a box's longer side by which it grows on each side from slice to slice, one pixel at
least. Of 0 to 0.15, 0.05 to 0.08 served best for four organs of a CT with LiteMedSAM: without a
margin a box can only shrink, with a wide one it takes in the neighbours."""

LEAST_PART = 0.03
"""Share of a mask's area below which a part of it is not carried on by itself."""

Embed = Callable[[Sequence[int]], tuple["Tensor", "list[Frame]"]]
"""Embeddings (b, c, g, g) of slices, and their frames."""


@dataclass(frozen=True)
class Walk:
    """One object on its way from a prompted slice, that slice included.

    Attributes:
        number: of the object, from 1.
        start: the prompted slice.
        limit: the last slice.
    """

    number: int
    start: int
    limit: int


@dataclass(frozen=True)
class _Carried:
    """What an object brings to the next slice: a prompt for each of its parts, and its end."""

    walk: Walk
    prompts: ImagePrompts
    area: int


def plan_walks(
    prompts: Mapping[int, ImagePrompts], depth: int, slices: Sequence[int] | None
) -> tuple[list[Walk], list[Walk]]:
    """Divide the slices among the prompts.

    Args:
        prompts: by slice, with class ids that number the objects.
        depth: number of slices.
        slices: first and last slice to go to; None: all.

    Returns:
        The walks upwards and downwards, one of each for every object on every prompted slice.

    Raises:
        PromptError: ``slices`` is no range, or a prompt lies outside it.
    """
    low, high = _bounds(slices, depth)
    prompted: dict[int, list[int]] = {}
    for index in sorted(prompts):
        for number in prompts[index].class_ids.tolist():
            prompted.setdefault(number, []).append(index)
    up, down = [], []
    for number, starts in prompted.items():
        if not low <= starts[0] <= starts[-1] <= high:
            raise PromptError(
                f"slices=[{low}, {high}] must hold every prompted slice; object {number} is "
                f"prompted on {starts}"
            )
        between = [(first + second) // 2 for first, second in pairwise(starts)]
        for start, first, last in zip(
            starts, [low, *(b + 1 for b in between)], [*between, high], strict=True
        ):
            up.append(Walk(number, start, last))
            down.append(Walk(number, start, first))
    return up, down


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
        embed: gives the embeddings of slices.
        policy: how the adapter was prompted in training.
        threshold: logit above which a pixel belongs to an object.
        carry: ``"prompt"``: the box around a mask, or the point deepest in it, is the next slice's
            prompt; ``"mask"``: its logits are, as SAM takes them; ``"both"``.
        vanish: share of its area on the prompted slice below which an object has ended.
        ahead: slices that are embedded together.
        advance: called once for every slice that is passed.
    """

    sam: Sam
    embed: Embed
    policy: PromptPolicy
    threshold: float
    carry: Carry = "prompt"
    vanish: float = 0.1
    ahead: int = 1
    advance: Callable[[], None] = field(default=lambda: None)
    _again: set[int] = field(init=False)
    _ready: dict[int, Tensor] = field(init=False, default_factory=dict)
    _spool: Spool = field(init=False)
    _frame: Frame = field(init=False)

    def __call__(
        self, prompts: Mapping[int, ImagePrompts], up: Sequence[Walk], down: Sequence[Walk]
    ) -> Iterator[tuple[int, dict[int, Tensor]]]:
        """Walk both ways.

        Args:
            prompts: by slice, with class ids that number the objects.
            up: the walks of ``plan_walks``.
            down: likewise.

        Yields:
            Each slice on which an object was found, once, with the logits (1, 4g, 4g) of each
            object by its number.
        """
        upwards = sorted({i for walk in up for i in range(walk.start, walk.limit + 1)})
        downwards = sorted({i for walk in down for i in range(walk.limit, walk.start)})[::-1]
        self._again = set(downwards)
        with Spool() as self._spool, torch.no_grad():
            leads = {(walk.start, walk.number): walk for walk in up}
            returns = {(walk.start, walk.number): walk for walk in down}
            waiting: dict[int, list[_Carried]] = {}
            kept: dict[int, list[int]] = {}
            carried: list[_Carried] = []
            for at, index in enumerate(upwards):
                found, carried = self._carry(index, carried, upwards[at + 1 :])
                begun, seeds = self._begin(index, prompts.get(index), leads, upwards[at + 1 :])
                found |= begun
                carried += seeds
                for seed in seeds:
                    back = returns[index, seed.walk.number]
                    waiting.setdefault(index, []).append(_Carried(back, seed.prompts, seed.area))
                if index in self._again:
                    kept[index] = list(found)
                    for number, logits in found.items():
                        self._spool.put((index, number), logits)
                elif found:
                    yield index, found
                self.advance()
            self._again, carried = set(), []
            self._ready.clear()
            for at, index in enumerate(downwards):
                carried += waiting.pop(index + 1, [])
                found, carried = self._carry(index, carried, downwards[at + 1 :])
                for number in kept.get(index, []):
                    found[number] = self._spool.get((index, number)).to(self.sam.device)
                if found:
                    yield index, found
                self.advance()

    def _begin(
        self,
        index: int,
        prompts: ImagePrompts | None,
        walks: Mapping[tuple[int, int], Walk],
        rest: Sequence[int],
    ) -> tuple[dict[int, Tensor], list[_Carried]]:
        """Segment what is prompted on a slice."""
        if prompts is None or not len(prompts):
            return {}, []
        low, masks = self._decode(index, prompts, rest, multimask=self.policy.is_ambiguous)
        found, seeds = {}, []
        for number, logits, mask in zip(prompts.class_ids.tolist(), low, masks, strict=True):
            found[number] = logits
            if mask.any():
                onward = self._onward(mask, logits)
                seeds.append(_Carried(walks[index, number], onward, int(mask.sum())))
        return found, seeds

    def _carry(
        self, index: int, carried: Sequence[_Carried], rest: Sequence[int]
    ) -> tuple[dict[int, Tensor], list[_Carried]]:
        """Segment on a slice what came from the one before; what has vanished is left out."""
        due = [item for item in carried if index in _way(item.walk)]
        if not due:
            return {}, []
        multimask = self.policy.is_ambiguous and self.carry == "prompt"
        counts = [len(item.prompts) for item in due]
        together = _together([item.prompts for item in due])
        low, masks = self._decode(index, together, rest, multimask=multimask)
        ends = np.cumsum(counts)
        found, alive = {}, []
        for item, start, end in zip(due, ends - counts, ends, strict=True):
            mask = np.logical_or.reduce(masks[start:end])
            logits = low[start:end].amax(dim=0)
            if mask.sum() > 0 and mask.sum() >= self.vanish * item.area:
                found[item.walk.number] = logits
                alive.append(_Carried(item.walk, self._onward(mask, logits), item.area))
        return found, alive

    def _decode(
        self, index: int, prompts: ImagePrompts, rest: Sequence[int], *, multimask: bool
    ) -> tuple[Tensor, Array]:
        """Logits (p, 1, 4g, 4g), and masks (p, h, w) bool in the original frame."""
        embedding = self._embedding(index, rest)[None]
        objects = [unnumbered(prompts)]
        ((low, _),) = object_logits(
            self.sam, embedding, [self._frame], objects, multimask=multimask
        )
        original = self.sam.postprocess(low[None].float(), self._frame)[0, :, 0]
        return low, (original > self.threshold).cpu().numpy()

    def _embedding(self, index: int, rest: Sequence[int]) -> Tensor:
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
            self._ready = {i: self._ready[i] for i in self._ready if i == index or i in rest}
        return self._ready[index]

    def _onward(self, mask: Array, logits: Tensor) -> ImagePrompts:
        """What a mask (h, w) on one slice prompts on the next."""
        boxes = points = point_labels = hints = None
        parts = mask[None]
        if self.carry == "prompt" and self.policy.objects == "component":
            least = int(LEAST_PART * mask.sum())
            _, large = objects_in(mask.astype(np.uint8), "component", least)
            parts = large if len(large) else parts  # of specks alone: one box around all
        if self.carry != "mask" and self.policy.kind == "box":
            boxes = widened(boxes_of(parts), mask.shape)
        elif self.carry != "mask":
            points = points_in(parts)
            point_labels = np.ones(points.shape[:2], dtype=np.int64)
        if self.carry != "prompt":
            hints = logits[None].float().cpu().numpy()
        ids = np.ones(len(parts), dtype=np.int64)
        return ImagePrompts(ids, None, boxes, points, point_labels, hints)


def unnumbered(prompts: ImagePrompts) -> ImagePrompts:
    """Return the same prompts as objects of class 1: there may be more objects than class ids."""
    return replace(prompts, class_ids=np.ones(len(prompts), dtype=np.int64))


def widened(boxes: Array, shape: tuple[int, ...]) -> Array:
    """Grow boxes (p, 4) XYXY by the margin on each side, within an image of ``shape`` (h, w)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    margin = np.maximum(1, MARGIN * sides.max(axis=1, keepdims=True))
    grown = np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1)
    height, width = shape
    return np.asarray(np.clip(grown, 0, [width, height] * 2), dtype=np.float32)


def _way(walk: Walk) -> range:
    """The slices of a walk behind the prompted one."""
    if walk.limit >= walk.start:
        return range(walk.start + 1, walk.limit + 1)
    return range(walk.limit, walk.start)


def _together(prompts: Sequence[ImagePrompts]) -> ImagePrompts:
    """Prompts of one kind, as those of one image."""

    def joined(name: str) -> Array | None:
        parts = [getattr(prompt, name) for prompt in prompts]
        return None if parts[0] is None else np.concatenate(parts)

    ids = np.ones(sum(len(prompt) for prompt in prompts), dtype=np.int64)
    return ImagePrompts(
        ids, None, joined("boxes"), joined("points"), joined("point_labels"), joined("mask_logits")
    )
