"""Keep the output of the frozen blocks (``features.py``) in memory, or in files for later runs.

A file holds the features of one image and a checksum. It is written under another name and renamed
when it is complete. Any number of processes may share a folder. Each process holds a locked file
``<id>.live`` in it. This shows the others which half-written files belong to a dead process, and
which features are in use.
"""

from __future__ import annotations

import os
import shutil
import uuid
import weakref
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from samadapt.errors import RunError
from samadapt.system import atomic
from samadapt.system.machine import total_memory_bytes

MEMORY_SHARE = 0.25
"""Share of the machine's memory that features may use if the disk has no room."""

DISK_SHARE = 0.5
"""Share of the disk that ``auto`` may use, counting free space and existing features."""

ADVICE = (
    "name another disk with cache.dir, take fewer slices with data.slice_step, keep them in memory "
    "with cache.where=memory, or use cache.enabled=off"
)


class Store(Protocol):
    """Keeps features by key, which is a hash of everything that they depend on."""

    def get(self, key: str) -> Tensor | None:
        """Return the features (1, ...) of a key, or None. The caller must not change them.

        Damaged features count as missing.
        """

    def put(self, key: str, features: Tensor) -> None:
        """Keep the features (1, ...) of a key.

        Raises:
            RunError: when there is no room.
        """

    def use(self, keys: Iterable[str]) -> set[str]:
        """Return the keys that the store has, and mark them as used by this run."""


class MemoryStore:
    """Features in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def get(self, key: str) -> Tensor | None:
        """Return the features of a key, or None."""
        return self._kept.get(key)

    def put(self, key: str, features: Tensor) -> None:
        """Keep the features of a key."""
        self._kept[key] = features

    def use(self, keys: Iterable[str]) -> set[str]:
        """Return the keys that the store has."""
        return set(keys) & self._kept.keys()


class DiskStore:
    """Features in files of a folder, memory-mapped when they are read.

    The checksum is compared only when a run reads a file for the first time. Reading it again in a
    later step then costs no more than the page cache.

    Raises:
        RunError: when the folder cannot be created or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked: set[str] = set()
        self._name = uuid.uuid4().hex
        mark = folder / f"{self._name}.live"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _exclusive(folder):
                self._mark = _held(mark)
                _sweep(folder)
        except OSError as error:
            raise self._failed(error) from error
        weakref.finalize(self, _leave, mark, self._mark)

    def get(self, key: str) -> Tensor | None:
        """Return the features of a key, or None if there are none or the file is damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path(key), framework="pt") as file:
                features: Tensor = file.get_tensor("features")
                recorded = (file.metadata() or {}).get("crc32")
        except (SafetensorError, OSError):
            return None
        if key not in self._checked:
            if recorded != _checksum(key, features):
                return None
            self._checked.add(key)
        return features

    def put(self, key: str, features: Tensor) -> None:
        """Write the features of a key.

        Raises:
            RunError: naming the folder, when the disk is full or cannot be written.
        """
        from safetensors.torch import save

        features = features.contiguous()
        content = save({"features": features}, {"crc32": _checksum(key, features)})
        part = self.folder / f"{key}.{self._name}.part"
        try:
            part.write_bytes(content)
            published = _publish(part, self._path(key))
        except OSError as error:
            part.unlink(missing_ok=True)
            raise self._failed(error, len(content)) from error
        if published:
            self._checked.add(key)

    def use(self, keys: Iterable[str]) -> set[str]:
        """Return the keys that have a file, and set the time of their last use to now."""
        with _exclusive(self.folder):
            return {key for key in keys if _touch(self._path(key))}

    def make_room(self, needed: int, share: float, limit: float) -> tuple[int, int]:
        """Remove entries that no live run uses, the least recently used first, to make room.

        Args:
            needed: number of bytes that will be written.
            share: the share of (free bytes + bytes of all entries) that entries may use.
            limit: number of bytes that all entries may use.

        Returns:
            The number of removed entries, and the number of bytes still lacking. Nothing is removed
            if removing everything unused would not be enough.
        """
        with _exclusive(self.folder):
            # A run sets the time of all entries it uses, so older entries than the oldest live run
            # belong to no live run.
            since = min(mark.stat().st_mtime_ns for mark in self.folder.glob("*.live"))
            files = ((path.stat(), path) for path in self.folder.glob("*.safetensors"))
            entries = sorted((stat.st_mtime_ns, stat.st_size, path) for stat, path in files)
            stored = sum(size for _, size, _ in entries)
            free = shutil.disk_usage(self.folder).free
            over = stored + needed - int(min(share * (free + stored), limit))
            unused = [entry for entry in entries if entry[0] < since]
            removable = sum(size for _, size, _ in unused)
            if over > removable:
                return 0, over - removable
            removed = 0
            for _, size, path in unused:
                if over <= 0:
                    break
                if _removed(path):
                    over, removed = over - size, removed + 1
            return removed, max(0, over)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _failed(self, error: OSError, needed: int = 0) -> RunError:
        room = ""
        if atomic.is_full(error):
            free = shutil.disk_usage(self.folder).free
            room = (
                f"the features of one more image need {needed} bytes, and {free} bytes are free; "
            )
        reason = f"features cannot be written here: {error.strerror}"
        return RunError(f"{self.folder}: {reason}; {room}{ADVICE}")


def settle(
    store: Store, where: str, missing: int, total: int, max_bytes: float
) -> tuple[Store, str]:
    """Return the store that a run uses, and a description of its place.

    Args:
        store: the store that was opened for ``where``.
        where: ``"memory"``, ``"disk"`` or ``"auto"``. ``"auto"`` uses the disk if all features take
            at most half of it, else memory if they take at most a quarter of that.
        missing: bytes of the features that ``store`` does not have yet.
        total: bytes of all features of the run.
        max_bytes: number of bytes that all entries of a folder may use.

    Raises:
        RunError: when there is too little room.
    """
    if not isinstance(store, DiskStore):
        return store, "in memory"
    removed, lacking = store.make_room(missing, DISK_SHARE if where == "auto" else 1, max_bytes)
    if not lacking or not missing:
        note = f"; {removed} unused entries of other runs were removed" if removed else ""
        return store, f"on disk, {store.folder}{note}"
    if where == "auto" and total <= MEMORY_SHARE * total_memory_bytes():
        return MemoryStore(), f"in memory: {store.folder} lacks {lacking / 1e9:.2f} GB"
    free = shutil.disk_usage(store.folder).free
    more = "use all of the disk with cache.where=disk, " if where == "auto" else ""
    raise RunError(
        f"{store.folder}: features need {missing / 1e9:.2f} GB more, which is {lacking / 1e9:.2f} "
        f"GB too much: {free / 1e9:.2f} GB are free, and cache.where={where} and cache.max_gb "
        f"allow a part of them; {more}{ADVICE}"
    )


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes from changing the folder while the context is open."""
    with FileLock(folder / "lock"):
        yield


