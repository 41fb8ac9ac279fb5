"""Volumes after the intensity rule: kept in memory up to a limit and, if asked for, on disk.

A file is read once where memory allows. ``ScannedVolumes`` keeps what the scan of the data set has
read and checked until it is used for the first time; ``VolumeCache`` keeps it from then on. Both
together stay below ``MEMORY_LIMIT``.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from samadapt.data.intensity import IntensityRule
from samadapt.data.types import Annotation, Case, Volume
from samadapt.errors import DataError
from samadapt.system import atomic
from samadapt.system.arrays import Array

ALIGNED = 64
"""Arrays in the scratch file start at multiples of this many bytes, so any type may be viewed."""
PAGES_KEPT = 1 << 28
"""Bytes of cases in a scratch file that are used before their pages of memory are given back."""
SPARED = 1 << 30
"""Bytes of the disk that a scratch file leaves to the rest of the run."""
MEMORY_LIMIT = 1 << 30
"""Bytes of volumes kept in memory: 1 GB. The least recently used are dropped first."""


@dataclass(frozen=True)
class PreparedVolume:
    """A volume ready for slicing.

    Attributes:
        image: (h, w, d) uint8; (h, w, d, 3) with one rule for each channel; (h, w, 3) if
            ``is_color``.
        labels: (h, w, d) uint8, int8 or int16 class ids; ``IGNORED`` where none is known. In
            ``ScannedVolumes`` these are still the values of the mask file.
        is_color: the last axis of ``image`` is RGB.
        spacing_mm: (row, column, slice) in mm; None for pictures.
        annotation: prompts that come with the image, or None.
        instances: int32 object numbers where the data set separates objects, 0 for none: (h, w)
            for a picture, (h, w, d) for a volume. Two objects of a class that touch keep their
            numbers.
    """

    image: Array
    labels: Array
    is_color: bool = False
    spacing_mm: tuple[float, float, float] | None = None
    annotation: Annotation | None = None
    instances: Array | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps in memory; arrays that are mapped from a file count as 0."""
        arrays = (self.image, self.labels, self.instances)
        return sum(0 if array is None else _bytes_behind(array) for array in arrays)


class ScannedVolumes:
    """What the scan has read, kept for its first use; safe for threads.

    The intensity rule is known before the scan, the classes are known only after it. So images are
    kept as the rule makes them (one byte for each voxel), and labels as values of the mask file in
    the smallest type that holds them.

    Args:
        rule: intensity rule of the data set; None: it is not known yet, and nothing is kept.
        limit: bytes that may be kept; None: ``MEMORY_LIMIT``. A volume that does not fit is read
            again when it is used.
    """

    def __init__(self, rule: IntensityRule | None, limit: int | None = None) -> None:
        self.rule = rule
        self.limit = MEMORY_LIMIT if limit is None else limit
        self.nbytes = 0
        self._kept: dict[str, PreparedVolume] = {}
        self._lock, self._converting = Lock(), Lock()

    def keep(self, case: Case, volume: Volume) -> None:
        """Keep a volume that was just read, if there is room for it."""
        if self.rule is None or volume.labels is None:
            return
        expected = 2 * volume.image.size  # one byte of image and one of label for each voxel
        # One thread at a time: for a moment the rule needs 4 to 8 bytes more for each voxel.
        with self._converting:
            if self.nbytes + expected > self.limit:
                return
            try:
                image = self.rule(volume)
            except (DataError, MemoryError):  # it is reported when the volume is used
                return
        kept = PreparedVolume(
            image,
            _smallest(volume.labels, case.values),
            volume.is_color,
            volume.spacing_mm,
            volume.annotation,
            volume.instances,
        )
        with self._lock:
            if self.nbytes + kept.nbytes <= self.limit:
                self._kept[case.name] = kept
                self.nbytes += kept.nbytes

    def take(self, name: str) -> PreparedVolume | None:
        """Return the volume of a case and forget it; None where it was not kept."""
        with self._lock:
            kept = self._kept.pop(name, None)
            self.nbytes -= kept.nbytes if kept else 0
            return kept

    def keep_only(self, names: Collection[str], rule: IntensityRule) -> None:
        """Forget cases that are not used, and all of them if the rule turned out to be another."""
        for name in list(self._kept):
            if name not in names or rule != self.rule:
                self.take(name)

    def drop_last(self) -> bool:
        """Forget the volume that was kept last; return whether there was one."""
        with self._lock:
            if not self._kept:
                return False
            self.nbytes -= self._kept.popitem()[1].nbytes
            return True


