"""What an adapter was trained on, so that no score counts it as held out.

Images are known again by a hash of their voxels, whatever their name and place; an adapter keeps no
name and no patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samadapt.data.dataset import Dataset
from samadapt.data.types import SliceRef

TrainedOn = Mapping[str, list[int] | None]
"""The hash of each image that was trained on, with its slices; None: all of them."""


def trained_on(dataset: Dataset) -> dict[str, list[int] | None]:
    """Return what the training side holds, for an adapter to remember: no name, no patient.

    Slices that training passes over (empty ones, ``data.slice_step``) are on that side, too.
    """
    found: dict[str, list[int] | None] = {}
    held_out = set(dataset.parts.val)
    for ref in dataset.slices("train", empty="keep", step=1):
        digest = dataset.case(ref.case).digest
        if ref.case not in held_out:
            found[digest] = None
        elif (slices := found.setdefault(digest, [])) is not None:
            slices.append(ref.index)
    return found


def seen(
    dataset: Dataset, refs: Sequence[SliceRef], trained: TrainedOn, *, same_slices: bool
) -> list[SliceRef]:
    """Return those of ``refs`` whose image was trained on, whatever its name and place.

    Args:
        dataset: that of ``refs``.
        refs: slices or tiles.
        trained: what an adapter remembers.
        same_slices: whether pictures are cut as they were in training; else one counts where any
            of its tiles does.
    """
    found = []
    for ref in refs:
        digest = dataset.case(ref.case).digest
        if digest not in trained:
            continue
        slices = trained[digest]
        if slices is None or not same_slices or ref.index in slices:
            found.append(ref)
    return found
