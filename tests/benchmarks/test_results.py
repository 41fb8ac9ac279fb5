"""Runs are appended; nothing that is there changes, and no half file is ever left."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from benchmarks import results


def test_runs_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "suite.json"
    for number in range(3):
        results.append(path, {"number": number})
    assert results.read(path) == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert [p.name for p in path.parent.iterdir()] == ["suite.json"]


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    threads = [
        threading.Thread(target=results.append, args=(path, {"number": number}))
        for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run["number"] for run in results.read(path)) == list(range(12))


@pytest.mark.parametrize("content", ['{"rows": []}', "[1, 2]", "[{", ""])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "suite.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError):  # noqa: PT011  json's own for broken files
        results.append(path, {"number": 1})
    assert path.read_text(encoding="utf-8") == content


@pytest.mark.parametrize("run", [{"value": float("nan")}, {"value": object()}])
def test_what_cannot_be_written_changes_nothing(tmp_path: Path, run: dict[str, object]) -> None:
    path = tmp_path / "suite.json"
    results.append(path, {"number": 0})
    with pytest.raises((ValueError, TypeError)):
        results.append(path, run)
    assert json.loads(path.read_text(encoding="utf-8")) == [{"number": 0}]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "suite.json"
    results.append(path, {"number": 0})

    def fail(handle: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(results.os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        results.append(path, {"number": 1})
    assert results.read(path) == [{"number": 0}]
    assert [p.name for p in tmp_path.iterdir()] == ["suite.json"]


def test_a_run_in_progress_is_replaced_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    results.append(path, {"time": "1", "suite": "gpu", "rows": [1]})
    for rows in ([], [1], [1, 2]):
        results.update(path, {"time": "2", "suite": "gpu", "rows": rows})
    assert [run["rows"] for run in results.read(path)] == [[1], [1, 2]]
