"""One object that a client segments: its prompts, its mask in the file's axes, and undo."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from samadapt.errors import PromptError
from samadapt.inference.prompted_object import PromptedObject
from samadapt.prompts.simulate import boxes_of, widened
from samadapt.prompts.user_prompts import joined_points
from samadapt.sam.types import ImagePrompts
from samadapt.serving.file_axes import Ranges
from samadapt.serving.worker import Job

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.inference.propagate import Propagation
    from samadapt.serving.prompting import SlicePrompt
    from samadapt.serving.served_image import ImageView
    from samadapt.system.arrays import Array

UNDO_STEPS = 16
UNDO_BYTES = 1 << 27
"""Bytes of earlier masks of an object that undo keeps at most; the last step is always kept."""

POINTS = 64
"""Points of an object on one slice."""


@dataclass(frozen=True)
class Change:
    """The part of a mask that changed.

    Attributes:
        slices: slices of the model that changed.
        region: where they lie in the mask, along the file's axes; None: nothing changed.
    """

    slices: tuple[int, ...]
    region: Ranges | None


@dataclass
class _Before:
    """The state before an action."""

    prompts: dict[int, ImagePrompts]
    logits: dict[int, Tensor]
    iou: dict[int, float]
    bounds: tuple[int, int]
    kept: frozenset[int]
    due: tuple[int, ...]
    masks: dict[int, Array] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes that the replaced masks and logits take."""
        bits = sum(mask.nbytes for mask in self.masks.values())
        return bits + sum(self.logits[i].nbytes for i in self.masks if i in self.logits)


