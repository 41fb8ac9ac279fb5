"""The time left of the whole run, and what is written about it."""

from __future__ import annotations

import io
import json
import math
import time

import pytest
from rich.console import Console

from samadapt.training import progress as module
from samadapt.training.progress import Clock, Progress, append_line


def progress(tmp_path, terminal=False):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    return Progress(console, tmp_path / "log.txt"), stream


def test_the_clock_adds_what_every_phase_still_needs():
    clock = Clock({"a": 10, "b": 4, "c": 0}, like={"b": "a"})
    assert clock.seconds_left() is None
    clock.spent("a", 5, 10.0)
    assert clock.seconds_left() == pytest.approx(5 * 2 + 4 * 2)
    clock.close("a")
    assert clock.seconds_left() == pytest.approx(8)
    clock.spent("b", 1, 7.0)
    assert clock.seconds_left() == pytest.approx(21)
    clock.spent("b", 5, 1.0)
    assert clock.seconds_left() == 0


def test_the_clock_tells_what_a_unit_of_each_phase_took():
    clock = Clock({"a": 10, "b": 4}, like={"b": "a"})
    clock.spent("a", 5, 10.0)
    clock.spent("a", 0, 1.0)
    clock.spent("b", 0, 0.5)
    assert clock.unit_seconds() == {"a": pytest.approx(2.2)}
    assert clock.measured_seconds() == pytest.approx(11.5)


def test_an_unmeasured_phase_makes_no_guess():
    clock = Clock({"a": 1, "b": 1}, like={})
    clock.spent("a", 1, 1.0)
    assert clock.seconds_left() is None


def test_a_phase_of_limited_time_lasts_that_long():
    clock = Clock({"train": 0, "score": 2}, like={})
    clock.spent("score", 1, 3.0)
    clock.bound("train", 40.0)
    assert clock.seconds_left() == pytest.approx(40 + 3)
    clock.left["train"] = 5
    clock.spent("train", 1, 2.0)
    assert clock.seconds_left() == pytest.approx(4 * 2 + 3)  # the steps end before the time
    clock.bound("train", 1.0)
    assert clock.seconds_left() == pytest.approx(1 + 3)
    clock.close("train")
    assert clock.seconds_left() == pytest.approx(3)
    clock.bound("score", math.inf)
    assert clock.seconds_left() == pytest.approx(3)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_phase_without_a_known_end_counts_up(tmp_path, monkeypatch, terminal):
    monkeypatch.setattr(module, "LOG_EVERY", 0.0)
    shown, stream = progress(tmp_path, terminal)
    shown.plan({"train": 0}, {})
    with shown.phase("train"):
        shown.advance(3, "loss 1")
        if shown._bars is not None:
            shown._bars.refresh()
    assert "3  loss 1" in stream.getvalue()
    assert "3/" not in stream.getvalue()


def test_time_aside_counts_for_its_own_phase(tmp_path):
    shown, _ = progress(tmp_path)
    shown.plan({"train": 4, "validation": 6}, {})
    with shown.phase("train"):
        shown.advance()
        with shown.aside("validation", 3):
            time.sleep(0.2)
        shown.advance()
    assert shown.clock.left == {"train": 0, "validation": 3}
    assert shown.clock._seconds["validation"] >= 0.2
    assert shown.clock._seconds["train"] < 0.15
    assert shown.clock.seconds_left() == pytest.approx(shown.clock._seconds["validation"])


def test_time_aside_within_time_aside_counts_once(tmp_path):
    shown, _ = progress(tmp_path)
    shown.plan({"train": 2, "validation": 3, "features": 8}, {})
    with shown.phase("train"):
        with shown.aside("validation", 3):
            time.sleep(0.1)
            with shown.aside("features", 8):
                time.sleep(0.3)
        shown.advance(2)
    seconds = shown.clock._seconds
    assert seconds["features"] >= 0.3
    assert 0.1 <= seconds["validation"] < 0.25
    assert 0 <= seconds["train"] < 0.1


def test_a_resumed_phase_has_less_left(tmp_path):
    shown, _ = progress(tmp_path)
    shown.plan({"train": 10}, {})
    with shown.phase("train", start=7):
        assert shown.clock.left["train"] == 3
        shown.advance()
        assert shown.clock.left["train"] == 2


def test_without_a_terminal_there_are_lines_and_a_log(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOG_EVERY", 0.0)
    shown, stream = progress(tmp_path)
    shown.plan({"train": 2}, {})
    with shown.phase("train"):
        shown.advance(1, "loss 0.5")
    shown.say("[not] a tag")
    text = stream.getvalue()
    assert "train 1/2  loss 0.5  0:00 left of the run" in text
    assert "[not] a tag" in text
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "train 1/2  loss 0.5" in log
    assert log.splitlines()[-1][2] == ":"


def test_on_a_terminal_a_bar_shows_the_numbers(tmp_path):
    shown, stream = progress(tmp_path, terminal=True)
    shown.plan({"train": 2}, {})
    with shown.phase("train"):
        shown.advance(1, "loss 0.5  best validation Dice 0.900")
        shown._bars.refresh()
    assert "1/2" in stream.getvalue()
    assert "best validation Dice 0.900" in stream.getvalue()
    assert not (tmp_path / "log.txt").exists()


def test_a_phase_that_fails_is_closed(tmp_path):
    shown, _ = progress(tmp_path, terminal=True)
    shown.plan({"train": 4, "validation": 2}, {})
    with pytest.raises(ValueError, match="x"), shown.phase("train"):  # noqa: PT012
        shown.advance()
        with pytest.raises(KeyError), shown.aside("validation", 1):
            raise KeyError
        raise ValueError("x")
    assert shown._bars is None
    assert shown.clock.left == {"train": 0, "validation": 1}
    with shown.phase("validation"):
        shown.advance()


def test_lines_that_are_written_again_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert module.keep_lines_up_to(path, 3) == 0
    for step in (1, 2, 3, 4):
        append_line(path, {"kind": "train", "step": step})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "tra')
    assert module.keep_lines_up_to(path, 3) == 2
    assert [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()] == [
        1,
        2,
        3,
    ]
    before = path.stat().st_mtime_ns
    assert module.keep_lines_up_to(path, 3) == 0
    assert path.stat().st_mtime_ns == before


def test_metrics_are_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"kind": "train", "loss": float("nan"), "lr": float("inf"), "step": 1})
    append_line(path, {"kind": "train", "loss": 0.5})

    def refuse(token):
        raise ValueError(token)

    lines = [
        json.loads(line, parse_constant=refuse)
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert lines == [
        {"kind": "train", "loss": None, "lr": None, "step": 1},
        {"kind": "train", "loss": 0.5},
    ]
