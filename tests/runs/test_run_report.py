"""Pages made from the files of finished runs: one run anew, several beside each other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.table import Table

from samadapt.cli import main
from samadapt.reports.html import Page, ShownCase, write_html
from samadapt.reports.old_page import read_page
from samadapt.reports.strips import Strip


@pytest.fixture
def two_runs(tmp_path: Path, one_step_run: Any) -> list[Path]:
    """A run and one like it with another rank, each with an overlay of the same case."""
    runs = [tmp_path / name for name in ("first", "second")]
    for run in runs:
        shutil.copytree(one_step_run.run_dir, run)
        (run / "overlays").mkdir(exist_ok=True)
        picture = np.full((4, 6, 3), 90, np.uint8)
        Image.fromarray(picture).save(run / "overlays" / "best_p0.png")
    config = runs[1] / "config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("\n  rank: 4\n", "\n  rank: 16\n"), encoding="utf-8")
    return runs


def change_summary(run: Path, **entries: object) -> None:
    file = run / "eval" / "summary.json"
    summary = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(summary | entries), encoding="utf-8")


@pytest.fixture
def page_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[list[Path]], tuple[str, list[dict[str, Any]]]]:
    """``page_of(runs)``: the page of several runs, and what the command says of each."""

    def write(runs: list[Path]) -> tuple[str, list[dict[str, Any]]]:
        output = tmp_path / "page.html"
        capsys.readouterr()
        assert main(["report", *map(str, runs), f"output={output}", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["report"] == str(output)
        return output.read_text(encoding="utf-8"), said["runs"]

    return write


def test_two_runs_stand_side_by_side(two_runs: list[Path], page_of: Callable[..., Any]) -> None:
    page, runs = page_of(two_runs)
    assert [run["not_comparable"] for run in runs] == [None, None]
    assert runs[0]["after"] == runs[1]["after"]
    # The key that differs, with both values in a row.
    row = page[page.index("peft.rank</td>") :].partition("</tr>")[0]
    assert [">4<" in row, ">16<" in row] == [True, True]
    assert "run 2 - run 1, case by case" in page
    assert page.count("zero-shot</td>") == page.count("run 1: zero-shot</td>")  # equal bases once
    assert 'alt="Training"' in page
    beside = page[page.index("The same cases") :].partition("</div>")[0]
    assert beside.count("<img") == 2
    assert "not comparable" not in page


def test_runs_on_other_data_are_marked(two_runs: list[Path], page_of: Callable[..., Any]) -> None:
    change_summary(two_runs[1], data="another")
    page, runs = page_of(two_runs)
    assert runs[1]["not_comparable"] == "data: another, and run 1 has folder"
    assert "run 2 is not comparable with run 1" in page
    assert "run 2: adapted (not comparable)" in page
    assert "case by case" not in page
    assert page[page.index("The same cases") :].count("<h3>") == 2  # p0 is another case there


def test_runs_that_score_other_cases_are_marked(
    two_runs: list[Path], page_of: Callable[..., Any]
) -> None:
    file = two_runs[1] / "eval" / "per_case.csv"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = lines[:1] + [line for line in lines[1:] if not line.startswith("p0,")]
    file.write_text("".join(kept), encoding="utf-8")
    _, runs = page_of(two_runs)
    assert runs[1]["not_comparable"].startswith("other cases are scored: 1 of 1")


def test_the_page_of_one_run_is_written_anew(
    two_runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    page = two_runs[0] / "report.html"
    before = page.read_text(encoding="utf-8")
    (two_runs[0] / "overlays" / "best_p0.png").unlink()
    assert main(["report", str(two_runs[0])]) == 0
    assert page.read_text(encoding="utf-8") == before.replace(
        before[before.index('<p class="dim">') :].partition("</p>")[0],
        page.read_text(encoding="utf-8")[before.index('<p class="dim">') :].partition("</p>")[0],
    )  # the name of the directory has changed
    assert str(page) in capsys.readouterr().out


def test_a_lost_page_shows_the_overlays(two_runs: list[Path]) -> None:
    (two_runs[0] / "report.html").unlink()
    assert main(["report", str(two_runs[0])]) == 0
    page = (two_runs[0] / "report.html").read_text(encoding="utf-8")
    assert "the former page could not be read" in page
    assert 'alt="p0, overlay"' in page


def test_cases_and_findings_are_read_back(tmp_path: Path) -> None:
    strips = [Strip(index, bytes([index, 7]), 40, 20) for index in (3, 5, 7)]
    cases = [
        ShownCase("best: a<b", "Dice x 0.9", ("image", "adapted"), strips, 1, 2),
        ShownCase("worst: c", "Dice y 0.1", ("image",), strips[:1], 0),
    ]
    table = Table(title="Data check: 1 findings, 0 left out")
    for heading in ("severity", "code"):
        table.add_column(heading)
    table.add_row("warning", "size & spacing")
    page = Page("t", "s", (), (), {}, ("x", "y"), cases, [table], {"Configuration": "a: 1"})
    path = write_html(tmp_path / "page.html", page)
    read = read_page(path)
    assert read.cases == cases
    assert read.findings is not None
    assert [str(cell) for column in read.findings.columns for cell in column.cells] == [
        *("warning", "size & spacing")
    ]
    again = Page("t", "s", (), (), {}, ("x", "y"), read.cases, [read.findings], page.texts)
    before = path.read_bytes()
    assert write_html(path, again).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected run directories"),
        (["nothing"], "nothing: expected a run directory"),
        (["first", "output=a.html"], "output=a.html is for several runs"),
        (["first", "second", "output=a.pdf"], "expected a file that ends in .html"),
        (["first", "first"], "a run is named twice"),
        (["first", "stopped"], "expected a finished run"),
        (["first", "broken"], "it is broken"),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str],
    message: str,
    two_runs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("stopped", "broken"):
        (tmp_path / name / "eval").mkdir(parents=True)
        shutil.copy(two_runs[0] / "config.yaml", tmp_path / name)
    (tmp_path / "broken" / "eval" / "summary.json").write_text("{", encoding="utf-8")
    assert main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err
