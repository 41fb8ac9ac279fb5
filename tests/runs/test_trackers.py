"""Trackers get what metrics.jsonl holds, once each, and can neither stop nor change a run."""

from __future__ import annotations

import io
import json
import shutil
import struct
import threading
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate.tracking
import numpy as np
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image
from safetensors.torch import load_file

from samadapt.adapters.record import AdapterRecord
from samadapt.cli import main
from samadapt.config.compose import compose
from samadapt.config.evaluate_arguments import EvaluateArguments
from samadapt.config.schema import TRACKERS, Config, Output
from samadapt.errors import ConfigError
from samadapt.runs import trackers
from samadapt.runs.recorded_configuration import evaluation_config
from samadapt.runs.tracker_kinds import KINDS
from samadapt.runs.trackers import (
    check_trackers,
    final_scores,
    flat_configuration,
    flat_line,
    tracked,
)
from samadapt.training.progress import append_line, keep_lines_up_to

pytestmark = pytest.mark.filterwarnings("default")  # of the trackers' own code

Points = dict[str, list[tuple[int, float]]]


def points_of(run_dir: Path) -> Points:
    """What metrics.jsonl says, by name."""
    points: Points = {}
    for text in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        for name, value in flat_line(line).items():
            points.setdefault(name, []).append((line["step"], value))
    return points


def rounded(points: Points) -> Points:
    """The numbers as TensorBoard keeps them, in 32 bits."""
    return {
        name: [(step, float(np.float32(value))) for step, value in found]
        for name, found in points.items()
    }