class ServedObject:
    """An object in an image.

    Args:
        view: the image as its model sees it.
        label: name of its class; empty: it has none.

    Attributes:
        mask: uint8, 1 in the object, in the axes of the file: (i, j, k), or (h, w) of a picture.
        slices: the same as a view (h, w, d) of upright slices.

    Raises:
        PromptError: the model takes no prompts.
    """

    def __init__(self, view: ImageView, label: str = "") -> None:
        if not view.model.takes_prompts:
            raise PromptError(
                f"adapter {view.model.name!r} was trained without prompts and finds its classes "
                f"({', '.join(view.model.classes)}) by itself; it takes no prompts"
            )
        self.view, self.label = view, label
        self.mask, self.slices = view.blank_mask()
        self._object = PromptedObject(self._propagation)
        self._bounds = (0, view.shape[2] - 1)
        # Slices of a segmentation that was given: they stay until they are prompted themselves.
        self._kept: frozenset[int] = frozenset()
        self._due: tuple[int, ...] = ()
        self._undo: deque[_Before] = deque(maxlen=UNDO_STEPS)

    @property
    def predicted_iou(self) -> dict[int, float]:
        """The IoU that the model predicts for its mask, by prompted slice."""
        return dict(self._object.predicted_iou)

    @property
    def is_due(self) -> bool:
        """Whether there are prompts that were not answered."""
        return bool(self._due)

    def prompt(self, prompts: Sequence[SlicePrompt], *, carry: bool = True) -> Job[Change]:
        """Add prompts and answer them, a slice a step.

        Args:
            prompts: on one or several slices.
            carry: carry the answers to the other slices; otherwise only the prompted ones change.

        Raises:
            PromptError: there are too many points on a slice.
        """
        self.add(prompts)
        try:
            return (yield from self.answer(carry=carry))
        except BaseException:  # a prompt without an answer would change the next answer
            self.undo()
            raise

    def add(self, prompts: Sequence[SlicePrompt]) -> None:
        """Add prompts, for a later ``answer``.

        Raises:
            PromptError: there are too many points on a slice.
        """
        self._check(prompts)
        self._remember()
        for prompt in prompts:
            if prompt.first is not None and prompt.last is not None:
                self._bounds = (prompt.first, prompt.last)
            self._object.prompts[prompt.index] = self._joined(prompt)
        self._due = tuple(sorted({*self._due, *(prompt.index for prompt in prompts)}))

    def answer(self, *, carry: bool = True) -> Job[Change]:
        """Answer the prompts that were added since the last answer.

        Args:
            carry: see ``prompt``.
        """
        due, self._due = self._due, ()
        changed: set[int] = set()
        for index in due:
            low, high = self._reach(index) if carry else (index, index)
            asked = self._asked(index)
            if _is_background(asked):
                continue  # nothing was found there that a click into the background could remove
            yield from self._object.steps(index, asked, low, high)
            self._kept -= {index}
            changed |= set(range(low, high + 1))
        return self._render(changed)

    def carry(self) -> Job[Change]:
        """Carry the answers on all prompted slices to the slices between and beyond them."""
        self._remember()
        changed: set[int] = set()
        for index, asked in sorted(self._object.prompts.items()):
            if _is_background(asked):
                continue
            low, high = self._reach(index)
            # Asked the same, the model answers the same, and this answer is carried.
            yield from self._object.steps(index, asked, low, high)
            changed |= set(range(low, high + 1))
        return self._render(changed)

    def start_from(self, prompts: Sequence[SlicePrompt]) -> Change:
        """Take a segmentation as it is; it replaces what was found, and is no answer.

        Args:
            prompts: masks, one a slice.
        """
        self._remember()
        self._object.prompts.clear()
        self._object.logits.clear()
        self._object.predicted_iou.clear()
        self._due, self._bounds = (), (0, self.view.shape[2] - 1)
        masks = {prompt.index: prompt.mask for prompt in prompts if prompt.mask is not None}
        self._kept = frozenset(masks)
        wanted = dict.fromkeys(range(self.view.shape[2]), np.zeros(self.view.shape[:2], bool))
        return self._write(wanted | masks)

    def refine(self) -> Job[Change]:
        """Let the model answer to the segmentation that was given: to its mask, and its box."""
        self._due = tuple(sorted({*self._due, *self._kept}))
        return (yield from self.answer(carry=False))

    def undo(self) -> Change | None:
        """Take the last action back; None: there is none."""
        if not self._undo:
            return None
        before = self._undo.pop()
        self._object.prompts, self._object.logits = before.prompts, before.logits
        self._object.predicted_iou = before.iou
        self._bounds, self._kept, self._due = before.bounds, before.kept, before.due
        count = self.view.shape[0] * self.view.shape[1]
        return self._write(
            {
                index: np.unpackbits(bits, count=count).reshape(self.view.shape[:2])
                for index, bits in before.masks.items()
            },
            remember=False,
        )

    def _propagation(self) -> Propagation:
        points = any(one.points is not None for one in self._object.prompts.values())
        return self.view.propagation(points=points)

    def _check(self, prompts: Sequence[SlicePrompt]) -> None:
        for prompt in prompts:
            known = self._object.prompts.get(prompt.index)
            held = 0 if known is None or known.points is None else known.points.shape[1]
            if held + (0 if prompt.points is None else len(prompt.points)) > POINTS:
                raise PromptError(
                    f"slice {prompt.index}: an object has at most {POINTS} points on a slice; "
                    "take some back with undo"
                )

    def _joined(self, prompt: SlicePrompt) -> ImagePrompts:
        """Return the prompts of a slice with one more."""
        known = self._object.prompts.get(prompt.index)
        known = known or ImagePrompts(np.ones(1, dtype=np.int64))
        points = labels = None
        if prompt.points is not None:
            points = np.asarray(prompt.points, np.float32)[None]
            labels = np.full((1, len(prompt.points)), int(prompt.inside), np.int64)
        return replace(
            known,
            boxes=known.boxes if prompt.box is None else np.asarray(prompt.box, np.float32)[None],
            points=joined_points(known.points, points),
            point_labels=joined_points(known.point_labels, labels),
        )

    def _asked(self, index: int) -> ImagePrompts:
        """Return what the model is asked on a slice: its prompts, and its mask so far."""
        prompts = self._object.prompts.get(index) or ImagePrompts(np.ones(1, dtype=np.int64))
        previous = self._object.logits.get(index)
        if previous is not None:
            logits = previous[None].float().cpu().numpy()
            return replace(prompts, mask_logits=logits, masks=None)
        mask = self.slices[:, :, index] != 0
        if not mask.any():
            return replace(prompts, mask_logits=None, masks=None)
        boxes = prompts.boxes
        if boxes is None:
            boxes = widened(boxes_of(mask[None]), mask.shape)
        return replace(prompts, boxes=boxes, masks=mask[None], mask_logits=None)

    def _reach(self, index: int) -> tuple[int, int]:
        """Return the slices that a prompt on a slice leads.

        Of two prompted slices the nearer one leads, as in ``propagate.py``. Slices of a
        segmentation that was given are left as they are.
        """
        low, high = min(self._bounds[0], index), max(self._bounds[1], index)
        known = self._object.prompts.items()
        prompted = [i for i, prompts in known if not _is_background(prompts)]
        low = max([low, *((i + index) // 2 + 1 for i in prompted if i < index)])
        high = min([high, *((i + index) // 2 for i in prompted if i > index)])
        low = max([low, *(i + 1 for i in self._kept if i < index)])
        return low, min([high, *(i - 1 for i in self._kept if i > index)])

    def _remember(self) -> None:
        known = self._object
        self._undo.append(
            _Before(
                dict(known.prompts),
                dict(known.logits),
                dict(known.predicted_iou),
                self._bounds,
                self._kept,
                self._due,
            )
        )

    def _render(self, changed: set[int]) -> Change:
        """Bring the masks of slices up to date with their logits."""
        logits = self._object.logits
        nothing = np.zeros(self.view.shape[:2], bool)
        masks = {
            index: self.view.mask_of(logits[index]) if index in logits else nothing
            for index in changed
            if index in logits or index not in self._kept
        }
        return self._write(masks)

    def _write(self, masks: dict[int, Array], *, remember: bool = True) -> Change:
        """Write masks (h, w) by slice, and return what differs from before."""
        changed: list[int] = []
        corners: list[Ranges] = []
        for index, mask in sorted(masks.items()):
            plane = self.slices[:, :, index]
            different = plane != mask
            if not different.any():
                continue
            if remember:
                self._undo[-1].masks.setdefault(index, np.packbits(plane))
            rows, columns = np.flatnonzero(different.any(1)), np.flatnonzero(different.any(0))
            changed.append(index)
            sides = [(int(side[0]), int(side[-1]) + 1) for side in (rows, columns)]
            corners.append((*sides, (index, index + 1)))
            plane[...] = mask
        while len(self._undo) > 1 and sum(one.nbytes for one in self._undo) > UNDO_BYTES:
            self._undo.popleft()
        if not changed:
            return Change((), None)
        around = tuple(
            (min(c[axis][0] for c in corners), max(c[axis][1] for c in corners))
            for axis in range(3)
        )
        return Change(tuple(changed), self.view.axes.to_file(around))


def _is_background(prompts: ImagePrompts) -> bool:
    """Return whether an object's prompts on a slice are clicks into the background alone."""
    labels = prompts.point_labels
    if prompts.boxes is not None or prompts.has_masks or labels is None:
        return False
    return bool((labels == 0).all())
