"""A folder of predictions is continued, and never mixed."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from samadapt.errors import ConfigError, DataError
from samadapt.inference import folder_work, planned_predictions
from samadapt.inference.files import plan_prediction
from samadapt.inference.folder_work import FolderWork, Part
from samadapt.inference.options import PredictionOptions
from samadapt.inference.output_settings import check_processes, refuse_single_image
from samadapt.inference.prediction_store import LONGEST, PredictionStore, recorded_options
from samadapt.system import processes
from samadapt.system.atomic import PREFIX
from samadapt.system.launchers import Place
from samadapt.system.locks import HeldError

OPTIONS = PredictionOptions(fill_holes=True, objects=True, uncertainty=True, probabilities=True)


@pytest.fixture
def folder(tmp_path):
    """Three pictures whose colours are the classes of the oracle."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(("a", "b", "c"), start=1):
        labels = np.zeros((9, 15), np.uint8)
        labels[1:4, 2 : 4 + number] = number
        Image.fromarray(labels * 85).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def predict(make_oracle, make_regions, folder, tmp_path):
    """``predict(output, options)``: one call of a prediction of the folder."""
    segmenters = {False: make_oracle(), True: make_regions()}

    def call(output="out", options=OPTIONS, *, overwrite=False, overlapping=False, part=None):
        segmenter = segmenters[overlapping]
        plan = plan_prediction(str(folder), tmp_path / output, None)
        settings = segmenter.settings_of(options)
        with FolderWork(plan, "predict", part) as work:
            store = PredictionStore(work, settings, options, overwrite=overwrite)
            return segmenter.predict_plan(work.own, options, store=store)

    return call


def skipped(rows):
    return [row["input"].stem for row in rows if row.get("skipped")]


def without(row):
    return {key: value for key, value in row.items() if key != "skipped"}


def content(tmp_path, output):
    """What is in the files of an output, without its record."""
    if output.endswith(".json"):
        return (tmp_path / output).read_bytes()
    files = sorted((tmp_path / output).iterdir())
    return {path.name: path.read_bytes() for path in files if "predict_" not in path.name}


@pytest.mark.parametrize("output", ["out", "out.json"])
def test_what_is_done_is_skipped_with_all_that_was_found(predict, tmp_path, output):
    first = predict(output)
    assert skipped(first) == []
    assert all(row["objects"] for row in first)
    before = content(tmp_path, output)
    again = predict(output)
    assert skipped(again) == ["a", "b", "c"]
    assert [without(row) for row in again] == first
    assert content(tmp_path, output) == before


@pytest.mark.parametrize("overlapping", [False, True])
def test_only_what_is_missing_or_changed_is_done(predict, folder, tmp_path, overlapping):
    whole = predict("whole", overlapping=overlapping)
    rows = predict(overlapping=overlapping)
    assert len(rows) == len(whole)
    masks = rows[0].get("masks", {}).values() or [rows[0]["output"]]
    list(masks)[-1].unlink()
    assert skipped(predict(overlapping=overlapping)) == ["b", "c"]
    rows[1]["uncertainty"].unlink()
    assert skipped(predict(overlapping=overlapping)) == ["a", "c"]
    masks = rows[2].get("masks", {}).values() or [rows[2]["output"]]
    next(iter(masks)).write_bytes(b"of another program")
    assert skipped(predict(overlapping=overlapping)) == ["a", "b"]
    assert content(tmp_path, "out") == content(tmp_path, "whole")
    os.utime(folder / "b.png", (1e9, 1e9))
    assert skipped(predict(overlapping=overlapping)) == ["a", "c"]


def test_an_input_that_changed_is_done_anew_in_a_coco_file(predict, folder, tmp_path):
    predict("out.json")
    Image.fromarray(np.zeros((9, 15), np.uint8)).save(folder / "a.png")
    rows = predict("out.json")
    assert skipped(rows) == ["b", "c"]
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [image["id"] for image in written["images"]] == [1, 2, 3]
    assert [one["image_id"] for one in written["annotations"]] == [2, 3]


def test_a_mask_that_was_drawn_anew_counts(folder, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in folder.iterdir():
        Image.open(path).save(masks / path.name)
    options = PredictionOptions(masks=str(masks))
    plan = plan_prediction(str(folder), tmp_path / "out", None)
    work = FolderWork(plan, "predict")
    store = PredictionStore(work, {"options": {}}, options, overwrite=False)
    before = [store.inputs(planned) for planned in plan.images]
    os.utime(masks / "c.png", (1e9, 1e9))
    after = [store.inputs(planned) for planned in plan.images]
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, True, False]


