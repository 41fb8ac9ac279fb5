"""The benchmark of few labels: cells, rows, what is measured again, and pages with gaps."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.few_labels import __main__ as command
from benchmarks.few_labels import domains, page, plan, rows, scores, trial
from benchmarks.few_labels.arms import ARMS, BASELINE, CANDIDATES
from benchmarks.few_labels.domains import DOMAINS, cluster_of, fuseg_groups
from benchmarks.few_labels.page import grouped
from benchmarks.few_labels.plan import LARGE, SMALL, Cell
from samadapt.config.compose import compose
from samadapt.data.splits import listed_names

COLUMNS = ["case", "class", *trial.SCORES]


def row_of(cell: Cell, dice: float = 0.7, cases: int = 9, **more: Any) -> dict[str, Any]:
    lines = [[f"c{n}", "gold", dice + 0.01 * (n % 3 - 1), 0.5, 3.0, 0.8] for n in range(cases)]
    found = {"dice": dice, "iou": 0.5, "hd95": 3.0, "nsd": 0.8, "unit": "px", "cpu_seconds": 510.0}
    found["training_cpu_seconds"] = 470.0
    named = {**vars(cell), "digest": cell.digest, "commit": "abc", "processor": "one"}
    base = [[*line[:2], 0.4, *line[3:]] for line in lines]
    zero = {"dice": 0.4, "iou": 0.3, "hd95": 9.0, "nsd": 0.5, "per_case": base}
    return {**named, **found, "columns": COLUMNS, "per_case": lines, "zero_shot": zero, **more}


def test_cells_are_unique_and_small_budgets_come_first() -> None:
    planned = plan.cells()
    assert len(planned) == len(set(planned))
    assert {cell.budget for cell in planned[:-10]} == {SMALL}
    assert planned[0] == Cell(BASELINE, "msd_hippocampus", 5, 0, SMALL)
    assert [cell.budget for cell in planned] == sorted(cell.budget for cell in planned)
    middle = [c for c in planned if c.domain == "fuseg" and c.arm == "lora"]
    assert sorted((c.labels, c.draw) for c in middle) == [(3, 0), (5, 0), (5, 1), (5, 2), (10, 0)]


def test_the_better_new_arm_gets_the_large_budget_when_both_are_measured() -> None:
    assert {c.arm for c in plan.cells() if c.budget == LARGE} == {BASELINE}
    found = [
        row_of(Cell(arm, "msd_hippocampus", 5, draw, SMALL), dice)
        for arm, dice in (("frozen", 0.80), ("lora", 0.82))
        for draw in range(plan.SEEDS)
    ]
    assert plan.better_arm(found[:-1]) is None
    assert plan.better_arm(found) == "lora"
    large = [c for c in plan.cells(found) if c.budget == LARGE]
    assert {c.arm for c in large} == {BASELINE, "lora"}
    assert sorted((c.labels, c.draw) for c in large if c.arm == "lora") == [
        (5, 0), (5, 1), (5, 2), (20, 0), (160, 0)
    ]  # fmt: skip


def test_a_cell_is_measured_again_when_its_keys_change(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("lora", "fuseg", 5, 0, SMALL)
    row = row_of(cell)
    assert plan.missing([cell], [row]) == []
    changed = replace(ARMS["lora"], keys=lambda domain: ("train.ema=0.9",))
    monkeypatch.setitem(ARMS, "lora", changed)
    assert plan.missing([cell], [row]) == [cell]


def test_a_cell_is_measured_again_when_its_recipe_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "new.yaml"
    arm = replace(ARMS["lora"], recipe=lambda domain: str(recipe))
    monkeypatch.setitem(ARMS, "lora", arm)
    digests = []
    for text in ("seed: 0", "# a comment\nseed: 0", "seed: 1"):
        recipe.write_text(text, encoding="utf-8")
        plan._digest.cache_clear()
        digests.append(Cell("lora", "fuseg", 5, 0, SMALL).digest)
    assert digests[0] == digests[1] != digests[2]


def test_held_out_cases_are_whole_patients() -> None:
    for domain in DOMAINS.values():
        names = listed_names(domain.held_out_file)
        assert names == sorted(set(names))
        assert (Path(domains.FOLDER) / "held_out" / f"{domain.name}.txt").is_file()
    held_out = set(listed_names(DOMAINS["fuseg"].held_out_file))
    groups = fuseg_groups()
    assert sum(map(len, groups.values())) == len({n for names in groups.values() for n in names})
    for number, names in enumerate(groups.values()):
        assert set(names) <= held_out or not set(names) & held_out
        assert bool(set(names) & held_out) is (number >= 2 and number % 2 == 0)


def test_the_shared_data_are_divided_by_patient(shared_data) -> None:
    for domain in DOMAINS.values():
        data = shared_data(domain.name).parent
        names = domain.case_names(data)
        held_out = set(listed_names(domain.held_out_file))
        assert held_out < set(names)
        pool = [name for name in names if name not in held_out]
        patients = {domain.patient_of(name) for name in pool}
        assert not patients & {domain.patient_of(name) for name in held_out}
        most = len(patients) if domain.counts_patients else len(pool)
        assert domain.labels[-1] <= most, domain.name
        counts = [domain.training_cases(data, labels, 0) for labels in domain.labels]
        assert counts == sorted(counts)
        assert counts[-1] <= len(pool)


def test_patients_are_counted_in_cases(tmp_path: Path) -> None:
    (tmp_path / "acdc" / "imagesTr").mkdir(parents=True)
    for patient in ("001", "002", "003"):
        for frame in ("01", "12")[: 1 if patient == "002" else 2]:
            name = f"patient{patient}_frame{frame}.nii.gz"
            (tmp_path / "acdc" / "imagesTr" / name).touch()
    acdc = DOMAINS["acdc"]
    counts = {draw: acdc.training_cases(tmp_path, 1, draw) for draw in range(6)}
    assert set(counts.values()) <= {1, 2}  # patient 001 is held out, 002 has one frame
    assert len(set(counts.values())) == 2
    assert acdc.training_cases(tmp_path, 2, 0) == 3
    with pytest.raises(FileNotFoundError, match="expected a folder imagesTr or images"):
        DOMAINS["fuseg"].case_names(tmp_path)


def test_the_arm_today_has_the_recipes_of_its_time() -> None:
    arm = ARMS["today"]
    for domain in DOMAINS.values():
        path = domains.FOLDER / arm.recipe(domain)
        config = compose(str(path), [*domain.keys, *arm.keys(domain), "data.root=x"])
        assert config.prompts.name == "semantic"
        assert config.train.decoder_lr == 2e-3


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_composes_for_every_data_set(arm: str) -> None:
    for domain in DOMAINS:
        recipe, *keys = Cell(arm, domain, DOMAINS[domain].middle, 1, SMALL).keys
        path = plan.recipe_file(recipe.partition("=")[2])
        config = compose(str(path), [*keys, "data.root=x"])
        assert (config.train.steps, config.train.max_cpu_seconds) == (None, SMALL)
        assert config.prompts.name == ("box" if ARMS[arm].has_boxes else "semantic")
        assert (config.baseline.name == "unet") is (arm == BASELINE)
        assert (config.head.name == "unet") is (arm in CANDIDATES)


def test_rows_are_appended_after_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert rows.read(path) == []
    rows.append({"a": 1}, path)
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"b": ')
    rows.append({"c": "ü"}, path)
    assert rows.read(path) == [{"a": 1}, {"c": "ü"}]


def given(tmp_path: Path, **more: Any) -> argparse.Namespace:
    values = {"data": tmp_path, "work": tmp_path / "work", "limit": None, "hours": None}
    values |= {"budget": None, "arms": "unet,lora", "domains": "fuseg"}
    return argparse.Namespace(**values | {"results": tmp_path / "rows.jsonl"} | more)


def test_a_stopped_benchmark_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[Cell] = []

    def train(cell: Cell, data: Path, work: Path) -> dict[str, Any]:
        if cell.arm == "lora" and cell.draw == 1:
            raise trial.RefusedError("samadapt: error: baseline: no such key")
        trained.append(cell)
        return row_of(cell)

    monkeypatch.setattr(command, "run_cell", train)
    command.run(given(tmp_path, limit=3))
    assert len(trained) == 3
    command.run(given(tmp_path))
    assert len(trained) == len(set(trained)) == 9
    assert "left for later: samadapt: error: baseline: no such key" in capsys.readouterr().out
    command.run(given(tmp_path))
    assert len(trained) == 9
    planned = command.chosen(given(tmp_path))
    assert [c.draw for c in plan.missing(planned, rows.read(tmp_path / "rows.jsonl"))] == [1]
    command.status(tmp_path / "rows.jsonl", planned)
    assert "9 of 10 cells" in capsys.readouterr().out


def test_a_cell_in_work_elsewhere_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run_cell", lambda cell, data, work: row_of(cell))
    options = given(tmp_path, limit=1)
    first = command.chosen(options)[0]
    with rows.lock(f"{options.results.resolve()}-{first}"):
        command.run(options)
    assert "in work elsewhere" in capsys.readouterr().out
    assert not first.is_in(rows.read(options.results)[0])


def test_scores_are_averaged_over_draws_and_drawn_by_patient() -> None:
    cell = Cell("lora", "acdc", 2, 0, SMALL)
    lines = [[f"p{n // 2}_f{n % 2}", "heart", 0.1 * (n // 2), 0.5, 1.0, 1.0] for n in range(12)]
    one = {**row_of(cell), "per_case": lines}
    other = {**one, "per_case": [[*line[:2], line[2] + 0.2, *line[3:]] for line in lines]}

    def patient(case: str) -> str:
        return case.partition("_")[0]

    found = scores.mean_of([one, other], "dice", patient)
    assert found.value == pytest.approx(0.35)
    assert found.interval is not None
    # Two frames of a patient are no two independent cases, so the interval is wider.
    alone = scores.mean_of([one, other], "dice", str)
    assert alone.interval is not None
    assert found.interval[1] - found.interval[0] > 1.2 * (alone.interval[1] - alone.interval[0])
    gain = scores.difference_of([other], [one], "dice", patient)
    assert gain.value == pytest.approx(0.2)
    assert gain.p == pytest.approx(2 / 2**6)
    assert scores.difference_of([one], [one], "dice", patient).p is None


def test_a_mean_is_over_classes_of_means_over_cases() -> None:
    row = {"columns": COLUMNS, "per_case": [
        ["a", "x", 1.0, 0, 0, 0], ["b", "x", 0.0, 0, 0, 0], ["a", "y", 0.2, 0, 0, 0],
        ["b", "y", None, 0, 0, 0],
    ]}  # fmt: skip
    assert scores.mean_of([row], "dice", str).value == pytest.approx((0.5 + 0.2) / 2)
    assert math.isnan(scores.mean_of([{**row, "per_case": []}], "dice", str).value)
    assert scores.mean_of([row], "dice", lambda case: "one").interval is None


PLACE = ("unet", "fuseg", 5, SMALL)
MARKED = f"# Few labels\n\n{page.START}\n{page.END}\n\nmore\n"


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``written(rows)``: the page that is made of them."""
    monkeypatch.setattr(page, "FIGURE", tmp_path / "figure.png")
    text = tmp_path / "page.md"
    text.write_text(MARKED, encoding="utf-8")

    def write(found: list[dict[str, Any]]) -> str:
        path = tmp_path / "rows.jsonl"
        path.unlink(missing_ok=True)
        for row in found:
            rows.append(row, path)
        assert page.write(path, page=text, check=True) == 1
        assert page.write(path, page=text) == 0
        assert page.write(path, page=text, check=True) == 0
        return text.read_text(encoding="utf-8")

    return write


