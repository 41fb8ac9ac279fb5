"""Write files and folders completely or not at all.

New content is written to a hidden temporary file or folder beside the target, flushed to the disk,
and then renamed to the target. So no reader sees a partial file, even after a crash or on a full
disk. All files and folders get the permissions that the umask of the process gives, even where the
library that writes them chooses others.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from samadapt.errors import RunError, SamadaptError

PREFIX = ".samadapt-"
"""Prefix of temporary names; ``remove_leftovers`` deletes what a killed process left behind."""

_LONGEST = 40
"""Characters of the target's name in a temporary name; at 4 bytes each, it fits in 255 bytes."""

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_PROBE_BYTES = 2**20
_ATTEMPTS = 20
"""Attempts to rename on Windows, where a virus scanner may hold the target open for a moment."""


class WriteError(RunError, OSError):
    """A file or folder cannot be written; the message names it and the reason."""

    def __str__(self) -> str:
        """Return only the message, without the number of the OSError."""
        return str(self.args[0])


class DiskFullError(WriteError):
    """The disk or the user's quota is full.

    Attributes:
        folder: the folder of the file.
        needed: bytes that the file or folder needs; if that is not known, the bytes written so far.
        free: bytes that are free in the folder.
    """

    def __init__(self, path: Path, needed: int, free: int, *, exact: bool = True) -> None:
        """Build the message from what ``path`` needs and what is free."""
        least = "" if exact else "more than "
        super().__init__(
            f"{path.parent}: the disk is full: {path.name} needs {least}{needed} bytes "
            f"({needed / 2**20:.1f} MiB) and {free} bytes ({free / 2**20:.1f} MiB) are free; "
            "delete what you do not need, or choose a folder on another disk"
        )
        self.folder, self.needed, self.free = path.parent, needed, free


def write_text(path: Path, text: str) -> Path:
    r"""Write text as UTF-8 with ``\n`` line ends and replace an older file.

    Characters that UTF-8 cannot encode (bytes of a file name in another encoding) are escaped.

    Raises:
        WriteError: see ``write_bytes``.
    """
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> Path:
    """Write bytes and replace an older file; missing folders are made.

    Raises:
        DiskFullError: the message names the folder, the bytes needed and the bytes free.
        WriteError: the file cannot be written for another reason.
    """
    with file(path, len(content)) as part, part.open("wb") as stream:
        stream.write(content)
    return path


