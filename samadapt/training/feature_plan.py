"""Before a run: which of its images have stored features, what the others take, where they go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from samadapt.system.arrays import Array
from samadapt.training.features import Features
from samadapt.training.stores import DiskStore, MemoryStore, settle

Job = TypeVar("Job")


@dataclass(frozen=True)
class FeaturePlan(Generic[Job]):
    """What is left to compute before the first step.

    Attributes:
        images: how many images the run needs, each once.
        missing: those without features.
        bytes_each: size of one image's features.
        text: the estimate and the place, for the log.
    """

    images: int
    missing: list[Job]
    bytes_each: int
    text: str


def plan_features(
    features: Features,
    jobs: Iterable[Job],
    read: Callable[[Job], Array | None],
    *,
    where: str,
    folder: Path,
    max_bytes: float,
) -> FeaturePlan[Job]:
    """Choose where features are kept, and look up which are there.

    Args:
        features: gets the store. One image is computed, where none is stored, to learn its size.
        jobs: names of the images.
        read: name to image (h, w, 3) uint8, or None where its features are not needed.
        where: ``"auto"``, ``"disk"`` or ``"memory"``; see ``stores.settle``.
        folder: of the files on the disk.
        max_bytes: what all files of the folder may take.

    Raises:
        RunError: when there is too little room.
    """
    store = MemoryStore() if where == "memory" else DiskStore(folder)
    needed: dict[str, Job] = {}
    for job in jobs:
        image = read(job)
        if image is not None:
            needed.setdefault(features.key(image), job)
    if not needed:
        return FeaturePlan(0, [], 0, "none needed")
    features.store = store
    probe, example = next((key, read(job)) for key, job in needed.items())
    size = features([example]).nbytes if example is not None else 0
    missing = needed.keys() - store.use(needed)
    features.store, place = settle(store, where, size * len(missing), size * len(needed), max_bytes)
    if features.store is not store and (first := store.get(probe)) is not None:
        features.store.put(probe, first.clone())
        missing = needed.keys() - {probe}
    text = (
        f"{len(needed)} images, {size / 1e6:.1f} MB each, {size * len(needed) / 1e9:.2f} GB, of "
        f"which {size * len(missing) / 1e9:.2f} GB are to be computed; {place}"
    )
    left = [job for key, job in needed.items() if key in missing]
    return FeaturePlan(len(needed), left, size, text)