def test_a_page_without_rows_has_no_tables(written, tmp_path: Path) -> None:
    text = written([])
    assert text.startswith("# Few labels")
    assert text.endswith("more\n")
    assert "0 of " in text
    assert "|" not in text.partition("0 of ")[2]
    assert "figure.png" not in text
    assert not (tmp_path / "figure.png").exists()


def line_of(text: str, title: str, start: str) -> str:
    below = text.partition(title)[2]
    return next(line for line in below.splitlines() if line.startswith(start))


def test_a_page_shows_means_differences_and_what_lacks(written) -> None:
    found = [row_of(Cell("unet", "fuseg", 5, draw, SMALL), 0.4) for draw in range(3)]
    found += [row_of(Cell("lora", "fuseg", 5, draw, SMALL), 0.7 + 0.01 * draw) for draw in (0, 1)]
    found.append(row_of(Cell("box", "fuseg", 5, 0, SMALL), 0.9))
    stale = row_of(Cell("today", "fuseg", 5, 0, SMALL), 0.1) | {"digest": "of other keys"}
    failed = row_of(Cell("today", "fuseg", 5, 1, SMALL)) | {"error": "out of memory"}
    text = written([*found, stale, failed])
    dice = line_of(text, "### Dice after 480", "| fuseg | 5 pictures")
    assert "0.400 [" in dice
    assert "(2 of 3 draws)" in dice
    assert dice.count("not measured yet") == 2
    gain = line_of(text, "### Dice minus that", "| fuseg | 5 pictures")
    assert "+0.305 [" in gain
    assert "p = " in gain
    assert "9.0" not in dice
    assert "3.0 / 0.800" in line_of(text, "### Distances", "| fuseg")
    spread = line_of(text, "### Spread", "| fuseg")
    assert "| 0.000 |" in spread
    assert "not measured yet" in spread  # two of three draws say nothing yet
    boxes = line_of(text, "### With box prompts", "| fuseg")
    assert "0.900 [" in boxes
    assert "+0.500 [" in boxes
    assert "+0.305 Dice from the U-Net on average over 1 data sets" in text
    assert "below it in none" in text
    assert "| acdc" not in text  # nothing of it is measured
    assert "figure.png" not in text
    assert "U-Net from scratch 470 (510)" in text


