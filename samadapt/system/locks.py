"""Locks between processes, also of several machines: a file that one process holds at a time.

The system frees a lock if its process dies. Beside the file another one names the process, since
Windows does not let others read a file that is locked.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import stat
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from samadapt import console
from samadapt.errors import UserError
from samadapt.system import atomic

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, getattr(errno, "EOPNOTSUPP", errno.ENOSYS)}
"""Errors of file systems that have no locks."""


class HeldError(UserError):
    """Another process holds a lock; the message names the process."""


class NamedLock:
    """A lock that says who holds it.

    Args:
        path: the file of the lock.
        holder: the file that names the process.

    Attributes:
        works: whether the file system has locks, as far as it is known. If it has none, whoever
            asks for the lock gets it.
    """

    def __init__(self, path: Path, holder: Path) -> None:
        self._path, self._holder = path, holder
        self._lock: FileLock | None = None
        self._is_mine = False
        self.works = True

    def acquire(self, what: str, wait: float = 0.0) -> None:
        """Take the lock.

        Args:
            what: what the lock protects, for the messages.
            wait: seconds to wait for another process.

        Raises:
            HeldError: another process has it.
            WriteError: the files of the lock cannot be written.
        """
        try:
            self._lock = self._acquired(wait)
        except Timeout:
            raise HeldError(
                f"{what}: in use by {self.holder()}; wait until it ends, or stop it"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self.works = False
            console.log(f"warning: {what}: this file system has no locks; start no second run here")
        self._is_mine = True
        try:
            atomic.write_text(self._holder, json.dumps(_myself()))
        except BaseException:
            self.release()
            raise

    def _acquired(self, wait: float) -> FileLock:
        while True:
            atomic.append_text(self._path, "")
            before = self._found()
            if before is None:
                continue
            mode = stat.S_IMODE(before.st_mode)  # filelock would ignore the umask
            lock = FileLock(self._path, timeout=wait, mode=mode)
            lock.acquire()
            # Whoever held it may have removed the file in between; such a lock keeps nobody out.
            now = self._found()
            if now is not None and now.st_ino == before.st_ino:
                return lock
            lock.release()

    def _found(self) -> os.stat_result | None:
        """Return what the system knows of the file; None: it is removed."""
        with suppress(FileNotFoundError):
            return self._path.stat()
        return None

    def release(self, *, remove: bool = False) -> None:
        """Let the lock go, if this object holds it.

        Args:
            remove: also remove its file.
        """
        if not self._is_mine:
            return
        # The files go before the lock: afterwards they may be those of the next process.
        for path in (self._holder, *([self._path] if remove else ())):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()
        self._lock, self._is_mine = None, False

    def is_held(self) -> bool:
        """Return whether a process holds the lock now."""
        if not self._holder.is_file():
            return False
        try:
            with FileLock(self._path, timeout=0):
                return False  # its process died without removing the file
        except (Timeout, OSError):
            return True

    def holder(self) -> str:
        """Return the process that holds the lock, in words."""
        try:
            found = json.loads(self._holder.read_text(encoding="utf-8"))
            pid, host = int(found["pid"]), str(found["host"])
            command, since = str(found["command"]), str(found["since"])
        except (OSError, ValueError, TypeError, KeyError):
            return "another process"
        here = "" if host == platform.node() else f" on {host}"
        return f"process {pid}{here} ({command}, since {since})"


def _myself() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "command": " ".join(Path(part).name for part in sys.argv[:2]),
        "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
    }
