"""Locks between processes: who holds one, and what happens where there are none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samadapt.system import locks
from samadapt.system.locks import HeldError, NamedLock

COUNTS = """
import sys
from pathlib import Path
from samadapt.system.locks import NamedLock

folder = Path(sys.argv[1])
for _ in range(40):
    lock = NamedLock(folder / "lock", folder / "holder")
    lock.acquire("the counter", wait=60)
    number = int((folder / "counter").read_text(encoding="utf-8"))
    (folder / "counter").write_text(str(number + 1), encoding="utf-8")
    lock.release(remove=True)
"""


@pytest.fixture
def lock(tmp_path) -> NamedLock:
    return NamedLock(tmp_path / "lock", tmp_path / "holder")


def test_a_held_lock_names_its_process_and_can_be_waited_for(lock, tmp_path) -> None:
    other = NamedLock(tmp_path / "lock", tmp_path / "holder")
    assert not other.is_held()
    lock.acquire("the folder")
    assert other.is_held()
    before = time.monotonic()
    with pytest.raises(HeldError, match=f"the folder: in use by process {os.getpid()} "):
        other.acquire("the folder", wait=0.2)
    assert time.monotonic() - before >= 0.2
    other.release(remove=True)  # it is not its own
    assert lock.is_held()
    lock.release()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    other.acquire("the folder")
    other.release(remove=True)
    assert not list(tmp_path.iterdir())


def test_a_lock_whose_file_is_removed_keeps_others_out(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0", encoding="utf-8")
    started = [subprocess.Popen([sys.executable, "-c", COUNTS, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    assert (tmp_path / "counter").read_text(encoding="utf-8") == "80"


def test_without_locks_there_is_a_warning(lock, monkeypatch, capsys) -> None:
    def refuse(self) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(locks.FileLock, "acquire", refuse)
    lock.acquire("the folder")
    assert not lock.works
    assert "the folder: this file system has no locks" in capsys.readouterr().err
    lock.release()


def test_a_lock_that_cannot_be_written_is_one_message(tmp_path) -> None:
    lock = NamedLock(tmp_path / "nowhere" / "lock", tmp_path / "nowhere" / "holder")
    with pytest.raises(OSError, match="lock: cannot be written"):
        lock.acquire("the folder")
