"""Which images an adapter was trained on, so that no score treats them as unseen.

Images are identified by a hash of their voxels, so a copy with another name or in another folder is
recognised. An adapter records neither names nor patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samadapt.data.dataset import Dataset
from samadapt.data.types import SliceRef

TrainedOn = Mapping[str, list[int] | None]
"""Maps the hash of each training image to its slices; None: all of its slices."""


def trained_on(dataset: Dataset) -> dict[str, list[int] | None]:
    """Return the training images and slices, for the adapter to record.

    Slices that training skips (empty ones, ``data.slice_step``) are on the training side, too.
    """
    found: dict[str, list[int] | None] = {}
    held_out = set(dataset.case_splits.val)
    for ref in dataset.slices("train", empty="keep", step=1):
        digest = dataset.case(ref.case).digest
        # If a single volume was split, its case is in both splits, so its slices are listed.
        if ref.case not in held_out:
            found[digest] = None
        elif (slices := found.setdefault(digest, [])) is not None:
            slices.append(ref.index)
    return found


def seen(
    dataset: Dataset, refs: Sequence[SliceRef], trained: TrainedOn, *, same_slices: bool
) -> list[SliceRef]:
    """Return the slices of ``refs`` that an adapter was trained on.

    Args:
        dataset: the data set that contains ``refs``.
        refs: slices or tiles.
        trained: what the adapter recorded.
        same_slices: whether pictures are cut into tiles as they were in training. If not, a tile
            counts as trained on if any tile of its picture was.
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