def test_a_figure_comes_with_a_fifth_of_the_cells(written, monkeypatch, tmp_path: Path) -> None:
    found = [row_of(Cell("unet", "fuseg", 5, draw, SMALL), 0.4) for draw in range(3)]
    monkeypatch.setattr(page, "grouped", lambda rows: (grouped(rows)[0], {PLACE: planned}))
    planned = 16
    assert "figure.png" not in written(found)
    planned = 15
    assert "figure.png" in written(found)
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_the_page_of_the_docs_is_current() -> None:
    assert page.write(check=True) == 0


def test_a_look_alike_is_in_its_group() -> None:
    assert cluster_of(DOMAINS["fuseg"], "0190") == "spotted skin"
    assert cluster_of(DOMAINS["acdc"], "patient001_frame12") == "patient001"
    assert cluster_of(DOMAINS["kvasir_polyps"], "cju1") == "cju1"


def test_the_command_line_of_a_cell(tmp_path: Path) -> None:
    (tmp_path / "kvasir_polyps" / "images").mkdir(parents=True)
    cell = Cell("today", "kvasir_polyps", 5, 2, SMALL)
    said = trial.arguments(cell, tmp_path, tmp_path / "work")
    assert "data.train_cases=5" in said
    assert {"data.draw=2", "seed=2", "train.max_cpu_seconds=480"} <= set(said)
    assert said[0].endswith("today/photos.yaml")
    # Neither the data nor the work folder decides whether a row is of this cell.
    assert not any(str(tmp_path) in key for key in cell.keys)
    assert set(CANDIDATES) < set(ARMS)