def test_other_options_are_refused_and_overwrite_does_all_anew(predict, tmp_path):
    predict()
    other = replace(OPTIONS, fill_holes=False, tta="flip")
    with pytest.raises(DataError, match=r"tta: None before, flip now.*fill_holes: True before"):
        predict(options=other)
    assert skipped(predict()) == ["a", "b", "c"]
    assert skipped(predict(options=other, overwrite=True)) == []
    assert skipped(predict(options=other)) == ["a", "b", "c"]
    (tmp_path / "out" / "predict_settings.yaml").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="it is broken"):
        predict(options=other)


def test_outputs_without_a_record_are_written_over_as_before(predict, tmp_path):
    whole = predict("whole")
    target = tmp_path / "out"
    target.mkdir()
    (target / "a.png").write_bytes(b"of an earlier version")
    assert skipped(predict()) == []
    assert content(tmp_path, "out") == content(tmp_path, "whole")
    assert len(whole) == 3


def test_a_failed_image_is_tried_again(predict, folder):
    good = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(b"no picture")
    rows = predict()
    assert "b.png" in rows[1]["error"]
    rows = predict()
    assert skipped(rows) == ["a", "c"]
    assert "b.png" in rows[1]["error"]
    (folder / "b.png").write_bytes(good)
    assert skipped(predict()) == ["a", "c"]
    assert skipped(predict()) == ["a", "b", "c"]


def test_options_are_recorded_as_plain_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recorded_options(PredictionOptions()) == {}
    short = {3: [[1, 1, 9, 8]]}
    options = PredictionOptions(boxes=short, masks="rough.png", tile=64, labels=["x", "y"])
    assert recorded_options(options) == {
        "boxes": '{"3": [[1, 1, 9, 8]]}',
        "labels": '["x", "y"]',
        "masks": str(tmp_path / "rough.png"),
        "tile": 64,
    }
    points = [[number, number] for number in range(100)]
    found = recorded_options(PredictionOptions(points=points))["points"]
    assert found.startswith("sha256 ")
    assert len(found) < LONGEST
    points[-1] = [0, 0]
    assert recorded_options(PredictionOptions(points=points))["points"] != found


def test_several_processes_need_a_folder_and_agree(folder, tmp_path, monkeypatch):
    plan = plan_prediction(str(folder / "a.png"), tmp_path / "a.png", None)
    with pytest.raises(ConfigError, match=r"only_part=1 .* a single image"):
        refuse_single_image(FolderWork(plan, "predict", Part(1, 3)))
    refuse_single_image(FolderWork(plan, "predict"))
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(ConfigError, match=r"one of 2 processes.*a single image"):
        refuse_single_image(FolderWork(plan, "predict"))
    plan = plan_prediction(str(folder), tmp_path / "out", None)
    refuse_single_image(FolderWork(plan, "predict"))
    monkeypatch.setattr(processes, "gather", lambda facts: [facts, {**facts, "images": "2"}])
    with pytest.raises(ConfigError, match="images: 3 in process 0, 2 in process 1"):
        check_processes(plan, {"options": {}})


def test_the_share_of_a_process_and_the_rows_of_all(predict, folder, monkeypatch, tmp_path):
    """Each process does every n-th missing file; rows are in the order of the folder."""
    predict()
    for name in ("a.png", "c.png"):
        (tmp_path / "out" / name).unlink()
    monkeypatch.setattr(processes, "_place", Place(1, 2))
    theirs = [{"output": tmp_path / "out" / "a.png", "by": "first"}]
    sent = []

    def gather(value):
        sent.append(value)
        is_rows = isinstance(value, list)
        return [theirs, value] if is_rows else [value, value]

    monkeypatch.setattr(processes, "gather", gather)
    monkeypatch.setattr(processes, "by_first", lambda work: work())
    rows = predict()
    assert [row.get("by") for row in rows] == ["first", None, None]
    assert [row["input"].name for row in rows] == ["a.png", "b.png", "c.png"]
    assert skipped(rows) == ["b"]
    assert [one["output"].name for one in sent[0]] == ["c.png"]


def stopped_at(monkeypatch, name):
    """Stop the next call when it comes to an image."""
    segment = planned_predictions._predict

    def stop(predictor, planned, *others, **more):
        if planned.image.stem == name:
            monkeypatch.setattr(planned_predictions, "_predict", segment)
            raise KeyboardInterrupt
        return segment(predictor, planned, *others, **more)

    monkeypatch.setattr(planned_predictions, "_predict", stop)


@pytest.mark.parametrize("output", ["out", "out.json"])
def test_parts_in_any_order_make_the_outputs_of_one_call(predict, tmp_path, output):
    whole = predict(output.replace("out", "whole"))
    names = []
    for index in (2, 0, 3, 1):
        assert not (tmp_path / "out.json").exists()
        rows = predict(output, part=Part(index, 4))
        names.append([row["input"].stem for row in rows])
        assert all("coco" not in row for row in rows)
    assert names == [["c"], ["a"], [], ["b"]]
    assert content(tmp_path, output) == content(tmp_path, output.replace("out", "whole"))
    again = predict(output)
    assert skipped(again) == ["a", "b", "c"]
    assert [row["voxels"] for row in again] == [row["voxels"] for row in whole]
    assert not list(tmp_path.rglob("part_*"))
    assert not list(tmp_path.rglob("*_jobs"))


