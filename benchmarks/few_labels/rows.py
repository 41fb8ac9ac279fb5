"""The results: a file with one JSON object a line. Rows are appended and never changed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks import results

RESULTS = results.FOLDER / "few_labels.jsonl"


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the rows; a line that a crash cut short is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def append(row: dict[str, Any], path: Path = RESULTS) -> None:
    """Add a row. Several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(row, allow_nan=False, ensure_ascii=False)
    with lock(str(path.resolve())), path.open("a+b") as stream:
        # A line that was cut short by a crash is ended, or it would spoil this row as well.
        stream.seek(0, 2)
        if stream.tell():
            stream.seek(-1, 2)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write(text.encode("utf-8") + b"\n")


def lock(name: str, timeout: float = -1) -> FileLock:
    """Return a lock of this machine by name; ``timeout=0`` raises if another process holds it."""
    safe = "".join(c if c.isalnum() else "_" for c in name)[-200:]
    return FileLock(Path(tempfile.gettempdir()) / f"few_labels_{safe}.lock", timeout=timeout)
