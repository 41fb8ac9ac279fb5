"""Where features are kept: in memory, or in files that later runs find again.

A file holds one entry, is written whole under another name and renamed, and carries a checksum. Any
number of processes may share a folder: each holds a locked mark in it while it lives, which is how
another knows the half-written files of a dead one from those of a live one, and which entries are
in use.
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
"""Share of the machine's memory that features may take where the disk has no room."""

DISK_SHARE = 0.5
"""Share of the disk, of what is free and what features take already, that ``auto`` may use."""

ADVICE = (
    "name another disk with cache.dir, take fewer slices with data.slice_step, keep them in memory "
    "with cache.where=memory, or use cache.enabled=off"
)


class Store(Protocol):
    """Where features are kept, by the hash of what they depend on."""

    def get(self, key: str) -> Tensor | None:
        """Return the features (1, ...) of a key, or None where there are none; not to be changed.

        What is damaged counts as absent.
        """

    def put(self, key: str, features: Tensor) -> None:
        """Keep the features (1, ...) of a key.

        Raises:
            RunError: when there is no room for them.
        """

    def use(self, keys: Iterable[str]) -> set[str]:
        """Return those of the keys that are there; the run is going to read them."""


class MemoryStore:
    """Features in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def get(self, key: str) -> Tensor | None:
        """Return the features of a key, or None where there are none."""
        return self._kept.get(key)

    def put(self, key: str, features: Tensor) -> None:
        """Keep the features of a key."""
        self._kept[key] = features

    def use(self, keys: Iterable[str]) -> set[str]:
        """Return those of the keys that are there."""
        return set(keys) & self._kept.keys()


class DiskStore:
    """Features in files of a folder, memory-mapped when read.

    The checksum of an entry is compared when a run first reads it, so that reading it again in
    every step costs what the page cache costs.

    Raises:
        RunError: when the folder cannot be made or written.
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
        """Return the features of a key, or None where there are none or the file is damaged."""
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
        """Return those of the keys that have a file, and note the time of use."""
        with _exclusive(self.folder):
            return {key for key in keys if _touch(self._path(key))}

    def make_room(self, needed: int, share: float, limit: float) -> tuple[int, int]:
        """Remove what no live run uses, the longest unused first, until more bytes fit.

        Args:
            needed: bytes that will be written.
            share: of the disk's free bytes and those of all entries, what entries may take.
            limit: bytes that all entries may take.

        Returns:
            How many entries were removed, and how many bytes are still lacking. Where removing
            would not help, nothing is removed.
        """
        with _exclusive(self.folder):
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
            room = f"those of one more image need {needed} bytes and {free} bytes are free; "
        reason = f"features cannot be kept here: {error.strerror}"
        return RunError(f"{self.folder}: {reason}; {room}{ADVICE}")


def settle(
    store: Store, where: str, missing: int, total: int, max_bytes: float
) -> tuple[Store, str]:
    """Return the store that a run uses, and in words where it is.

    Args:
        store: what was opened for ``where``.
        where: ``"memory"``, ``"disk"``, or ``"auto"``: on the disk while all features take at most
            half of it, else in memory while they take at most a quarter of that.
        missing: bytes of features that ``store`` does not have yet.
        total: bytes of all features of the run.
        max_bytes: what all entries of a folder may take.

    Raises:
        RunError: when there is too little room.
    """
    if not isinstance(store, DiskStore):
        return store, "in memory"
    removed, lacking = store.make_room(missing, DISK_SHARE if where == "auto" else 1, max_bytes)
    if not lacking or not missing:
        note = f"; {removed} unused entries of other runs removed for them" if removed else ""
        return store, f"on disk, {store.folder}{note}"
    if where == "auto" and total <= MEMORY_SHARE * total_memory_bytes():
        return MemoryStore(), f"in memory: {store.folder} lacks {lacking / 1e9:.2f} GB for them"
    free = shutil.disk_usage(store.folder).free
    more = "use all of the disk with cache.where=disk, " if where == "auto" else ""
    raise RunError(
        f"{store.folder}: features need {missing / 1e9:.2f} GB more, which is {lacking / 1e9:.2f} "
        f"GB too much: {free / 1e9:.2f} GB are free, of which cache.where={where} and cache.max_gb "
        f"allow a part; {more}{ADVICE}"
    )


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes from joining, sweeping, using or evicting entries meanwhile."""
    with FileLock(folder / "lock"):
        yield


def _held(path: Path) -> FileLock | None:
    """Return a held lock on a file, or None where another store holds it.

    Any thread may release it: a store is finalized wherever the last reference to it ends.
    """
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def _sweep(folder: Path) -> None:
    """Remove the marks and half-written files of processes that are dead."""
    for mark in folder.glob("*.live"):
        if (lock := _held(mark)) is not None:
            _leave(mark, lock)
    for part in folder.glob("*.part"):
        if not (folder / f"{part.name.split('.')[-2]}.live").exists():
            part.unlink()


def _leave(mark: Path, lock: FileLock | None) -> None:
    """Release a mark and remove it, in this order: Windows removes no file that is open."""
    if lock is not None:
        lock.release()
    mark.unlink(missing_ok=True)


def _publish(part: Path, path: Path) -> bool:
    """Give a finished file its name; False where an equal file keeps it.

    Windows does not replace a file that a process has mapped. The name is the hash of everything
    that the features depend on, so the file that is there holds the same.
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
    """Remove an entry; False where it cannot be removed, as on Windows while it is mapped."""
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
