"""Files that take forever: a finding after the time limit, and signals that end at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from samadapt.data.formats.shared.time_limit import TookTooLongError, each, within_limit
from samadapt.system.limits import MAX_SECONDS, set_limits

SCRIPT = """
import sys, time
from pathlib import Path
from samadapt.data.formats import folder
from samadapt.cli import main

def stuck(path, *others):
    Path(sys.argv[1]).touch()
    while True:
        STEP

folder.load_picture = stuck
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(autouse=True)
def _restore_limits() -> object:
    yield
    set_limits(max_seconds=MAX_SECONDS)


def test_results_come_in_order() -> None:
    def slowly(item: int) -> int:
        time.sleep(0.002 * (20 - item))
        return item * item

    assert list(each(slowly, range(20), 4)) == [item * item for item in range(20)]
    assert list(each(slowly, [], 4)) == []


def test_an_error_is_raised_where_the_result_is_asked_for() -> None:
    def picky(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    results = each(picky, range(5), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_a_stuck_item_costs_no_other() -> None:
    set_limits(max_seconds=0.3)
    release = threading.Event()

    def read(item: int) -> int:
        if item in (1, 2, 3):
            release.wait(20)
        return item

    began = time.monotonic()
    results = list(each(read, range(8), 2))
    release.set()
    assert time.monotonic() - began < 10
    late = [index for index, r in enumerate(results) if isinstance(r, TookTooLongError)]
    assert late == [1, 2, 3]
    assert [r for r in results if isinstance(r, int)] == [0, 4, 5, 6, 7]


def test_one_file_within_the_limit() -> None:
    set_limits(max_seconds=0.2)
    assert within_limit(str, 5) == "5"
    with pytest.raises(TookTooLongError, match=r"0\.2 s"):
        within_limit(lambda event: event.wait(5), threading.Event())


@pytest.mark.usefixtures("heard_signals")
@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", ["time.sleep(1000)", "pass"])
def test_a_signal_ends_the_program_while_a_file_is_stuck(
    tmp_path: Path, make_folder: object, number: signal.Signals, step: str
) -> None:
    root, begun = make_folder(), tmp_path / "begun"  # type: ignore[operator]
    arguments = ["check", "data=folder", f"data.root={root}"]
    code = SCRIPT.replace("STEP", step)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(begun), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        deadline = time.monotonic() + 60
        while not begun.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(number)
        asked = time.monotonic()
        _, said = process.communicate(timeout=20)
        assert time.monotonic() - asked < 5  # a second or two on a quiet machine
        assert process.returncode >= 128, said
        assert "Traceback" not in said
    finally:
        process.kill()


def test_a_finding_names_the_file_that_took_too_long(
    make_folder: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samadapt.data.checks.survey import survey
    from samadapt.data.formats.folder import load_picture

    root = make_folder()  # type: ignore[operator]
    release = threading.Event()

    def read(path: Path, *others: object) -> object:
        if path.name == "p3.png":
            release.wait(20)
        return load_picture(path, *others)  # type: ignore[arg-type]

    monkeypatch.setattr("samadapt.data.formats.folder.load_picture", read)
    set_limits(max_seconds=1)
    found = survey("folder", root)
    release.set()
    late = [f for f in found.findings if f.severity == "error"]
    assert [(f.code, Path(f.file).name) for f in late] == [("time_limit", "p3.png")]
    assert "data.max_seconds" in late[0].fix
    assert found.left_out == ["p3"]