@pytest.mark.parametrize("output", ["out", "out.json"])
def test_a_stopped_part_goes_on_and_collects(predict, tmp_path, monkeypatch, output):
    predict(output.replace("out", "whole"))
    stopped_at(monkeypatch, "c")
    with pytest.raises(KeyboardInterrupt):
        predict(output, part=Part(0, 2))
    assert skipped(predict(output, part=Part(1, 2))) == []
    assert len(list(tmp_path.rglob("part_*.jsonl"))) == 2  # nobody has collected them
    assert skipped(predict(output, part=Part(0, 2))) == ["a"]
    assert content(tmp_path, output) == content(tmp_path, output.replace("out", "whole"))
    assert not list(tmp_path.rglob("part_*.jsonl"))


def test_a_call_for_the_whole_goes_on_from_the_lines_of_parts(predict, tmp_path, monkeypatch):
    predict("whole.json")
    stopped_at(monkeypatch, "c")
    with pytest.raises(KeyboardInterrupt):
        predict("out.json", part=Part(0, 2))
    assert skipped(predict("out.json", part=Part(2, 3))) == []  # another division
    assert skipped(predict("out.json")) == ["a", "c"]
    assert content(tmp_path, "out.json") == content(tmp_path, "whole.json")


def test_a_part_at_work_is_left_alone(predict, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_work, "BEGINS_WITHIN", {True: 0.2, False: 0.0})
    predict(part=Part(0, 2))
    plan = plan_prediction(str(folder), tmp_path / "out", None)
    lines = tmp_path / "out" / "predict_jobs" / "part_0_of_2.jsonl"
    half, other = (tmp_path / "out" / f"{PREFIX}0a1b2c3d-{name}.png" for name in ("a", "b"))
    with FolderWork(plan, "predict", Part(0, 2)) as work:
        with work.begins(), pytest.raises(HeldError, match="in use by process"):
            predict(part=Part(1, 2))  # it waits for a call that begins
        with lines.open("ab") as stream:
            stream.write(b'{"image": ')
        half.write_bytes(b"half")
        with pytest.raises(HeldError, match="part 0 of 2 is at work in process"):
            predict()
        with pytest.raises(HeldError, match="part 0 of 2: in use by process"):
            predict(part=Part(0, 2))
        before = lines.read_bytes()
        predict(part=Part(1, 2))
        assert lines.read_bytes() == before
        assert half.is_file()
    other.write_bytes(b"half")
    assert skipped(predict(part=Part(0, 2))) == ["a", "c"]
    assert not half.exists()
    assert not other.exists()
    assert skipped(predict()) == ["a", "b", "c"]


def test_a_call_for_the_whole_keeps_parts_away(predict, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_work, "BEGINS_WITHIN", {True: 0.2, False: 0.0})
    plan = plan_prediction(str(folder), tmp_path / "out", None)
    with FolderWork(plan, "predict") as work:
        with work.begins():
            pass
        for part in (None, Part(0, 2)):
            with pytest.raises(HeldError, match="in use by process"):
                predict(part=part)
    assert skipped(predict()) == []


def test_failed_images_do_not_keep_parts_from_ending(predict, folder, tmp_path):
    predict("out.json")
    predict("new.json", part=Part(0, 2))
    good = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(b"no picture")
    (row,) = predict("new.json", part=Part(1, 2))
    assert "b.png" in row["error"]
    written = json.loads((tmp_path / "new.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in written["images"]] == ["a.png", "c.png"]
    (folder / "b.png").write_bytes(good)
    assert skipped(predict("new.json", part=Part(1, 2))) == []
    assert content(tmp_path, "new.json") == content(tmp_path, "out.json")


def test_parts_of_other_options_are_refused(predict):
    predict(part=Part(0, 2))
    with pytest.raises(DataError, match="tta: None before, flip now"):
        predict(options=replace(OPTIONS, tta="flip"), part=Part(1, 2))


def test_images_that_come_while_parts_work_are_named_and_done_later(predict, folder, capsys):
    predict("out.json", part=Part(0, 2))
    good = (folder / "a.png").read_bytes()
    (folder / "d.png").write_bytes(good)
    predict("out.json", part=Part(1, 2))
    assert "images were added or removed since other parts ended" in capsys.readouterr().err
    assert skipped(predict("out.json")) == ["a", "b", "c", "d"]
