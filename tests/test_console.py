"""Whatever a terminal's encoding lacks is spelled or escaped; nothing fails for it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.table import Table

from samadapt import console
from samadapt.system.atomic import write_text

TEXT = "0.9 ± 0.1 · 3 mm² ┏━┓┃─│╹ … 大 \udcff end"


def stream(encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors, newline="")


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", "0.9 +/- 0.1 - 3 mm^2 +-+|-|| ... \\u5927 \\udcff end\n"),
        ("cp1252", "0.9 ± 0.1 · 3 mm² +-+|-|| … \\u5927 \\udcff end\n"),
        ("cp437", "0.9 ± 0.1 · 3 mm² +-+|─│| ... \\u5927 \\udcff end\n"),
        ("utf-8", TEXT.replace("\udcff", "\\udcff") + "\n"),
        ("shift_jis", "0.9 ± 0.1 - 3 mm^2 ┏━┓┃─│| … 大 \\udcff end\n"),
    ],
)
def test_every_encoding_gets_the_text(
    monkeypatch: pytest.MonkeyPatch, encoding: str, expected: str
) -> None:
    to = stream(encoding)
    monkeypatch.setattr(sys, "stdout", to)
    console.write(TEXT)
    assert to.buffer.getvalue().decode(encoding) == expected  # type: ignore[attr-defined]


def test_an_encoding_that_python_does_not_know() -> None:
    assert console.printable("±", "no-such") == "+/-"
    assert console.printable("±", None) == "±"


@pytest.mark.parametrize(("encoding", "box"), [("ascii", "+"), ("cp1252", "+"), ("utf-8", "┏")])
def test_boxes_are_of_the_encoding(
    monkeypatch: pytest.MonkeyPatch, encoding: str, box: str
) -> None:
    table = Table("score", title="Dice")
    table.add_row("0.91")
    to = stream(encoding)
    monkeypatch.setattr(sys, "stdout", to)
    drawn = console.to_text(table)
    assert box in drawn
    assert console.printable(drawn, encoding) == drawn


def test_no_terminal_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """``pythonw`` on Windows has no streams; a notebook's say no encoding."""
    monkeypatch.setattr(sys, "stdout", None)
    console.write("done")
    console.forgive(sys.stdout)
    assert console.to_text(Table("score"))


def test_a_closed_pipe_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        console.write("nobody reads this")


def test_other_writers_do_not_fail_either() -> None:
    to = stream("ascii")
    console.forgive(to)
    to.write("大")
    to.flush()
    assert to.buffer.getvalue() == b"\\u5927"  # type: ignore[attr-defined]


def pictures(folder: Path) -> Path:
    """Make a data set whose names no code page of Windows has all of."""
    y, x = np.mgrid[:64, :64]
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            disc = (y - 32) ** 2 + (x - 20 - 4 * i) ** 2 < 150
            Image.fromarray((disc * 255).astype("uint8")).save(folder / name / f"大é{i}.png")
    return folder


def command(encoding: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    variables = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    return subprocess.run(
        [sys.executable, "-m", "samadapt", *arguments],
        env=os.environ | variables,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252:strict"])
def test_check_tells_its_findings(tmp_path: Path, encoding: str) -> None:
    data = pictures(tmp_path / "data")
    done = command(encoding, "check", "data=folder", f"data.root={data}")
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout.decode(encoding.partition(":")[0])


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_run_ends_with_its_table(tmp_path: Path, encoding: str) -> None:
    data = pictures(tmp_path / "data")
    done = command(
        encoding,
        "finetune",
        "recipe=photos",
        "model=tiny",
        "peft.blocks=all",
        "train.steps=2",
        f"data.root={data}",
        f"output.dir={tmp_path / 'runs'}",
    )
    assert done.returncode == 0, done.stderr
    assert "zero-shot" in done.stdout.decode(encoding)
    (run,) = (tmp_path / "runs" / "photos").iterdir()
    assert (run / "eval" / "per_case.csv").read_text(encoding="utf-8").count("\n") > 1
    assert (run / "log.txt").read_text(encoding="utf-8")
    assert (run / "report.html").read_text(encoding="utf-8")


def test_names_that_are_not_utf8_reach_the_files(tmp_path: Path) -> None:
    written = write_text(tmp_path / "per_case.csv", "case\n\udcff0\n")
    assert written.read_text(encoding="utf-8") == "case\n\\udcff0\n"
