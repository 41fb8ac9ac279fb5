"""One process at a time in a run directory; the second is told which."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from samadapt.errors import UserError
from samadapt.runs.run_directory import HOLDER, LOCK, RunLockedError, locked

HOLD = """
import sys
from pathlib import Path
from samadapt.runs.run_directory import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("", encoding="utf-8")
    return folder


@pytest.fixture
def holder(run_dir):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_the_first_one_named(run_dir, holder):
    with pytest.raises(RunLockedError) as caught, locked(run_dir):
        pass
    assert f"{run_dir}: in use by process {holder.pid} " in str(caught.value)
    assert isinstance(caught.value, UserError)
    assert sorted(path.name for path in run_dir.iterdir()) == sorted([HOLDER, LOCK, "config.yaml"])


def test_a_killed_holder_leaves_it_free(run_dir, holder):
    holder.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    holder.communicate()
    with locked(run_dir):
        assert str(os.getpid()) in (run_dir / HOLDER).read_text(encoding="utf-8")
    assert not (run_dir / HOLDER).exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pid": "x"}', "\0"])
def test_a_strange_note_of_the_holder_is_no_harm(run_dir, holder, content):
    (run_dir / HOLDER).write_text(content, encoding="utf-8")
    with pytest.raises(RunLockedError, match="in use by another process"), locked(run_dir):
        pass


def test_a_refused_run_leaves_no_folder(run_dir):
    with locked(run_dir):
        (run_dir / "config.yaml").unlink()
    assert not run_dir.exists()


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002], ids=oct)
def test_umask(run_dir, umask):
    before = os.umask(umask)
    try:
        with locked(run_dir):
            for name in (LOCK, HOLDER):
                assert (run_dir / name).stat().st_mode & 0o777 == 0o666 & ~umask
    finally:
        os.umask(before)
