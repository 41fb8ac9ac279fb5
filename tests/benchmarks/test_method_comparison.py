"""The comparison of methods: what is planned, how a rate is found, and what is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import results
from benchmarks.method_comparison import __main__ as command
from benchmarks.method_comparison import figures, plan, report, summary, trial
from samadapt.methods import METHODS
from samadapt.methods.peft_others import OtherPeft

SETTINGS = plan.Settings()
ROW = {"validation_dice": 0.6, "slices": {"train": 9}, "machine": {"processor": "one"}}


def test_every_method_with_a_file_is_compared() -> None:
    own = {name for name, method in METHODS.items() if not issubclass(method, OtherPeft)}
    assert set(plan.METHODS) == own - {"none"}  # which trains nothing


@pytest.mark.parametrize("method", plan.METHODS)
def test_sizes_grow_and_compose(method: str) -> None:
    sizes = plan.METHODS[method]
    assert len(sizes) == len(plan.SIZES) == len({str(options) for options in sizes})
    for task in plan.TASKS:
        for size in plan.SIZES:
            one = plan.Trial(method, size, task, 1e-3, 2)
            config = trial.configuration(one, SETTINGS, Path("data"), Path("work"))
            assert config.peft.name == method
            assert config.prompts.name == task
            assert (config.train.lr, config.seed) == (1e-3, 2)
            assert {key: _plain(getattr(config.peft, key)) for key in one.options} == one.options


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1e-3, [3e-4, 1e-3, 3e-3]),
        (1e-4, [3e-4, 1e-3, 3e-3, 1e-4]),
        (1e-2, [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
        (3e-2, [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
    ],
)
def test_the_search_goes_on_at_an_edge(best: float, tried: list[float]) -> None:
    seen: list[plan.Trial] = []

    def train(one: plan.Trial) -> float:
        seen.append(one)
        return -abs(plan.RATES.index(one.lr) - plan.RATES.index(best))

    assert plan.search("lora", train) == best
    assert [one.lr for one in seen] == tried
    assert {(one.size, one.task, one.seed) for one in seen} == {("medium", "semantic", 0)}


def _row(method: str, size: plan.Size, lr: float, seed: int, dice: float, **more: Any) -> Any:
    one = plan.Trial(method, size, "semantic", lr, seed)
    found = {"dice": dice, "trained_encoder": 2000, "step_s": 0.5, **ROW, **more}
    return {"settings": asdict(SETTINGS), "trial": asdict(one), **found}


def test_what_was_trained_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def train(one: plan.Trial, *others: Any) -> dict[str, Any]:
        calls.append(one)
        return {**ROW, "dice": 0.5, "trained_encoder": 7, "step_s": 0.1, "total_s": 1.0}

    monkeypatch.setattr(trial, "train_trial", train)
    monkeypatch.setattr(trial, "this_machine", dict)
    output = tmp_path / "found.json"
    one = plan.Trial("lora", "small", "box", 1e-3, 0)
    for settings in (SETTINGS, SETTINGS, plan.Settings(steps=7)):
        assert trial.trained(settings, tmp_path, tmp_path, output, one) == 0.6
    assert len(calls) == len(results.read(output)) == 2


def test_only_trials_at_the_chosen_rate_are_shown(tmp_path: Path) -> None:
    rows = [
        _row("lora", "medium", 1e-2, 0, 0.9, validation_dice=0.5),  # held out, but not chosen
        _row("lora", "medium", 1e-3, 0, 0.7),
        _row("lora", "medium", 1e-3, 1, 0.8),
        _row("lora", "small", 1e-3, 0, 0.6),
        _row("bias", "medium", 1e-3, 0, 0.4),
    ]
    points = summary.summarise(rows, {("lora", "medium", "semantic"): 0.25})
    lora = points["lora", "medium", "semantic"]
    assert (lora.dice, len(lora.scores), lora.lr) == (pytest.approx(0.75), 2, 1e-3)
    assert lora.spread == pytest.approx(0.0707, abs=1e-4)
    assert points["lora", "small", "semantic"].spread is None
    text = report.section(rows, points)
    assert text.index("`lora`") < text.index("`bias`")
    assert "0.600 · 0.750±0.071" in text
    assert "- · 0.25 |" in text
    assert "1 to 2 of 3 seeds" in text
    for path in figures.draw(points, tmp_path):
        with Image.open(path) as picture:
            assert picture.size[0] > 1000


def test_a_seed_is_shown_once_every_method_has_it() -> None:
    rows = [
        {**_row(method, size, 1e-3, seed, 0.5), "trial": {**trial, "task": task}}
        for seed in (0, 1)
        for method in plan.METHODS
        for size in plan.SIZES
        for task in plan.TASKS
        for trial in [asdict(plan.Trial(method, size, task, 1e-3, seed))]
    ]
    search = _row("lora", "medium", 1e-2, 0, 0.4, validation_dice=0.1)
    assert summary.of_whole_seeds([search, *rows]) == [search, *rows]
    assert summary.of_whole_seeds([search, *rows[:-1]]) == [search, *rows[: len(rows) // 2]]
    assert summary.of_whole_seeds(rows[1 : len(rows) // 2]) == []
    assert "2 trainings" in summary.unfinished(rows[:2])
    assert summary.unfinished([]) == "Not measured yet."


def test_the_newest_settings_are_shown() -> None:
    old = {**_row("lora", "small", 1e-3, 0, 0.1), "settings": {"steps": 1}}
    new = _row("lora", "small", 1e-3, 0, 0.2)
    assert summary.newest([old, new]) == [new]
    assert summary.newest([]) == []


def test_the_default_rates_are_those_that_were_found() -> None:
    found = summary.chosen_rates(summary.newest(plan.read_trials(command.RESULTS)))
    assert found.keys() == set(plan.METHODS)
    del found["decoder"]  # trains the decoder alone, which has a rate of its own
    assert {name: METHODS[name].lr for name in found} == found


def test_the_page_follows_from_the_results() -> None:
    assert report.write(command.RESULTS, check=True) == 0


def test_every_figure_of_the_docs_is_drawn_by_the_script(tmp_path: Path) -> None:
    rows = summary.of_whole_seeds(summary.newest(plan.read_trials(command.RESULTS)))
    drawn = {path.name for path in figures.draw(summary.summarise(rows, {}), tmp_path)}
    assert drawn == {path.name for path in report.IMAGES.glob("methods_*.png")}
    families = [method for members in figures.FAMILIES.values() for method in members]
    assert sorted([*families, figures.DECODER_ALONE]) == sorted(plan.METHODS)


def test_an_unknown_method_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "run", "data", "--methods", "lora,lorra"])
    with pytest.raises(SystemExit, match="got lorra"):
        command.main()


def test_steps_are_timed_over_and_over_and_of_these_settings_only() -> None:
    trials = command.steps_to_time(["lora", "bias"])
    assert len(trials) == command.ROUNDS * 2 * len(plan.TASKS) * len(plan.SIZES)
    assert len(set(trials)) * command.ROUNDS == len(trials)
    assert trials[: len(set(trials))] == trials[len(set(trials)) :]
    rows = [_row("lora", "small", 1e-3, 0, 0.2)]
    timed = [{**rows[0], "step_s": seconds} for seconds in ([0.1, 0.3], [0.2])]
    other = {**timed[0], "settings": {"steps": 1}, "step_s": [9.0]}
    assert summary.step_times(rows, [*timed, other]) == {("lora", "small", "semantic"): 0.2}
    assert summary.step_times([], timed) == {}


@pytest.mark.slow
def test_a_trial_on_mri(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    small = plan.Settings(steps=2, batch_size=1, max_cases=6, test_every=9)
    one = plan.Trial("adapter", "small", "semantic", 1e-3, 0)
    found = trial.train_trial(one, small, shared_data("msd_hippocampus"), tmp_path)
    assert 0 <= found["dice"] < 1
    assert 0 < found["trained_encoder"] < found["trained"]
    assert found["step_s"] > 0
    assert len(trial.time_steps(small, shared_data("msd_hippocampus"), tmp_path, one)) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["features"]
