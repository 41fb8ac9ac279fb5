"""Contenders take turns, and figures follow from the seconds."""

from __future__ import annotations

import ast
import math
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch

from benchmarks import harness, machine, memory
from benchmarks.harness import Comparison, Fact, Growth, Run, Timed

RUN = Run("none", 3, {"cpu": {"fp32": 50.0}}, memory=False)


def contender(name: str, log: list[str], seconds: list[float], value: object = None):
    def build():
        log.append(f"build {name}")

        def call():
            log.append(name)
            return Timed(seconds[sum(n == name for n in log) - 1]) if value is None else value

        return call

    return build


def test_contenders_take_turns_after_a_warm_up() -> None:
    log: list[str] = []
    row = Comparison(
        "row", {"a": contender("a", log, [1] * 4), "b": contender("b", log, [1] * 4)}, memory=False
    )
    row.measure(RUN)
    assert log == ["build a", "build b", *"ab", *"ababab"]


def test_figures_follow_from_the_seconds() -> None:
    log: list[str] = []
    row = Comparison(
        "row",
        {
            "ours": contender("ours", log, [9, 1.0, 2.0, 4.0]),
            "peer": contender("peer", log, [9, 3.0, 4.0, 16.0]),
        },
        flop=lambda: 40e9,
    )
    found = row.measure(RUN)
    ours, peer = found["contenders"].values()
    assert ours["seconds"] == [1.0, 2.0, 4.0]
    assert (ours["median_s"], ours["min_s"], ours["max_s"]) == (2.0, 1.0, 4.0)
    assert (ours["gflop_s"], ours["share_of_peak"]) == (20.0, 0.4)
    assert "ratio" not in ours
    assert peer["ratio"] == {"median": 3.0, "min": 2.0, "max": 4.0}  # of pairs: 3, 2, 4
    assert peer["error"] is None


@pytest.mark.parametrize("reference", ["exact", lambda: torch.tensor([3.0, 4.0])])
def test_errors_are_relative_to_the_reference(reference) -> None:
    log: list[str] = []
    row = Comparison(
        "row",
        {
            "ours": contender("ours", log, [], (torch.tensor([3.0]), torch.tensor([4.5]))),
            "exact": contender("exact", log, [], torch.tensor([3.0, 4.0])),
        },
        reference=reference,
    )
    found = row.measure(RUN)["contenders"]
    assert found["ours"]["error"] == pytest.approx(0.1)
    assert found["exact"]["error"] == (None if isinstance(reference, str) else 0.0)


def test_growth_is_the_line_through_the_medians() -> None:
    def build(count: int):
        return lambda: Timed(0.5 + 2.0 * count)

    found = Growth("growth", "image", (1, 2, 4), build).measure(RUN)
    assert found["slope_s"] == pytest.approx(2.0)
    assert found["intercept_s"] == pytest.approx(0.5)
    assert found["r2"] == pytest.approx(1.0)
    assert found["seconds"]["4"] == [8.5] * 3
    assert harness.line_through((1, 2, 3), (1.0, 3.0, 1.0))["r2"] == pytest.approx(0.0)
    assert math.isnan(harness.line_through((1, 2), (1.0, 1.0))["r2"])


def test_a_fact_is_counted_once() -> None:
    assert Fact("fact", lambda: {"n": 1}).measure(RUN)["facts"] == {"n": 1}


@pytest.mark.skipif(not memory.STATUS.exists(), reason="no /proc")
def test_memory_is_what_a_call_takes_above_what_was_there() -> None:
    weights = torch.ones(2**24)  # 64 MiB, and a peak before that does not count
    del weights
    kept = torch.ones(2**23)
    found = memory.above_the_weights(lambda: (kept * 2).sum(), "cpu")
    assert found["before_bytes"] > kept.nbytes
    assert kept.nbytes - 2**21 < found["peak_bytes"] < kept.nbytes + 2**24  # counted in batches


def test_every_suite_has_rows_of_different_names() -> None:
    for suite in harness.SUITES:
        assert harness.find_rows(suite)


def test_the_machine_is_described() -> None:
    found = machine.describe()
    assert torch.__version__.startswith(found["packages"]["torch"])
    assert found["threads"] == torch.get_num_threads()
    assert found["processor"]


def test_no_import_cycles() -> None:
    """Imports inside functions count as well."""
    folder = Path(harness.__file__).parent
    files = {f"benchmarks.{path.stem}": path for path in folder.glob("*.py")}
    graph = {}
    for name, path in files.items():
        nodes = [
            n
            for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(n, ast.ImportFrom)
        ]
        wanted = {str(n.module) for n in nodes}
        wanted |= {f"{n.module}.{alias.name}" for n in nodes for alias in n.names}
        graph[name] = wanted & set(files)
    TopologicalSorter(graph).prepare()  # it raises CycleError
