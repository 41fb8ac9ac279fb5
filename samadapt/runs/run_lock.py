"""One process at a time works in a run directory."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from samadapt import console
from samadapt.errors import UserError
from samadapt.system import atomic

LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, getattr(errno, "EOPNOTSUPP", errno.ENOSYS)}
HOLDER = ".holder.json"
"""Who holds the lock; a file beside it, since Windows lets nobody read a locked one."""


class RunLockedError(UserError):
    """Another process works in the run directory; the message names it."""


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold a run directory while the block runs; the system frees it when the process dies.

    A directory whose ``config.yaml`` is gone when the block ends is removed: the run was refused.

    Raises:
        RunLockedError: naming the process that holds it.
    """
    path = run_dir / LOCK
    path.touch(exist_ok=True)
    mode = stat.S_IMODE(path.stat().st_mode)  # as the umask asks; filelock has its own idea
    lock = FileLock(path, timeout=0, mode=mode)
    try:
        lock.acquire()
    except Timeout:
        raise RunLockedError(
            f"{run_dir}: in use by {_holder(run_dir / HOLDER)}; wait until it ends, or stop it"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        console.log(f"warning: {run_dir}: this file system has no locks; start no second run here")
    try:
        atomic.write_text(run_dir / HOLDER, json.dumps(_myself()))
        yield
    finally:
        with suppress(OSError):
            (run_dir / HOLDER).unlink(missing_ok=True)
        lock.release()
        if not (run_dir / "config.yaml").exists():
            shutil.rmtree(run_dir, ignore_errors=True)


def _myself() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "command": " ".join(Path(part).name for part in sys.argv[:2]),
        "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
    }


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        pid, host = int(found["pid"]), str(found["host"])
        command, since = str(found["command"]), str(found["since"])
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
    here = "" if host == platform.node() else f" on {host}"
    return f"process {pid}{here} ({command}, since {since})"