@pytest.mark.slow
def test_a_cell_is_run_as_a_user_would(
    tmp_path: Path, make_pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_pictures(8, name="kvasir_polyps")
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("p0\np5\n", encoding="utf-8")
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        "model: {name: tiny}\ndata: {name: folder, intensity: rgb}\nprompts: {name: semantic}\n"
        "train: {batch_size: 2, warmup_steps: 0}\nprecision: fp32\ndevice: cpu\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(domains.Domain, "held_out_file", held_out)
    arm = replace(ARMS["lora"], recipe=lambda domain: str(recipe), keys=lambda domain: ())
    monkeypatch.setitem(ARMS, "lora", arm)
    cell = Cell("lora", "kvasir_polyps", 3, 0, 2)
    row = trial.run_cell(cell, root.parent, tmp_path / "work")
    assert "error" not in row, row["error"]
    assert json.loads(json.dumps(row)) == row
    assert {line[0] for line in row["per_case"]} == {"p0", "p5"}
    assert len(row["labelled"]) == 3
    # The last step ends before the budget does, so a little of it is left.
    assert row["cpu_seconds"] > row["training_cpu_seconds"] > 1
    assert np.isfinite(row["dice"])
    assert "per_case" in row["zero_shot"]
    assert list((tmp_path / "work").iterdir()) == []
    assert plan.missing([cell], [row]) == []
    Image.new("L", (4, 4)).save(root / "images" / "broken.png")
    with pytest.raises(trial.RefusedError):
        trial.run_cell(cell, root.parent, tmp_path / "work")
