"""Walk through a volume with several passes at once, and give what they find slice by slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from samadapt.inference.spool import Spool

if TYPE_CHECKING:
    from torch import Tensor

NOWHERE = -1e4
"""Logit of an object on a slice to which a pass of an ensemble did not carry it."""


def walk_together(
    walks: Sequence[Iterator[tuple[int, dict[int, Tensor]]]],
) -> Iterator[tuple[int, list[int], list[Tensor]]]:
    """Yield what several walks through a volume find, slice by slice.

    Each walk carries its objects by itself. What they find waits on the disk, if it is much, until
    the last one has ended. An object that a walk does not carry to a slice has no chance there.

    Yields:
        The slice, the numbers of its p objects, and for each walk their logits (p, 1, 4g, 4g).
    """
    if len(walks) == 1:
        for index, found in walks[0]:
            numbers = sorted(found)
            yield index, numbers, [torch.stack([found[number] for number in numbers])]
        return
    with Spool() as spool:
        present: dict[int, set[int]] = {}
        for at, walk in enumerate(walks):
            for index, found in walk:
                present.setdefault(index, set()).update(found)
                for number, logits in found.items():
                    spool.put((at, index, number), logits)
        for index in sorted(present):
            numbers = sorted(present[index])
            known = {
                (at, number): spool.get((at, index, number))
                for at in range(len(walks))
                for number in numbers
                if (at, index, number) in spool
            }
            nowhere = torch.full_like(next(iter(known.values())), NOWHERE)
            yield (
                index,
                numbers,
                [
                    torch.stack([known.get((at, number), nowhere) for number in numbers])
                    for at in range(len(walks))
                ],
            )