def read_tensorboard(run_dir: Path) -> tuple[Points, Any]:
    """What TensorBoard reads from its files, by tag, and its reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"scalars": 0, "images": 0}
    reader = EventAccumulator(str(run_dir / "trackers" / "tensorboard"), everything).Reload()
    points = {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }
    return points, reader


@pytest.fixture
def follow(tmp_path: Path) -> Callable[..., list[str]]:
    """``follow(lines, "tensorboard")``: a process that trains these lines; what it said."""

    def train(lines: list[dict[str, Any]], *names: str, summary: Any = None) -> list[str]:
        said: list[str] = []
        config = replace(Config(), output=Output(trackers=list(names)))
        with tracked(config, tmp_path) as tracking:
            tracking.start(said.append)
            for line in lines:
                append_line(tmp_path / "metrics.jsonl", line)
            if summary is not None:
                tracking.finish(summary)
        return said

    return train


def steps(first: int, last: int, loss: float = 1.0) -> list[dict[str, Any]]:
    return [{"kind": "train", "step": n, "loss": loss / n} for n in range(first, last + 1)]


class Notebook(GeneralTracker):
    """A tracker that keeps in memory what it gets, in the place of wandb."""

    name = "wandb"
    requires_logging_directory = False
    logged: list[tuple[int, dict[str, float]]]
    starts: list[dict[str, Any]]
    configured: list[dict[str, Any]]

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments

    @property
    def tracker(self) -> Notebook:
        return self

    def start(self) -> None:
        self.starts.append(self.arguments)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.configured.append(values)

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        self.logged.append((step or 0, values))

    def log_images(self, values: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((step or 0, dict.fromkeys(values, float("nan"))))


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> type[Notebook]:
    """The tracker ``wandb`` keeps what it gets in memory."""

    class Own(KINDS["wandb"]):  # type: ignore[misc]
        def arguments(self, run: Any) -> dict[str, Any]:
            return {"run": run}

        def identity(self, tracker: Any) -> str:
            return "page-7"

    Notebook.logged, Notebook.starts, Notebook.configured = [], [], []
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Notebook)
    monkeypatch.setitem(KINDS, "wandb", Own)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", list(TRACKERS))
    return Notebook


def test_every_tracker_of_accelerate_is_known_and_has_an_extra() -> None:
    assert set(TRACKERS) == set(KINDS) == set(LOGGER_TYPE_TO_CLASS)
    root = Path(__file__).parents[2]
    content = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    extras = content["project"]["optional-dependencies"]
    for name in TRACKERS:
        assert any(needed.startswith(KINDS[name].package) for needed in extras[name])


SUMMARY = {
    "zero_shot": None,
    "adapted": {"dice": 0.5, "per_class": {"a/b": {"dice": 0.25, "cases": 3}}},
    "last_step": 4,
    "best_validation_dice": None,
    "best_step": 2,
    "seconds": 1.0,
}
SCORES = {
    "scores/adapted/dice": 0.5,
    "scores/adapted/a_b/dice": 0.25,
    "scores/best_step": 2,
    "scores/seconds": 1.0,
}


def check_tensorboard(run_dir: Path, summary: Any) -> Points:
    """Check that its files hold the lines, the final scores and the overlays; return the points."""
    points, reader = read_tensorboard(run_dir)
    last = summary["last_step"]
    scores = {name: [(last, value)] for name, value in final_scores(summary).items()}
    assert points == rounded(points_of(run_dir) | scores)
    overlays = list((run_dir / "overlays").glob("*.png"))
    assert overlays
    for file in overlays:
        (event,) = reader.Images(f"overlays/{file.name.partition('_')[0]}")
        read = Image.open(io.BytesIO(event.encoded_image_string))
        with Image.open(file) as drawn:  # pixel for pixel
            assert np.array_equal(np.asarray(drawn.convert("RGB")), np.asarray(read))
    (stored,) = run_dir.glob("trackers/tensorboard/*/hparams.yml")
    assert "peft.name: lora" in stored.read_text(encoding="utf-8")
    return points


def test_tensorboard_reads_back_what_was_written(
    tmp_path: Path, follow: Callable[..., list[str]]
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "overlays").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "overlays" / "best_anna.png")
    lines = steps(1, 4)
    lines.insert(2, {"kind": "validate", "step": 2, "dice": 0.5, "by_prompt": {"box": 0.5}})
    lines[1]["loss"] = float("nan")
    assert follow(lines, "tensorboard", summary=SUMMARY) == []
    points = check_tensorboard(tmp_path, SUMMARY)
    assert points["validate/by_prompt/box"] == [(2, 0.5)]
    assert [step for step, _ in points["train/loss"]] == [1, 3, 4]
    assert final_scores(SUMMARY) == SCORES


@pytest.mark.slow
def test_tensorboard_reads_back_what_a_run_wrote(
    make_pictures: Callable[..., Path], run: Callable[..., Any]
) -> None:
    pytest.importorskip("tensorboard")
    keys = ("prompts=mixed", "prompts.shares={box: 0.75, point: 0.25}", "eval.overlays=2")
    result = run(make_pictures(), *keys, "output.trackers=tensorboard")
    summary = json.loads((result.run_dir / "eval" / "summary.json").read_text(encoding="utf-8"))
    points = check_tensorboard(result.run_dir, summary)
    assert len(points["train/loss"]) == 4
    assert len(points["validate/by_prompt/point"]) == 2
    dice = summary["by_prompt"]["point"]["adapted"]["dice"]
    assert points["scores/by_prompt/point/adapted/dice"] == [(4, pytest.approx(dice))]


@pytest.mark.slow
def test_the_training_is_the_same_with_trackers(
    make_pictures: Callable[..., Path], run: Callable[..., Any]
) -> None:
    pytest.importorskip("tensorboard")
    pictures = make_pictures()
    plain, result = run(pictures), run(pictures, "output.trackers=tensorboard")
    weights = [load_file(r.adapter_dir / "adapter_model.safetensors") for r in (plain, result)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_resumed_run_replaces_the_steps_of_the_killed_one_in_tensorboard(
    tmp_path: Path, follow: Callable[..., list[str]]
) -> None:
    pytest.importorskip("tensorboard")
    assert follow(steps(1, 8), "tensorboard") == []
    keep_lines_up_to(tmp_path / "metrics.jsonl", 5)
    assert follow(steps(6, 10, loss=3.0), "tensorboard") == []
    points, _ = read_tensorboard(tmp_path)
    assert points == rounded(points_of(tmp_path))
    assert [step for step, _ in points["train/loss"]] == list(range(1, 11))


def test_a_resumed_run_writes_no_step_twice(
    tmp_path: Path, follow: Callable[..., list[str]], notebook: type[Notebook]
) -> None:
    lines = steps(1, 8)
    lines.insert(5, {"kind": "validate", "step": 5, "dice": 0.5})
    assert follow(lines, "wandb") == []
    keep_lines_up_to(tmp_path / "metrics.jsonl", 4)
    follow([*steps(5, 10), {"kind": "validate", "step": 10, "dice": 0.75}], "wandb")
    assert [s for s, line in notebook.logged if "train/loss" in line] == list(range(1, 11))
    assert [s for s, line in notebook.logged if "validate/dice" in line] == [5, 10]
    # It is the same run of the tracker, which has the configuration already.
    assert [start["run"].earlier for start in notebook.starts] == [None, "page-7"]
    assert len(notebook.configured) == 1


def test_steps_from_before_the_tracker_was_added_are_sent_too(
    tmp_path: Path, follow: Callable[..., list[str]], notebook: type[Notebook]
) -> None:
    follow(steps(1, 3))
    assert not (tmp_path / "trackers").exists()
    follow(steps(4, 5), "wandb")
    assert [step for step, _ in notebook.logged] == [1, 2, 3, 4, 5]


def test_scores_are_sent_once(
    tmp_path: Path, follow: Callable[..., list[str]], notebook: type[Notebook]
) -> None:
    for lines in (steps(1, 4), []):  # resumed after its end, it is scored again
        follow(lines, "wandb", summary=SUMMARY)
    assert notebook.logged[4:] == [(4, SCORES)]


def test_nothing_starts_before_the_first_step(
    follow: Callable[..., list[str]], notebook: type[Notebook]
) -> None:
    follow([], "wandb")
    assert notebook.starts == []


@pytest.mark.parametrize("moment", ["start", "log"])
def test_a_tracker_that_fails_warns_once_and_the_others_go_on(
    moment: str,
    tmp_path: Path,
    follow: Callable[..., list[str]],
    notebook: type[Notebook],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("tensorboard")

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host.\nmore")

    monkeypatch.setattr(notebook, moment, fail)
    (said,) = follow(steps(1, 6), "wandb", "tensorboard")
    assert said == (
        "warning: output.trackers: wandb failed and gets nothing more of this run: "
        "ConnectionError: no route to host. metrics.jsonl is complete"
    )
    assert read_tensorboard(tmp_path)[0] == rounded(points_of(tmp_path))


def test_lines_that_are_written_at_the_end_are_not_lost(
    follow: Callable[..., list[str]], notebook: type[Notebook], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look at the file finds nothing, and then the run writes its lines and ends."""
    written, looked, first = threading.Event(), trackers.Tail.new_lines, []

    def slow(tail: Any) -> Any:
        found = looked(tail)
        if threading.current_thread().name == "wandb" and not first:
            first.append(found)
            written.wait(10)
        return found

    close = trackers.Tracking.close

    def closing(tracking: Any, seconds: float) -> None:
        threading.Timer(0.2, written.set).start()
        close(tracking, seconds)

    monkeypatch.setattr(trackers.Tail, "new_lines", slow)
    monkeypatch.setattr(trackers.Tracking, "close", closing)
    monkeypatch.setattr(trackers, "POLL_SECONDS", 0.0)
    follow(steps(1, 3), "wandb")
    assert [step for step, _ in notebook.logged] == [1, 2, 3]


