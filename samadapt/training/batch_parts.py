"""Split a batch that does not fit into memory, with the same gradients as the whole batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from samadapt.training.click_rounds import Click, Rounds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samadapt.training.batches import Batch


def stack_count(batch: Batch) -> int:
    """Return how many stacks of slices a batch holds; a slice alone is a stack too."""
    return len(batch.seeds) or len(batch.keys or batch.images)


def split(batch: Batch, parts: int) -> list[Batch]:
    """Split a batch between its stacks.

    Args:
        batch: b images with the loss.
        parts: number of parts; at most the number of stacks is made.

    Returns:
        Batches whose ``share`` adds up to that of the whole.
    """
    stacks = stack_count(batch)
    parts = min(parts, stacks)
    if parts == 1:
        return [batch]
    depth = len(batch.keys or batch.images) // stacks
    bounds = [stacks * part // parts for part in range(parts + 1)]
    return [_part(batch, first, last, depth) for first, last in pairwise(bounds)]


def _part(batch: Batch, first: int, last: int, depth: int) -> Batch:
    """Return the stacks ``first`` to ``last`` of a batch, whose stacks have ``depth`` slices."""
    begin, end = first * depth, last * depth
    trained = range(len(batch.targets)) if batch.trained is None else batch.trained.tolist()
    rows = [row for row, place in enumerate(trained) if begin <= place < end]
    own = _rows(batch, rows)
    places = None
    if batch.trained is not None:
        places = torch.tensor([trained[row] - begin for row in rows])
    others = []
    for other in batch.others:
        seen = [] if other.trained is None else other.trained.tolist()
        kept = [at for at, row in enumerate(seen) if row in rows]
        if kept:
            moved = torch.tensor([rows.index(seen[at]) for at in kept])
            others.append(replace(_rows(other, kept), trained=moved))
    return replace(
        own,
        keys=batch.keys[begin:end],
        images=batch.images[begin:end],
        seeds=batch.seeds[first:last],
        trained=places,
        others=tuple(others),
    )


def _rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """Return the prompts and targets of some of the b images, with their share."""

    def take(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[list(rows)]

    prompts, rounds = batch.prompts, batch.rounds
    if rounds is not None:
        clicks = tuple(
            None
            if click is None
            else Click(click.place[list(rows)], click.from_truth[list(rows)], click.even_if_right)
            for click in rounds.clicks
        )
        rounds = Rounds(rounds.by_box[list(rows)], clicks, rounds.click_disks)
    return replace(
        batch,
        names=[batch.names[row] for row in rows],
        prompts=replace(
            prompts,
            points=take(prompts.points),
            point_labels=take(prompts.point_labels),
            boxes=take(prompts.boxes),
            masks=take(prompts.masks),
        ),
        targets=batch.targets[list(rows)],
        rounds=rounds,
        share=batch.share * len(rows) / len(batch.targets),
    )