def _held(path: Path) -> FileLock | None:
    """Return a held lock on a file, or None if another store holds it.

    Any thread may release it, because a store is finalized where its last reference ends.
    """
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def _sweep(folder: Path) -> None:
    """Remove the live files and half-written files of dead processes."""
    for mark in folder.glob("*.live"):
        if (lock := _held(mark)) is not None:
            _leave(mark, lock)
    for part in folder.glob("*.part"):
        if not (folder / f"{part.name.split('.')[-2]}.live").exists():
            part.unlink()


def _leave(mark: Path, lock: FileLock | None) -> None:
    """Release a live file, then remove it. Windows cannot remove a file that is open."""
    if lock is not None:
        lock.release()
    mark.unlink(missing_ok=True)


def _publish(part: Path, path: Path) -> bool:
    """Rename a finished file to its final name; return False if an equal file is there.

    Windows does not replace a file that a process has mapped. The name is a hash of everything that
    the features depend on, so the existing file holds the same features.
    """
    try:
        part.replace(path)
    except PermissionError:
        if not path.is_file():
            raise
        part.unlink()
        return False
    return True


def _removed(path: Path) -> bool:
    """Remove an entry; return False if that is impossible, as on Windows while it is mapped."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        return False
    return True


def _touch(path: Path) -> bool:
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _checksum(key: str, features: Tensor) -> str:
    raw = features.detach().contiguous().flatten().view(torch.uint8).numpy()
    return f"{zlib.crc32(raw.data, zlib.crc32(key.encode())):08x}"
