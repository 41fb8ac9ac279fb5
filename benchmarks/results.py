"""Result files: each is a list of runs. Runs are appended and never changed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

FOLDER = Path(__file__).parent / "results"


def read(path: Path) -> list[dict[str, Any]]:
    """Return the runs in a file; none if there is no file.

    Raises:
        ValueError: the file holds something else than a list of runs.
    """
    if not path.exists():
        return []
    runs = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise ValueError(f"{path} must hold a list of runs; move it away")
    return runs


def append(path: Path, run: dict[str, Any]) -> None:
    """Add a run: write a new file beside the old one, then replace the old one.

    Raises:
        ValueError: see ``read``; the file is not changed.
    """
    _change(path, lambda runs: [*runs, run])


def update(path: Path, run: dict[str, Any]) -> None:
    """Add a run that is being measured, or replace it by itself with more rows.

    Args:
        path: the file.
        run: the run; ``time`` and ``suite`` say which one it is.

    Raises:
        ValueError: see ``read``; the file is not changed.
    """

    def changed(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        same = bool(runs) and all(runs[-1].get(key) == run[key] for key in ("time", "suite"))
        return [*(runs[:-1] if same else runs), run]

    _change(path, changed)


def _change(path: Path, changed: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(
        Path(tempfile.gettempdir()) / f"{path.resolve().as_posix().replace('/', '_')}.lock"
    ):
        text = json.dumps(changed(read(path)), indent=1, allow_nan=False) + "\n"
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(part).chmod(0o644)
            Path(part).replace(path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
