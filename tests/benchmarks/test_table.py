"""The tables of docs/explanation/speed.md follow from the result files; a stale one is noticed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import harness, results, table

RATIO = {"median": 3.96, "min": 3.8, "max": 4.21}


def figures(median: float, **more: Any) -> dict[str, Any]:
    return {**harness.figures([median]), "error": 8e-7, **more}


def comparison(name: str, seconds: float = 4.0) -> dict[str, Any]:
    rate = {"gflop_s": 200.0, "share_of_peak": 0.8}
    memory = {"before_bytes": 10**9, "peak_bytes": 1_250_000_000}
    return {
        "row": name,
        "kind": "comparison",
        "device": "cpu",
        "images": 1,
        "contenders": {
            "samadapt": figures(seconds, **rate, memory=memory),
            "segment-anything": figures(16.0, ratio=RATIO, gflop_s=50.0, share_of_peak=None),
        },
        "facts": {},
    }


GROWTH = {
    "row": "step",
    "kind": "growth",
    "unit": "image",
    "seconds": {"1": [1.0], "2": [2.0]},
    "slope_s": 0.0123,
    "intercept_s": 0.0,
    "r2": 0.99987,
}
FACT = {"row": "second run", "kind": "fact", "facts": {"computed": 0}}


def run(rows: list[dict[str, Any]], *, whole: bool = True, gpu: str | None = None):
    peak = {"fp32": 250.0, "bf16": 300.0, "copy_gb_s": 20.0}
    return {
        "time": "2026-11-21T12:00:00+00:00",
        "repeat": 5,
        "processor": "A CPU",
        "gpu": gpu,
        "threads": 2,
        "packages": {"torch": "2.15.0"},
        "rooflines": {"cpu": peak},
        "rows": rows,
        "whole": whole,
    }


def test_a_comparison_in_markdown(tmp_path: Path) -> None:
    results.append(tmp_path / "encoder.json", run([comparison("vit_b 1024")]))
    lines = table.section(table.newest(tmp_path)).splitlines()
    assert lines[0] == "### Encoder, forward, one image"
    assert lines[2] == (
        "A CPU, 2 threads, torch 2.15.0; cpu peak 250 GFLOP/s fp32, 300 bf16, copy 20 GB/s; "
        "median of 5, 2026-11-21:"
    )
    assert lines[4] == (
        "|  | samadapt | peer | takes | ratio | memory above the weights | error | GFLOP/s "
        "| of the peak |"
    )
    assert lines[6] == (
        "| vit_b 1024 | 4.00 s | segment-anything | 16.0 s | **4.0x** (3.8 to 4.2) "
        "| 1.25 GB / - | 8e-07 / 8e-07 | 200 / 50 | 80% / - |"
    )


def test_each_peer_has_a_line_and_ours_is_said_once() -> None:
    row = comparison("vit_b 1024")
    row["contenders"]["timm"] = figures(8.0, ratio=RATIO) | {"min_s": 7.0}
    lines = table.TABLES["comparison"]([row])[2:]
    assert len(lines) == 2
    assert lines[1].startswith("|  |  | timm | 8.00 s (7.00 s to 8.00 s) | **4.0x** ")


def test_a_row_without_peers_has_a_line() -> None:
    row = comparison("help")
    del row["contenders"]["segment-anything"]
    assert table.TABLES["comparison"]([row])[2].startswith("| help | 4.00 s |")


def test_every_kind_of_row_has_a_table_of_even_width(tmp_path: Path) -> None:
    row = comparison("masks") | {"facts": {"masks": 40}}
    results.append(tmp_path / "epoch.json", run([row, GROWTH, FACT]))
    text = table.section(table.newest(tmp_path))
    assert "| step | image | 12.3 ms | 0.9999 | 1, 2 |" in text
    assert "| second run | computed 0 |" in text
    assert "masks 40" in text
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    assert all(table.row_text(row) for row in (row, GROWTH, FACT))


def test_newest_rows_win(tmp_path: Path) -> None:
    path = tmp_path / "encoder.json"
    old, new = comparison("a", 1.0), comparison("a", 2.0)
    results.append(path, run([comparison("gone")]))
    results.append(path, run([old, comparison("b")]))
    results.append(path, run([new], whole=False))
    (shown,) = table.newest(tmp_path).values()
    assert [row["row"] for part in shown for row in part["rows"]] == ["b", "a"]
    assert shown[1]["rows"] == [new]


def test_a_gpu_does_not_hide_the_cpu(tmp_path: Path) -> None:
    path = tmp_path / "encoder.json"
    for gpu in (None, "H200"):
        results.append(path, run([comparison("a")], gpu=gpu))
    (shown,) = table.newest(tmp_path).values()
    assert [part["gpu"] for part in shown] == [None, "H200"]


@pytest.mark.parametrize(
    "text",
    [
        "no marks",
        table.START,
        f"{table.END} {table.START}",
        f"{table.START} {table.START} {table.END}",
        f"{table.START} {table.END} {table.END}",
    ],
)
def test_marks_must_be_there_once(text: str) -> None:
    with pytest.raises(ValueError, match="expected one"):
        table.with_section(text, "content")


def test_check_tells_a_stale_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "speed.md"
    page.write_text(f"before\n{table.START}\nold\n{table.END}\nafter\n", encoding="utf-8")
    results.append(tmp_path / "encoder.json", run([comparison("a")]))

    def call(*arguments: str) -> None:
        places = ["--page", str(page), "--results", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["table", *places, *arguments])
        table.main()

    with pytest.raises(SystemExit, match="stale"):
        call("--check")
    assert "old" in page.read_text(encoding="utf-8")
    call()
    assert page.read_text(encoding="utf-8").startswith(f"before\n{table.START}\n### Encoder")
    assert page.read_text(encoding="utf-8").endswith(f"\n{table.END}\nafter\n")
    call("--check")
    results.append(tmp_path / "encoder.json", run([comparison("a", 5.0)]))
    with pytest.raises(SystemExit, match="stale"):
        call("--check")


def test_the_page_follows_from_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["table", "--check"])
    table.main()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(16.23, "16.2 s"), (0.01234, "12.3 ms"), (123.4, "123 s"), (-0.5, "-500 ms")],
)
def test_durations(seconds: float, text: str) -> None:
    assert table.duration(seconds) == text
