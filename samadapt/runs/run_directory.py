"""The run directory: make it, open it again to resume the run, and lock it while it is in use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from samadapt.adapters.record import RECORD, UNET_RECORD
from samadapt.config.compose import from_yaml, to_dict, to_yaml
from samadapt.config.schema import Config
from samadapt.errors import ConfigError, LostOthersError, UserError
from samadapt.runs.run_description import trained_name
from samadapt.system import atomic, processes
from samadapt.system.locks import HeldError, NamedLock

MAY_MOVE = {"root", "held_out", "on_error"}
"""Keys of ``data`` that a resumed run may change, since the same files may lie elsewhere."""

TRAINED = (("adapter", RECORD), ("baseline", UNET_RECORD))
"""The folders that a run writes its trained weights into, and a file that each of them has."""

LOCK = ".lock"

HOLDER = ".holder.json"
"""Names the process that holds the lock."""


def open_run_dir(config: Config) -> Path:
    """Make a new run directory with its ``config.yaml``, or open the one that is resumed.

    Of several processes the first one makes it, and all get its path.

    Raises:
        ConfigError: when the directory to resume does not exist, or holds a run of another
            configuration.
    """
    if config.resume is not None:
        run_dir = Path(config.resume)
        if not (run_dir / "config.yaml").is_file():
            raise ConfigError(f"resume={run_dir}: expected a run directory with config.yaml")
        check_same_run(config, from_yaml(run_dir / "config.yaml"))
        return run_dir
    words = [trained_name(config), *([] if config.baseline.name else [config.model.name])]
    made = None
    if processes.is_first():
        made = make_run_dir(config.output.dir, config.recipe, words, to_yaml(config))
    run_dir = Path(str(processes.from_first(made)))
    if not run_dir.is_dir():
        raise ConfigError(
            f"output.dir: the first process made {run_dir}, which is not a folder here; name one "
            "that all processes share"
        )
    return run_dir


def make_run_dir(output_dir: str, recipe: str, words: Sequence[str], configuration: str) -> Path:
    """Make a new run directory with its ``config.yaml``.

    Args:
        output_dir: the parent of all runs.
        recipe: name or path of the recipe, which has a folder of its own; may be empty.
        words: follow the date and time in the name of the directory.
        configuration: the content of ``config.yaml``.

    Raises:
        ConfigError: when it cannot be written.
    """
    stamp = "-".join([f"{datetime.now():%Y%m%d-%H%M%S}", *words])
    parent = Path(output_dir) / (Path(recipe).stem or "custom")
    for attempt in range(1, 1000):
        run_dir = parent / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            # mkdir fails if the directory exists, so runs of the same second get different ones.
            run_dir.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"output.dir={output_dir}: cannot write: {error}") from error
        atomic.write_text(run_dir / "config.yaml", configuration)
        return run_dir
    raise ConfigError(f"{parent}: a thousand runs have this name; use another output.dir")


def has_trained_weights(run_dir: Path) -> bool:
    """Whether a run has written what it trained, an adapter or a baseline, which it does last."""
    return trained_folder(run_dir) is not None


def trained_folder(run_dir: Path) -> Path | None:
    """Return the folder of what a run has trained; None if it has written none."""
    for folder, record in TRAINED:
        if (run_dir / folder / record).is_file():
            return run_dir / folder
    return None


def check_same_run(config: Config, stored: Config) -> None:
    """Refuse to resume a run with another model, method, data, prompts, seed or first adapter.

    Args:
        config: the configuration that is asked for.
        stored: the configuration in the run directory.

    Raises:
        ConfigError: naming every key that differs.
    """
    asked, was = to_dict(config), to_dict(stored)
    alone = [key for key in ("seed", "folds", "privacy", "init") if asked[key] != was[key]]
    if asked["init_sha256"] not in (None, was["init_sha256"]):
        alone.append("init_sha256")
    groups = ["model", "peft", "data", "prompts", "baseline"]
    if config.folds is not None:  # finished folds are not trained again, so all keys must agree
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
def removed_if_refused(run_dir: Path, *, keep: bool) -> Iterator[None]:
    """Remove the run directory if the block refuses the run with a ``UserError``.

    It is also removed if another process refuses the run.

    Args:
        run_dir: the run directory.
        keep: whether the directory was there before, and must stay.
    """
    try:
        yield
    except (UserError, LostOthersError):
        if not keep and processes.is_first():
            # Windows does not remove the lock while it is held; ``locked`` does so later.
            shutil.rmtree(run_dir, ignore_errors=os.name == "nt")
        raise


class RunLockedError(UserError):
    """Another process uses the run directory; the message names the process."""


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Lock a run directory while the block runs; the system frees the lock if the process dies.

    Of several processes the first one holds the lock for all.

    If ``config.yaml`` is gone when the block ends, the run was refused, and what is left of its
    directory is removed.

    Raises:
        RunLockedError: naming the process that holds it.
    """
    if not processes.is_first():
        yield
        return
    lock = _lock_of(run_dir)
    try:
        lock.acquire(str(run_dir))
    except HeldError as error:
        raise RunLockedError(str(error)) from None
    try:
        yield
    finally:
        lock.release()
        if not (run_dir / "config.yaml").exists():
            shutil.rmtree(run_dir, ignore_errors=True)


def is_locked(run_dir: Path) -> bool:
    """Return whether a process works in a run directory now."""
    return _lock_of(run_dir).is_held()


def _lock_of(run_dir: Path) -> NamedLock:
    return NamedLock(run_dir / LOCK, run_dir / HOLDER)