def test_a_tracker_that_hangs_is_left_behind(
    follow: Callable[..., list[str]],
    notebook: type[Notebook],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = threading.Event()
    monkeypatch.setattr(notebook, "start", lambda self: released.wait(60) and None)
    monkeypatch.setattr(trackers, "GRACE_SECONDS", 0.2)
    (said,) = follow(steps(1, 2), "wandb")
    released.set()
    assert "wandb has not taken everything after 0 s and is left behind" in said


def test_a_missing_package_is_an_error_before_the_training(
    make_pictures: Callable[..., Path],
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    arguments = [f"recipe={recipe}", f"data.root={make_pictures()}"]
    assert main(["finetune", *arguments, "output.trackers=[mlflow]"]) == 2
    assert "pip install 'samadapt[mlflow]'" in capsys.readouterr().err
    assert not list((recipe.parent / "runs").rglob("config.yaml"))


def test_a_wrong_name_gets_the_nearest_one(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"output\.trackers: .* did you mean 'tensorboard'"):
        compose(str(recipe), ["data.root=x", "output.trackers=[tensorbord]"])


def test_privacy_hides_files_and_refuses_trackers_that_record_the_command_line(
    recipe: Path, notebook: type[Notebook]
) -> None:
    keys = ["data.root=/clinic/anna", "privacy=true", "train.class_balance=0.5"]
    config = compose(str(recipe), [*keys[:2], "output.trackers=[wandb,comet_ml]"])
    flat = flat_configuration(config)
    assert flat["data.root"] == "(hidden: privacy=true)"
    assert not any(
        "clinic" in str(value) or str(recipe.parent) in str(value) for value in flat.values()
    )
    assert flat["peft.rank"] == 4
    with pytest.raises(ConfigError, match="comet_ml records the command line"):
        check_trackers(config)


def test_an_evaluation_has_no_trackers() -> None:
    asked = EvaluateArguments(adapter="a", output=Output(trackers=["tensorboard"]))
    with pytest.raises(ConfigError, match=r"output\.trackers=.* follows a training"):
        evaluation_config(asked, AdapterRecord("tiny", "0" * 64, 64))


@pytest.mark.slow
def test_each_fold_has_a_run_of_its_own(
    make_pictures: Callable[..., Path], run: Callable[..., Any], notebook: type[Notebook]
) -> None:
    result = run(make_pictures(), "folds=2", "output.trackers=wandb")
    names = [start["run"].name for start in notebook.starts]
    assert names == [f"{result.run_dir.name}-fold_{fold}" for fold in (0, 1)]
    assert len([1 for step, line in notebook.logged if "train/loss" in line]) == 8


def records_of(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: a log of LevelDB in blocks of 32 KiB, after 7 bytes."""
    content, place, record = path.read_bytes(), 7, b""
    while place < len(content):
        left = 2**15 - place % 2**15
        if left < 7:  # too short for the head of a record
            place += left
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def read_wandb(run_dir: Path) -> Points:
    """The numbers of all offline files of wandb, which ``wandb sync`` would send."""
    from wandb.proto.wandb_internal_pb2 import Record

    points: Points = {}
    for path in sorted(run_dir.glob("trackers/wandb/offline-run-*/*.wandb")):
        for content in records_of(path):
            items = Record.FromString(content).history.item
            named = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
            for name, value in named.items():
                if isinstance(value, int | float):
                    points.setdefault(name, []).append((named["_step"], value))
    return points


def read_mlflow(run_dir: Path) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run_dir / 'trackers' / 'mlflow' / 'mlflow.db'}")
    (found,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert found.data.params["peft.name"] == "lora"
    names = found.data.metrics
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
        for name in names
    }


def read_trackio(run_dir: Path) -> Points:
    from trackio.sqlite_storage import SQLiteStorage

    points: Points = {}
    for line in SQLiteStorage.get_logs("samadapt", run_dir.name):
        for name, value in line.items():
            if isinstance(value, int | float):
                points.setdefault(name, []).append((line["step"], value))
    return points


READERS = {"wandb": read_wandb, "mlflow": read_mlflow, "trackio": read_trackio}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_other_trackers_read_back_what_the_run_wrote(
    name: str,
    tmp_path: Path,
    make_pictures: Callable[..., Path],
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip(name)
    pictures = make_pictures()
    result = run(pictures, "eval.overlays=1", f"output.trackers={name}")
    first = points_of(result.run_dir)
    # The run goes on in a second process that begins at a checkpoint.
    resumed = f"resume={result.run_dir}"
    assert main(["finetune", resumed, "train.steps=6"]) == 0
    points = READERS[name](result.run_dir)
    expected = points_of(result.run_dir)
    assert first.keys() == expected.keys()
    assert [step for step, _ in expected["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert {key: points[key] for key in expected} == expected
    assert len(list((result.run_dir / "trackers").rglob("*best*.png"))) or name == "trackio"
    shutil.rmtree(result.run_dir)
