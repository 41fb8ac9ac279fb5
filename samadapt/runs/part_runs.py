"""Runs that are parts of a larger one: folds of a cross-validation, points of a learning curve.

Each part is a run like any other, in a directory of its own inside the directory of the whole. A
stopped whole goes on with the parts that are missing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from samadapt import console
from samadapt.config.compose import to_yaml
from samadapt.config.schema import Config
from samadapt.errors import ConfigError, LostOthersError, UserError
from samadapt.runs.run_directory import has_trained_weights
from samadapt.system import atomic, processes
from samadapt.system.interrupt import InterruptedRunError

SUMMARY = Path("eval") / "summary.json"


def is_finished(run_dir: Path) -> bool:
    """Whether a part has its scores and, if it trains anything, its weights, written last."""
    if not (run_dir / SUMMARY).is_file():
        return False
    trains_nothing = read_summary(run_dir)["adapted"] is None
    return trains_nothing or has_trained_weights(run_dir)


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Return the content of a run's ``eval/summary.json``."""
    summary: dict[str, Any] = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
    return summary


def prepare_part(config: Config, run_dir: Path) -> Config:
    """Make the run directory of a part, or find it stopped, and return its configuration.

    Args:
        config: the configuration of the part, without ``resume``.
        run_dir: its directory; the one around it exists.

    Raises:
        ConfigError: a budget of memory is given, which each part would meet in another way.
    """
    if config.memory is not None:
        raise ConfigError(
            f"memory={config.memory} is for finetune and plan: run `samadapt plan` with it, and "
            "give the keys that it chooses here"
        )
    if (run_dir / "checkpoints" / "LATEST").is_file():
        return replace(config, resume=str(run_dir))
    if run_dir.exists():  # stopped before its first checkpoint, so there is nothing to resume
        shutil.rmtree(run_dir)
    run_dir.mkdir()
    atomic.write_text(run_dir / "config.yaml", to_yaml(config))
    return config


@contextmanager
def part_of(parent: Path, parts: Sequence[Path], command: str) -> Iterator[None]:
    """Run a part; if it is stopped or refused, speak of the whole.

    Args:
        parent: directory of the whole. It is removed if the first part is refused.
        parts: the directories of all parts.
        command: the command that goes on with the whole, for the message.
    """
    try:
        yield
    except InterruptedRunError as error:
        # The message names the directory to resume: the whole, not the part.
        raise InterruptedRunError(parent, error.step, error.number, command) from error
    except KeyboardInterrupt:
        console.log(f"go on with what is missing: samadapt {command} resume={parent}")
        raise
    except (UserError, LostOthersError):
        # Nothing is there if the first part was refused before anything was trained.
        if processes.is_first() and not any(part.exists() for part in parts):
            # Windows cannot remove a held lock; `locked` removes what is left at its end.
            shutil.rmtree(parent, ignore_errors=os.name == "nt")
        raise
