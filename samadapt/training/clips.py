"""Training through the memory of SAM 2: objects are prompted on one slice and found on the next.

A clip is a few neighbouring slices of a volume, upwards or downwards. Its objects are prompted on
the first slice. On each other slice the model gets no prompt but what the slices before have left,
as ``propagate=memory`` does in predictions (``sam/tracking.py``). All slices have the loss, and its
gradient goes back through the memories to all embeddings before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from jaxtyping import Float, Integer
from torch import Tensor

from samadapt.sam.types import Prompts
from samadapt.sam.video_memory import MemoryBank

if TYPE_CHECKING:
    from samadapt.sam.tracking import Tracker
    from samadapt.sam.types import MaskOutput


def walk_clips(
    tracker: Tracker,
    embeddings: Float[Tensor, "b e g g"],
    prompts: Prompts,
    targets: Integer[Tensor, "b p s s"],
    clip: int,
    autocast: Callable[[], AbstractContextManager[None]],
    *,
    multimask: bool = False,
) -> Iterator[list[tuple[MaskOutput, Integer[Tensor, "p 1 s s"]]]]:
    """Segment the objects of one clip after another.

    The caller may run backward after each clip.

    Args:
        tracker: the model and its memory.
        embeddings: of the b slices of all clips, one clip after the other.
        prompts: p objects for each slice; only those of a clip's first slice are given.
        targets: (b, p, s, s) of the same objects.
        clip: slices of a clip.
        autocast: returns the context manager of a forward pass.
        multimask: the prompt may mean a part or the whole, so the first slice gets several masks
            too.

    Yields:
        For each clip what the decoder answers on each slice, masks (p, 1, m, s, s) of p objects,
        with its targets (p, 1, s, s).
    """
    for first in range(0, len(targets), clip):
        found = []
        with autocast():
            copies = embeddings[first].expand(targets.shape[1], -1, -1, -1)
            asked = one_each(prompts, first)
            seen = tracker.prompted(copies, asked, multimask=multimask)
            bank = MemoryBank({0: seen.memory})
            found.append((seen.masks, targets[first][:, None]))
            for index in range(1, clip):
                copies = embeddings[first + index].expand(targets.shape[1], -1, -1, -1)
                seen = tracker.tracked(copies, bank, index, 1)
                found.append((seen.masks, targets[first + index][:, None]))
        yield found


def one_each(prompts: Prompts, image: int) -> Prompts:
    """Return the p objects of one image as one object for each of p images."""

    def taken(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[image][:, None]

    return Prompts(
        points=taken(prompts.points),
        point_labels=taken(prompts.point_labels),
        boxes=taken(prompts.boxes),
        masks=taken(prompts.masks),
    )