@contextmanager
def file(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary file, which replaces ``path`` when the block ends.

    The temporary file has the same suffix and is empty. If the block raises, the temporary file is
    removed and an older ``path`` is not changed.

    Args:
        path: the target; missing folders are made.
        needed: bytes that the file will have, for the message about a full disk.

    Raises:
        DiskFullError: the message names the folder, the bytes needed and the bytes free.
        WriteError: the file cannot be written for another reason.
    """
    part = _temporary(path)
    with _removed_on_error(path, part, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = part.stat().st_mode
        yield part
        _finish(part, mode)
        _rename(part, path)
        sync_folder(path.parent)


@contextmanager
def folder(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield an empty temporary folder, which replaces ``path`` when the block ends.

    If the block raises, or if the new folder cannot be renamed, an older ``path`` is not changed.
    The older folder is deleted only after the new one is in its place.

    Args:
        path: the target; missing parents are made.
        needed: bytes that the folder will have, for the message about a full disk.

    Raises:
        DiskFullError: the message names the folder, the bytes needed and the bytes free.
        WriteError: the folder cannot be written for another reason.
    """
    part = _temporary(path)
    with _removed_on_error(path, part, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)
        _finish_files(part)
        _swap(part, path)


def is_full(error: BaseException) -> bool:
    """Return whether an error of the system says that the disk or the user's quota is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def append_text(path: Path, text: str) -> None:
    """Append text to a file that grows line by line, such as a log.

    Raises:
        DiskFullError: the message names the folder, the bytes needed and the bytes free.
        WriteError: the file cannot be written for another reason.
    """
    content = text.encode("utf-8", "backslashreplace")
    try:
        with path.open("ab") as stream:
            stream.write(content)
    except OSError as error:
        if is_full(error):
            free = shutil.disk_usage(path.parent).free
            raise DiskFullError(path, len(content), free) from error
        raise WriteError(f"{path}: cannot be written: {error.strerror}") from error


def explain(error: BaseException) -> str | None:
    """Return a message about a full disk that no caller explained; None for any other error."""
    if not isinstance(error, OSError) or not is_full(error):
        return None
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    where = Path(tempfile.gettempdir()) if path is None else path.parent
    with suppress(OSError):
        free = shutil.disk_usage(where).free
        what = "a temporary file" if path is None else path.name
        return (
            f"{where}: the disk is full: {what} cannot be written; {free} bytes "
            f"({free / 2**20:.1f} MiB) are free; delete what you do not need"
        )
    return f"{where}: the disk is full"


def remove_leftovers(directory: Path, names: Collection[str] | None = None) -> None:
    """Delete the temporary files and folders that killed processes left in a folder.

    No other process may be writing these targets.

    Args:
        directory: the folder.
        names: delete only what was to become a file or folder whose name begins with one of these.
            (A name of more than 40 characters is not recognized, and its leftover stays.)
    """
    for left in directory.glob(f"{PREFIX}*"):
        _, _, target = left.name.removeprefix(PREFIX).partition("-")
        if names is None or target.startswith(tuple(names)):
            _remove(left)


def sync_folder(directory: Path) -> None:
    """Flush the entries of a folder to the disk, where the platform supports it."""
    if os.name == "nt":
        return
    with suppress(OSError):  # some network file systems refuse it; the rename is still atomic
        number = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{PREFIX}{secrets.token_hex(4)}-{path.name[-_LONGEST:]}")


@contextmanager
def _removed_on_error(path: Path, part: Path, needed: int | None) -> Iterator[None]:
    """Remove ``part`` after an error, and explain the error if it comes from writing."""
    try:
        yield
    except BaseException as error:
        written, is_full = _size(part), _is_full(error, path.parent)
        _remove(part)
        if is_full:
            free = shutil.disk_usage(path.parent).free
            exact = needed is not None and needed >= written
            most = max(needed or 0, written)
            raise DiskFullError(path, most, free, exact=exact) from error
        if isinstance(error, OSError) and not isinstance(error, SamadaptError):
            ours = {str(name) for name in (part, path, path.parent)}
            if str(error.filename) in ours or str(part) in str(error.filename):
                raise WriteError(f"{path}: cannot be written: {error.strerror}") from error
        raise


def _is_full(error: BaseException, directory: Path) -> bool:
    """Return whether an error comes from a full disk.

    Libraries in C raise errors without a number, so a probe file is written to find out.
    """
    if isinstance(error, SamadaptError) or not isinstance(error, Exception):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    probe = directory / f"{PREFIX}{secrets.token_hex(4)}-probe"
    try:
        with probe.open("wb") as stream:
            stream.write(bytes(_PROBE_BYTES))
    except OSError as failure:
        return failure.errno in _FULL
    finally:
        probe.unlink(missing_ok=True)
    return False


def _size(part: Path) -> int:
    with suppress(OSError):
        if part.is_dir():
            return sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        return part.stat().st_size
    return 0


def _remove(part: Path) -> None:
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part, ignore_errors=True)
    else:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _finish(part: Path, mode: int) -> None:
    """Set the permissions of a file and flush it to the disk."""
    if os.name != "nt":  # on Windows the bits only mean read-only or not
        part.chmod(mode & 0o777)
    with part.open("rb+") as stream:
        os.fsync(stream.fileno())


def _finish_files(part: Path) -> None:
    """Set the permissions of everything in a folder to those of new files, and flush it."""
    sample = part / f"{PREFIX}mode"
    os.close(os.open(sample, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    file_mode, folder_mode = sample.stat().st_mode, part.stat().st_mode
    sample.unlink()
    for path in sorted(part.rglob("*")):
        if path.is_symlink():
            continue
        if path.is_dir():
            path.chmod(folder_mode & 0o777)
            sync_folder(path)
        else:
            _finish(path, file_mode)
    sync_folder(part)


def _swap(part: Path, path: Path) -> None:
    """Replace the old folder by the new one; put the old one back if that fails."""
    old = _temporary(path)
    there = path.exists()
    if there:
        _rename(path, old)
    try:
        _rename(part, path)
    except BaseException:
        if there:
            _rename(old, path)
        raise
    sync_folder(path.parent)
    if there:
        _remove(old)


def _rename(source: Path, target: Path) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            os.replace(source, target)  # noqa: PTH105  one name for files and folders
            return
        except PermissionError:
            if os.name != "nt" or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.05)
