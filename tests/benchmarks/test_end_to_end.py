"""Whole tasks: what counts, what is scaled, and how a stopped run goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import (
    end_to_end,
    end_to_end_task,
    end_to_end_tasks,
    end_to_end_training,
    results,
)
from benchmarks.end_to_end_task import Task
from benchmarks.end_to_end_tasks import ct_volume
from benchmarks.end_to_end_training import EVERY, stopped_after_a_step, until_dice

TASKS = {"task": {"samadapt": None, "peer": None}, "other": {"samadapt": None}}


def measured(cpu: float, **facts: object) -> dict[str, object]:
    return {"cpu_s": cpu, "wall_s": 2 * cpu, "peak_bytes": 10**9, "facts": facts}


def run(tmp_path: Path, monkeypatch, measure, rows: str = "*") -> int:
    monkeypatch.setattr(end_to_end, "TASKS", TASKS)
    monkeypatch.setattr(end_to_end, "measure", measure)
    output = str(tmp_path / "e.json")
    monkeypatch.setattr(sys, "argv", ["run", str(tmp_path), "--rows", rows, "--output", output])
    return end_to_end.main()


def test_a_run_goes_on_where_it_was(tmp_path, monkeypatch) -> None:
    asked: list[tuple[str, str]] = []

    def measure(row: str, contender: str, root: Path) -> dict[str, object]:
        asked.append((row, contender))
        if len(asked) == 2:
            raise RuntimeError("killed")
        return measured(2.0 if contender == "samadapt" else 6.0, masks=3)

    assert run(tmp_path, monkeypatch, measure, "task") == 1
    assert run(tmp_path, monkeypatch, measure) == 0
    assert asked == [("task", "samadapt"), *[("task", "peer")] * 2, ("other", "samadapt")]
    (entry,) = results.read(tmp_path / "e.json")
    assert entry["whole"]
    task, _ = entry["rows"]
    assert list(task["contenders"]) == ["samadapt", "peer"]
    assert task["contenders"]["peer"]["ratio"]["median"] == 3.0
    assert "ratio" not in task["contenders"]["samadapt"]
    assert task["facts"]["peer: masks"] == 3
    assert task["facts"]["samadapt: peak memory"] == "1.00 GB"
    assert run(tmp_path, monkeypatch, lambda *given: measured(1.0)) == 0
    assert len(results.read(tmp_path / "e.json")) == 2  # a whole run is never changed


def test_a_run_with_other_packages_is_left_alone(tmp_path, monkeypatch) -> None:
    run(tmp_path, monkeypatch, lambda *given: measured(1.0), "task")
    (first,) = results.read(tmp_path / "e.json")
    here = end_to_end.machine.describe() | {"packages": {"torch": "0"}}
    monkeypatch.setattr(end_to_end.machine, "describe", lambda: here)
    run(tmp_path, monkeypatch, lambda *given: measured(1.0), "task")
    assert results.read(tmp_path / "e.json")[0] == first
    assert len(results.read(tmp_path / "e.json")) == 2


def test_parts_are_scaled_and_preparations_do_not_count(monkeypatch, tmp_path) -> None:
    clock = iter([0.0, 5.0, 5.0, 8.0])
    monkeypatch.setattr(end_to_end_task, "cpu_seconds", lambda: next(clock))
    task = Task(tmp_path, tmp_path)
    with task.uncounted():
        pass
    with task.part(2, 100, "slices"):
        pass
    assert task.not_counted_s == 5.0
    assert task.scaled_s == 3.0 * 49
    assert task.facts == {"scaled": "2 of 100 slices measured"}


def test_every_slice_has_a_box_around_what_is_bright(monkeypatch) -> None:
    monkeypatch.setattr(end_to_end_tasks, "SIDE", 256)
    monkeypatch.setattr(end_to_end_tasks, "DEPTH", 5)
    volume, boxes = ct_volume()
    assert volume.shape == (256, 256, 5)
    assert list(boxes) == [0, 1, 2, 3, 4]
    x0, y0, x1, y1 = boxes[2][0]
    inside = volume[y0 : y1 + 1, x0 : x1 + 1, 2]
    assert np.median(inside) > np.median(volume[..., 2]) + 80


def test_training_stops_after_one_step() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight])
    steps = []
    with stopped_after_a_step():
        for number in range(3):
            steps.append(number)
            optimizer.step()
    assert steps == [0]
    optimizer.step()  # it does not stop others
    with pytest.raises(RuntimeError, match="by itself after 0 steps"), stopped_after_a_step():
        pass


class Slices:
    """A data set whose held-out slices hold an object in their upper half."""

    def slices(self, split: str, **_: object) -> list[int]:
        assert split == "val"
        return [0, 1]

    def sample(self, ref: int) -> SimpleNamespace:
        return SimpleNamespace(labels=np.repeat([[1], [1], [0], [0]], 4, axis=1))


@pytest.mark.parametrize(
    ("limit", "steps", "dice"), [(1800.0, 4 * EVERY, 1.0), (-1.0, EVERY, 0.667)]
)
def test_training_stops_at_a_dice_or_at_the_limit(monkeypatch, tmp_path, limit, steps, dice):
    monkeypatch.setattr("samadapt.data.dataset.open_dataset", lambda *_, **__: Slices())
    monkeypatch.setattr(end_to_end_training, "LIMIT_S", limit)
    rows = iter([1, 1, 3, 2])  # of the mask at each look
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    task = Task(tmp_path, tmp_path)

    def masks_of(samples: list[SimpleNamespace]) -> list[np.ndarray]:
        shown = np.zeros((4, 4), bool)
        shown[: next(rows)] = True
        return [shown] * len(samples)

    done = 0
    with until_dice(task, masks_of):
        while done < 5 * EVERY:
            done += 1
            optimizer.step()
    assert done == steps
    assert task.facts == {"steps": steps, "Dice": dice}


@pytest.mark.slow
def test_a_task_is_measured_in_a_process_of_its_own(tmp_path) -> None:
    row = next(row for row in end_to_end.TASKS if row.startswith("masks"))
    found = end_to_end.measure(row, "samadapt", tmp_path)
    assert found["facts"]["masks"] > 0
    assert found["cpu_s"] > 1
    with pytest.raises(RuntimeError, match=r"(?s)ended with 1:.*KeyError"):
        end_to_end.measure(row, "nobody", tmp_path)
