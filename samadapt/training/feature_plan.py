"""Before a run: hash its images, decide where features are kept, and list what is not computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from samadapt.system import processes
from samadapt.system.arrays import Array
from samadapt.training.feature_stores import DiskStore, MemoryStore, Store, settle
from samadapt.training.features import Features

if TYPE_CHECKING:
    from torch import Tensor

Job = TypeVar("Job")


@dataclass(frozen=True)
class FeaturePlan(Generic[Job]):
    """The keys of a run's images, and which features are left to compute before the first step.

    Attributes:
        keys: key of each job whose features are needed. Equal images have one key.
        missing: keys that the store does not have yet, in the order of the jobs.
        bytes_each: size of the features of one image.
        text: the estimate and the place, for the log.
    """

    keys: Mapping[Job, str]
    missing: list[str]
    bytes_each: int
    text: str

    @property
    def images(self) -> int:
        """How many different images the run needs."""
        return len(set(self.keys.values()))

    def keys_of(self, jobs: Sequence[Job]) -> list[str]:
        """Return the keys of jobs, or nothing if the plan lacks one of them."""
        keys = [self.keys[job] for job in jobs if job in self.keys]
        return keys if len(keys) == len(jobs) else []


def plan_features(
    features: Features,
    jobs: Iterable[Job],
    read: Callable[[Job], Array | None],
    *,
    where: str,
    folder: Path,
    max_bytes: float,
) -> FeaturePlan[Job]:
    """Hash every image once, choose the store, and look up which features it has.

    Several processes share the hashing.

    Args:
        features: receives the store and a way to read the image of a key. If the features of an
            image are missing, those of one image are computed to learn their size.
        jobs: names of the images.
        read: returns the image (h, w, 3) uint8 of a name, or None where no features are needed.
        where: ``"auto"``, ``"disk"`` or ``"memory"``; see ``feature_stores.settle``.
        folder: folder for features on the disk.
        max_bytes: limit for all files of the folder.

    Raises:
        RunError: when there is too little room.
    """
    store = MemoryStore() if where == "memory" else DiskStore(folder)
    keys: dict[Job, str] = {}
    first_job: dict[str, Job] = {}  # key to the first job with that image
    every_job = list(jobs)
    hashed = [_key_of(features, read(job)) for job in processes.block(every_job)]
    for job, key in zip(every_job, chain(*processes.gather(hashed)), strict=True):
        if key is not None:
            keys[job] = key
            first_job.setdefault(key, job)
    if not keys:
        return FeaturePlan({}, [], 0, "none needed")

    def read_key(key: str) -> Array:
        image = read(first_job[key])
        if image is None:
            raise RuntimeError(f"the image of {first_job[key]} was there and is gone")
        return image

    features.read, features.store = read_key, store
    probe = next(iter(first_job))
    # The first process computes the features of one image, for all.
    one = processes.from_first(features.stored([probe]).cpu() if processes.is_first() else None)
    size = _sized(one, probe, store)
    missing = first_job.keys() - store.use(first_job)
    needed_bytes, missing_bytes = size * len(first_job), size * len(missing)
    features.store, place = settle(store, where, missing_bytes, needed_bytes, max_bytes)
    if features.store is not store and (first := store.get(probe)) is not None:
        # The disk had no room, so memory starts empty except for the image computed above.
        features.store.put(probe, first.clone())
        missing = first_job.keys() - {probe}
    text = (
        f"{len(first_job)} images, {size / 1e6:.1f} MB each, {needed_bytes / 1e9:.2f} GB, of "
        f"which {size * len(missing) / 1e9:.2f} GB are to be computed; {place}"
    )
    # The processes share what is missing, so they must agree on it.
    listed = processes.from_first([key for key in first_job if key in missing])
    return FeaturePlan(keys, listed, size, text)


def _sized(features: Tensor | None, key: str, store: Store) -> int:
    """Return the bytes of the features (1, ...) of an image, and keep them in the store."""
    if features is None:
        raise RuntimeError("the first process computed no features")
    if not store.use([key]):
        store.put(key, features)
    return features.nbytes


def _key_of(features: Features, image: Array | None) -> str | None:
    return None if image is None else features.key(image)