class VolumeCache:
    """Least recently used volumes by case name, limited in bytes; safe for threads.

    Args:
        limit: bytes that are kept; the last volume is always kept.
        scanned: what the scan left. It counts towards the limit, and goes first: it may be of cases
            that are not used for long, such as those of the validation side.
    """

    def __init__(self, limit: int = MEMORY_LIMIT, scanned: ScannedVolumes | None = None) -> None:
        self.limit = limit
        self._scanned = scanned or ScannedVolumes(None)
        self._held: OrderedDict[str, PreparedVolume] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of volumes in memory, those that the scan left included."""
        return self._bytes + self._scanned.nbytes

    def get(self, name: str, make: Callable[[], PreparedVolume]) -> PreparedVolume:
        """Return the volume of a case; ``make`` reads it if it is not in memory."""
        with self._lock:
            if name in self._held:
                self._held.move_to_end(name)
                return self._held[name]
        # Outside the lock: reading takes seconds, and other threads need other volumes.
        volume = make()
        with self._lock:
            if name not in self._held:
                self._held[name] = volume
                self._bytes += volume.nbytes
            # Make room: first drop what was scanned and not used yet, then the least recently used.
            while self._bytes + self._scanned.nbytes > self.limit:
                if self._scanned.drop_last():
                    continue
                if len(self._held) < 2:
                    break
                self._bytes -= self._held.popitem(last=False)[1].nbytes
        return volume


def stored_arrays(
    folder: Path, key: str, make: Callable[[], tuple[Array, Array]]
) -> tuple[Array, Array]:
    """Return image and labels from ``folder`` as memory maps; write the files if they are absent.

    Args:
        folder: the cache folder.
        key: everything that the arrays depend on; its hash names the files.
        make: returns image and labels, (h, w, d, ...). They are stored slice by slice,
            (d, h, w, ...), so that reading one slice touches one part of the file.
    """
    stem = hashlib.sha256(key.encode()).hexdigest()[:24]
    paths = [folder / f"{stem}.{part}.npy" for part in ("image", "labels")]
    if not all(path.is_file() for path in paths):
        for path, array in zip(paths, make(), strict=True):
            with atomic.file(path, array.nbytes) as part:
                np.save(part, np.ascontiguousarray(np.moveaxis(array, 2, 0)))
    image, labels = (np.moveaxis(np.load(path, mmap_mode="r"), 0, 2) for path in paths)
    return image, labels


class Scratch:
    """Arrays in one unnamed temporary file, which disappears when the program ends for any reason.

    Args:
        folder: where the file is; the folder is made.
        most: bytes that all arrays may need. The file needs disk space only for what is put in.
    """

    def __init__(self, folder: Path, most: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (open as long as we are)
        weakref.finalize(self, self._file.close)
        self._file.truncate(max(most, 1))
        self._bytes = np.memmap(self._file, np.uint8, "r+")
        self._used = self._seen = 0
        self._lock = Lock()

    def put_volume(self, volume: PreparedVolume) -> PreparedVolume:
        """Copy a case into the file, slice by slice, so that a slice is one part of it.

        Raises:
            DataError: the disk is full.
        """

        def put(array: Array) -> Array:
            return np.moveaxis(self.put(np.ascontiguousarray(np.moveaxis(array, 2, 0))), 0, 2)

        return replace(
            volume,
            image=self.put(volume.image) if volume.is_color else put(volume.image),
            labels=put(volume.labels),
            instances=None if volume.instances is None else self.put_objects(volume.instances),
        )

    def put_objects(self, instances: Array) -> Array:
        """Copy object numbers, (h, w) or (h, w, d), into the file; raises as ``put``."""
        if instances.ndim == 2:
            return self.put(instances)
        return np.moveaxis(self.put(np.ascontiguousarray(np.moveaxis(instances, 2, 0))), 0, 2)

    def count_use(self, volume: PreparedVolume) -> None:
        """Count a case that is about to be read, and give pages of memory back now and then.

        The system keeps the pages of a mapped file in the memory of the process for as long as it
        has room, so that the process would seem to need as much memory as the file has. Pages that
        are needed again come from the system's cache of the file.
        """
        arrays = (volume.image, volume.labels, volume.instances)
        with self._lock:
            self._seen += sum(0 if array is None else array.nbytes for array in arrays)
            if self._seen < PAGES_KEPT or not hasattr(mmap, "MADV_DONTNEED"):
                return
            self._seen = 0
        # The pages are shared with the file, so nothing that was written is lost.
        mapped: Any = self._bytes
        mapped._mmap.madvise(mmap.MADV_DONTNEED)

    def put(self, array: Array) -> Array:
        """Copy an array into the file and return it as a part of the file's memory map.

        Raises:
            DataError: the disk is full.
        """
        size = -(-array.nbytes // ALIGNED) * ALIGNED
        with self._lock:
            start, self._used = self._used, self._used + size
        # The file is sparse. Writing to a memory map whose blocks the disk cannot provide kills the
        # process with SIGBUS, so the blocks are reserved first, which raises an error instead.
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._file.fileno(), start, array.nbytes)
            except OSError as error:
                raise DataError(
                    f"{self.folder}: one more uncompressed picture needs {array.nbytes / 1e9:.2f} "
                    f"GB beside {start / 1e9:.2f} GB of others ({error.strerror}); choose another "
                    "disk (output.dir), or fewer pictures (data.max_cases)"
                ) from error
        stored = self._bytes[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        stored[...] = array
        return stored


def make_scratch(folder: Path, most: int) -> Scratch | None:
    """Return a scratch file, or None if the disk has no room for it.

    Args:
        folder: where the file is; the folder is made.
        most: bytes that all arrays may need.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < most + SPARED:
        return None
    return Scratch(folder, 2 * most)  # two threads may read the same case at once


def _bytes_behind(array: Array) -> int:
    """Return the bytes that an array keeps in memory.

    An array may be a view of a larger one, such as one channel of a file with several, which then
    stays in memory as a whole.
    """
    if isinstance(array, np.memmap):
        return 0
    owner: Any = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return len(owner.base) if isinstance(owner.base, bytes) else owner.nbytes


def _smallest(labels: Array, values: Collection[int]) -> Array:
    """Return labels in the smallest type that holds the values that occur."""
    for dtype in (np.uint8, np.int16, np.int32):
        limits = np.iinfo(dtype)
        if all(limits.min <= value <= limits.max for value in values):
            return labels.astype(dtype, copy=False)
    return labels
