"""The contact sheet: what training would see, drawn."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from samadapt.cli import main
from samadapt.config.compose import compose
from samadapt.reports import contact_sheet as sheet
from samadapt.reports.overlays import COLOURS
from samadapt.runs.finetune import finetune
from samadapt.runs.training_preview import draw_training_preview

AUGMENT = "train.augment=[flip,crop]"


@pytest.fixture
def drawn(monkeypatch):
    """The tiles of the last sheet."""
    tiles = []
    draw = sheet.draw_contact_sheet

    def listen(given, classes, heading, path):
        tiles[:] = given
        return draw(given, classes, heading, path)

    monkeypatch.setattr(sheet, "draw_contact_sheet", listen)
    return tiles


SLOW = [[], [AUGMENT], ["prompts=semantic"]]


@pytest.mark.parametrize(
    "options",
    [
        [AUGMENT, "cache.variants=3"],
        ["prompts=point"],
        *(pytest.param(options, marks=pytest.mark.slow) for options in SLOW),
    ],
)
def test_the_tiles_are_what_the_first_steps_train_on(
    make_pictures, recipe, drawn, monkeypatch, tmp_path, options
):
    from samadapt.training import batches

    trained = []
    make = batches.make_batch

    def listen(samples, *others, **options):
        trained.extend(samples)
        return make(samples, *others, **options)

    monkeypatch.setattr("samadapt.runs.train_adapter.make_batch", listen)
    config = compose(str(recipe), [f"data.root={make_pictures(9)}", "train.steps=2", *options])
    names = draw_training_preview(config, 4, tmp_path / "sheet.png")
    finetune(config)
    assert names == [f"{sample.case} · slice {sample.index}" for sample in trained[:4]]
    for tile, sample in zip(drawn[:4], trained[:4], strict=True):
        assert np.array_equal(tile.image, sample.image)
        assert np.array_equal(tile.labels, sample.labels)
        kinds = (tile.boxes is not None, tile.points is not None)
        wanted = {"point": (False, True), "semantic": (False, False)}
        assert kinds == wanted.get(config.prompts.name, (True, False))
        assert tile.note == ("" if config.prompts.name == "semantic" else "1 of 1 object")


def test_a_crowded_slice_says_how_many_of_its_objects_train(recipe, drawn, tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / "cells" / folder).mkdir(parents=True)
    for number in range(3):
        mask = np.zeros((40, 40), np.uint8)
        mask[2::8, 2::8] = mask[3::8, 2::8] = 1
        values = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "cells" / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "cells" / "masks" / f"{number}.png")
    options = [f"data.root={tmp_path / 'cells'}", "prompts.max_objects=6"]
    draw_training_preview(compose(str(recipe), options), 2, tmp_path / "sheet.png")
    assert [tile.note for tile in drawn] == ["6 of 25 objects"] * 2
    assert [len(tile.boxes) for tile in drawn] == [6, 6]


def test_the_sheet_from_the_command_line(make_scans, recipe, tmp_path, capsys):
    output = tmp_path / "new" / "seen.png"
    arguments = ["show", f"recipe={recipe}", "data=nifti", f"data.root={make_scans()}"]
    arguments += ["data.neighbours=1", "images=5", f"output={output}"]
    assert main(arguments) == 0
    assert f"{output}: 5 slices" in capsys.readouterr().out
    with Image.open(output) as file:
        picture = np.asarray(file.convert("RGB")).astype(int)
    assert picture.shape[1] > picture.shape[0] * 0.8
    for colour in COLOURS[:2]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(picture - rgb).max(axis=2) < 20).sum() > 50, "outlines in class colours"
    assert [path.name for path in output.parent.iterdir()] == ["seen.png"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["images"]) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images=0"], "images: expected a whole number from 1 to 400; got '0'"),
        (["images=four"], "images: expected a whole number"),
        (["output=a.png"], "add images=16"),
        (["images=2", "output=a.jpg"], "expected a file name ending in .png"),
        (["images=2", "data.root=/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_drawn_is_said(recipe, capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["show", f"recipe={recipe}", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_odd_names_and_shapes(tmp_path):
    labels = np.zeros((90, 7), np.int16)
    labels[3:80, 2:5] = 9
    image = np.zeros((90, 7, 3), np.uint8)
    names = [f"_$x^2$ {'very ' * 20}long", "", "ä"]
    slices = [sheet.SheetSlice(name, image, labels) for name in names]
    curves = np.array([[[2, 4], [4, 60], [1, 2], [6, 2]]], float)
    inside = np.array([[1, 1, 0, 0]])
    drawn = replace(slices[0], points=curves, point_labels=inside, scribbled=True)
    slices += [drawn, replace(slices[0], masks=labels[None] > 0)]
    path = sheet.draw_contact_sheet(
        slices,
        [f"_class {number}" for number in range(9)],
        ["$\\frac{"],
        tmp_path / "odd.png",
    )
    with Image.open(path) as picture:
        assert picture.size[0] > 300
