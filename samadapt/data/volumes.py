"""Volumes after the intensity rule, kept in memory up to a limit and, if wished, on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from samadapt.data.types import Annotation, Case, Volume
from samadapt.errors import DataError
from samadapt.system import atomic
from samadapt.system.arrays import Array

_ALIGNED = 64
MEMORY_LIMIT = 1 << 30
"""Bytes of prepared volumes kept in memory; the least recently used go first."""


@dataclass(frozen=True)
class PreparedVolume:
    """A volume ready for slicing.

    Attributes:
        image: (h, w, d) uint8, (h, w, d, 3) with a rule a channel, or (h, w, 3) if ``is_color``.
        labels: (h, w, d) uint8, int8 or int16 class ids; ``IGNORED`` where none is known.
        is_color: the last axis of ``image`` is RGB.
        spacing_mm: (row, column, slice) in mm; None for pictures.
        annotation: prompts given with the image, or None.
        instances: (h, w) int32 object numbers of a picture, 0 none, where the data set tells
            objects apart; an object keeps its number where another of its class touches it.
    """

    image: Array
    labels: Array
    is_color: bool = False
    spacing_mm: tuple[float, float, float] | None = None
    annotation: Annotation | None = None
    instances: Array | None = None


class VolumeCache:
    """Volumes of a data set in memory, limited in bytes; safe for threads.

    It holds two kinds: volumes as the checks read them, until their first use, so that no file is
    read twice while there is room; and prepared volumes, of which the least recently used go
    first. Prepared volumes take the room of unprepared ones.
    """

    def __init__(self, limit: int = MEMORY_LIMIT) -> None:
        """Keep at most ``limit`` bytes, but always the last prepared volume."""
        self.limit = limit
        self._held: OrderedDict[str, PreparedVolume] = OrderedDict()
        self._checked: dict[str, Volume] = {}
        self._bytes = 0
        self._lock = Lock()

    def hold_checked(self, case: Case, volume: Volume) -> None:
        """Keep a volume that was just read and checked until it is taken, if there is room."""
        size = _volume_size(volume)
        with self._lock:
            if self._bytes + size <= self.limit:
                self._checked[case.name] = volume
                self._bytes += size

    def take_checked(self, name: str) -> Volume | None:
        """Return the volume that the checks read, and hold it no longer; None if there is none."""
        with self._lock:
            volume = self._checked.pop(name, None)
            self._bytes -= 0 if volume is None else _volume_size(volume)
        return volume

    def retain_checked(self, names: Collection[str]) -> None:
        """Drop the checked volumes of all other cases, such as those that were left out."""
        for name in [name for name in self._checked if name not in names]:
            self.take_checked(name)

    def get(self, name: str, make: Callable[[], PreparedVolume]) -> PreparedVolume:
        """Return the volume of a case; ``make`` reads it if it is not held."""
        with self._lock:
            if name in self._held:
                self._held.move_to_end(name)
                return self._held[name]
        volume = make()
        with self._lock:
            if name not in self._held:
                self._held[name] = volume
                self._bytes += _size(volume)
            while self._bytes > self.limit and self._checked:
                self._bytes -= _volume_size(self._checked.popitem()[1])
            while self._bytes > self.limit and len(self._held) > 1:
                self._bytes -= _size(self._held.popitem(last=False)[1])
        return volume


def stored_arrays(
    folder: Path, key: str, make: Callable[[], tuple[Array, Array]]
) -> tuple[Array, Array]:
    """Return image and labels from ``folder`` as memory maps, making the files if absent.

    Args:
        folder: the cache folder.
        key: everything that the arrays depend on; its hash names the files.
        make: returns image and labels, (h, w, d, ...); stored slice by slice.
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
    """Arrays in one file without a name, which is gone when the program ends, however it ends.

    Args:
        folder: where; it is made.
        most: bytes that all arrays may take. The file takes only what is put into it.
    """

    def __init__(self, folder: Path, most: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (open as long as we are)
        weakref.finalize(self, self._file.close)
        self._file.truncate(max(most, 1))
        self._bytes = np.memmap(self._file, np.uint8, "r+")
        self._used = 0
        self._lock = Lock()

    def put(self, array: Array) -> Array:
        """Return the array as a part of the file's memory map.

        Raises:
            DataError: the disk is full.
        """
        size = -(-array.nbytes // _ALIGNED) * _ALIGNED
        with self._lock:
            start, self._used = self._used, self._used + size
        if hasattr(os, "posix_fallocate"):  # a hole that cannot be filled later ends the program
            try:
                os.posix_fallocate(self._file.fileno(), start, array.nbytes)
            except OSError as error:
                raise DataError(
                    f"{self.folder}: {array.nbytes / 1e9:.2f} GB are needed for one more picture "
                    f"uncompressed, beside {start / 1e9:.2f} GB of others ({error.strerror}); "
                    "choose another disk (output.dir), or fewer pictures (data.max_cases)"
                ) from error
        stored = self._bytes[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        stored[...] = array
        return stored


def _size(volume: PreparedVolume) -> int:
    return sum(
        0 if array is None or isinstance(array, np.memmap) else array.nbytes
        for array in (volume.image, volume.labels, volume.instances)
    )


def _volume_size(volume: Volume) -> int:
    """Return the bytes that a volume keeps in memory.

    An array may be a view of a larger one, such as one channel of a file with several, which then
    stays in memory as a whole.
    """
    size = 0
    for array in (volume.image, volume.labels, volume.instances):
        if array is not None:
            owner: Any = array
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            size += len(owner.base) if isinstance(owner.base, bytes) else owner.nbytes
    return size
