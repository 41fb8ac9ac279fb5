"""Make, open, compare and lock run directories."""

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
from samadapt.config.compose import from_yaml, to_dict, to_yaml
from samadapt.config.schema import Config
from samadapt.errors import ConfigError, UserError
from samadapt.system import atomic

MAY_MOVE = {"root", "on_error"}
"""Keys of ``data`` that a resumed run may change: the same files elsewhere."""
LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, getattr(errno, "EOPNOTSUPP", errno.ENOSYS)}
HOLDER = ".holder.json"
"""Who holds the lock; a file beside it, since Windows lets nobody read a locked one."""


def open_run_dir(config: Config) -> Path:
    """Make a new run directory, or open the one that is resumed; ``config.yaml`` is written.

    Raises:
        ConfigError: when the directory to resume does not exist, or was made otherwise.
    """
    if config.resume is not None:
        run_dir = Path(config.resume)
        if not (run_dir / "config.yaml").is_file():
            raise ConfigError(f"resume={run_dir}: expected a run directory with config.yaml")
        check_same_run(config, from_yaml(run_dir / "config.yaml"))
        return run_dir
    recipe = Path(config.recipe).stem or "custom"
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{config.peft.name}-{config.model.name}"
    parent = Path(config.output.dir) / recipe
    for attempt in range(1, 1000):
        run_dir = parent / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            run_dir.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"output.dir={config.output.dir}: cannot write: {error}") from error
        atomic.write_text(run_dir / "config.yaml", to_yaml(config))
        return run_dir
    raise ConfigError(f"{parent}: a thousand runs have this name; use another output.dir")


def check_same_run(config: Config, stored: Config) -> None:
    """Refuse to go on with a model, data, prompts or a seed that the checkpoints do not know.

    Raises:
        ConfigError: naming every such key.
    """
    asked, was = to_dict(config), to_dict(stored)
    alone = [key for key in ("seed", "folds", "privacy") if asked[key] != was[key]]
    groups = ["model", "peft", "data", "prompts"]
    if config.folds is not None:  # those that are done stay as they were
        alone += ["precision"] if asked["precision"] != was["precision"] else []
        groups += ["loss", "train", "eval"]
    changed = [f"{key}={asked[key]} (was {was[key]})" for key in alone]
    for group in groups:
        for key in sorted({*asked[group], *was[group]} - MAY_MOVE):
            new, old = asked[group].get(key), was[group].get(key)
            if new != old:
                changed.append(f"{group}.{key}={new} (was {old})")
    if changed:
        raise ConfigError(
            f"resume={config.resume}: its checkpoints do not fit {', '.join(changed)}; leave these "
            "out, or start a new run"
        )


@contextmanager
def kept_if_started(run_dir: Path, *, keep: bool) -> Iterator[None]:
    """Remove a new run directory again when the run is refused before it starts."""
    try:
        yield
    except UserError:
        if not keep:  # on Windows the lock stays until it is released
            shutil.rmtree(run_dir, ignore_errors=os.name == "nt")
        raise


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
