"""head=instances in a whole run: trained, scored by objects, saved, predicted with and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import samadapt
from samadapt.adapters.record import RECORD, UNET_RECORD
from samadapt.cli import main
from samadapt.errors import AdapterError, ConfigError, DataError
from samadapt.export import export_adapter
from samadapt.export.onnx import Onnx
from samadapt.training.instance_distances import object_distances

HEAD = ("head=instances", "head.width=8", "head.scales=3", "train.augment=[flip]")
LEARNING = (
    *("baseline=unet", "baseline.filters=8", "baseline.batch_size=6", "baseline.lr=1e-2"),
    *("train.steps=120", "train.validate_cases=0"),
)
NUMBERED = ("data.instances=true", "data.classes=[cell]", "prompts=semantic")


@pytest.fixture
def cells(tmp_path):
    """Pictures of rectangles that touch, darker at the border, and masks that number them."""
    root = tmp_path / "cells"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for index in range(8):
        rng = np.random.default_rng(index)
        numbers = np.zeros((32, 48), np.uint16)
        row, column = rng.integers(2, 10, 2)
        for place in range(4):
            top, left = row + 12 * (place // 2), column + 10 * (place % 2)
            numbers[top : top + 8, left : left + 10] = 10 * place + 3
        image = rng.integers(0, 40, numbers.shape, dtype=np.uint8)
        image += (200 * object_distances(numbers.astype(np.int32))[1]).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"c{index}.png")
        Image.fromarray(numbers).save(root / "masks" / f"c{index}.png")
    return root


@pytest.fixture
def trained(cells, run, base_file):
    return run(cells, f"model.checkpoint={base_file}", *NUMBERED, *HEAD)


def test_a_run_is_scored_by_objects_and_records_how_they_are_separated(trained):
    record = json.loads((trained.adapter_dir / RECORD).read_text(encoding="utf-8"))
    assert record["head"]["name"] == "instances"
    assert (record["head"]["seed_height"], record["head"]["smoothing"]) == (0.1, 1.0)
    objects = trained.summary["adapted"]["instances"]
    assert objects["per_class"]["cell"]["true_objects"] == 8  # two held-out pictures of four
    assert trained.summary["adapted"]["dice"] is not None
    # The base gets the box of each object, so it finds as many.
    assert trained.summary["zero_shot"]["instances"]["per_class"]["cell"]["predicted_objects"] == 8
    assert trained.summary["zero_shot"]["prompt"]["objects"] == "component"
    assert any("box of each object" in note for note in trained.summary["notes"])
    card = (trained.adapter_dir / "README.md").read_text(encoding="utf-8")
    assert "separated by a watershed" in card
    assert "mAP" in (trained.run_dir / "report.html").read_text(encoding="utf-8")


def test_prediction_writes_the_numbers_that_the_data_layer_reads(
    trained, cells, base_file, tmp_path, capsys
):
    out = tmp_path / "out"
    keys = [f"adapter={trained.adapter_dir}", f"checkpoint={base_file}", "--json"]
    assert main(["predict", *keys, f"input={cells / 'images'}", f"output={out}"]) == 0
    rows = json.loads(capsys.readouterr().out)["files"]
    assert [row["instances"] for row in rows] == [
        str(out / f"c{n}_instances.png") for n in range(8)
    ]
    labels = np.asarray(Image.open(out / "c0.png"))
    numbers = np.asarray(Image.open(out / "c0_instances.png"))
    assert numbers.dtype == np.uint16
    assert np.array_equal(numbers > 0, labels > 0)

    segmenter = samadapt.load_adapter(trained.adapter_dir, checkpoint=base_file)
    picture = np.asarray(Image.open(cells / "images" / "c0.png"))
    found = segmenter.predict(picture, objects=True)
    assert np.array_equal(found.instances, numbers)
    assert len(found.objects) == numbers.max()
    assert [one.area for one in found.objects] == np.bincount(numbers.ravel())[1:].tolist()
    with pytest.raises(DataError, match="objects span slices"):
        segmenter._predictor(samadapt.inference.options.PredictionOptions()).segment(
            samadapt.data.types.Volume(np.zeros((20, 20, 3), np.uint8)),
            samadapt.inference.options.PredictionOptions(),
        )


def test_evaluation_agrees_with_the_run(trained, cells, base_file, capsys):
    keys = [f"adapter={trained.adapter_dir}", f"checkpoint={base_file}", f"data.root={cells}"]
    assert main(["evaluate", *keys, "precision=fp32", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["summary"]
    for state in ("zero_shot", "adapted"):
        before = trained.summary[state]["instances"]["per_class"]["cell"]
        after = again[state]["instances"]["per_class"]["cell"]
        assert after["predicted_objects"] == before["predicted_objects"]
        assert after["pq"] == pytest.approx(before["pq"], abs=1e-6)


def test_a_unet_predicts_and_records_the_same_maps(cells, run):
    result = run(cells, *NUMBERED, *HEAD, "baseline=unet", "baseline.filters=4")
    assert result.summary["adapted"]["instances"]["per_class"]["cell"]["true_objects"] == 8
    record = json.loads((result.adapter_dir / UNET_RECORD).read_text(encoding="utf-8"))
    assert record["head"] == {"name": "instances", "seed_height": 0.1, "smoothing": 1.0}
    assert record["method"]["maps"] == 3
    segmenter = samadapt.load_adapter(result.adapter_dir)
    picture = np.asarray(Image.open(cells / "images" / "c0.png"))
    found = segmenter.predict(picture)
    assert np.array_equal(found.instances > 0, found.labels > 0)


@pytest.mark.slow
def test_objects_that_touch_come_apart(cells, run):
    result = run(cells, *NUMBERED, *HEAD, *LEARNING)
    objects = result.summary["adapted"]["instances"]
    assert objects["per_class"]["cell"]["predicted_objects"] == 8  # as components they are 4
    assert objects["pq"] > 0.8
    segmenter = samadapt.load_adapter(result.adapter_dir)
    picture = np.asarray(Image.open(cells / "images" / "c0.png"))
    assert segmenter.predict(picture).instances.max() == 4


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            ("prompts=box", "data.instances=true"),
            "head=instances predicts classes without a prompt",
        ),
        (("prompts=semantic", "data.classes={a: 3, b: 13, c: 23, d: 33}"), "data.instances=true"),
    ],
)
def test_what_cannot_be_learned_is_refused(cells, run, keys, text):
    with pytest.raises(ConfigError, match=text):
        run(cells, *HEAD, *keys)


def test_volumes_are_refused(make_scans, run):
    keys = ("data=nifti", "prompts=semantic", "data.intensity=mri")
    with pytest.raises(ConfigError, match="whose objects span slices"):
        run(make_scans(), *HEAD, *keys)


def test_export_is_refused(trained, base_file, tmp_path):
    with pytest.raises(AdapterError, match="no format holds"):
        export_adapter(trained.adapter_dir, Onnx(), tmp_path / "out", checkpoint=base_file)


@pytest.mark.parametrize(
    ("change", "text"),
    [({"seed_height": 2}, "seed_height"), ({"smoothing": None}, "smoothing")],
)
def test_a_changed_record_is_refused(trained, refuses_head, change, text):
    refuses_head(trained.adapter_dir, change, text)


@pytest.mark.slow
@pytest.mark.parametrize("baseline", [(), ("baseline=unet", "baseline.filters=4")])
def test_a_stopped_run_ends_bit_equal(cells, base_file, resumes_bit_equal, baseline):
    options = [f"model.checkpoint={base_file}", *NUMBERED, *HEAD, *baseline]
    weights = "baseline/unet.safetensors" if baseline else "adapter/adapter_model.safetensors"
    resumes_bit_equal(cells, options, [weights, "eval/per_case.csv", "eval/objects.json"])


@pytest.mark.slow
def test_tiles_are_put_together_before_objects_are_separated(cells, run):
    tiled = run(cells, *NUMBERED, *HEAD, *LEARNING, "data.tile=32")
    objects = tiled.summary["adapted"]["instances"]["per_class"]["cell"]
    assert objects["true_objects"] == 8
    assert objects["predicted_objects"] <= 10  # an object in two tiles counts once
    segmenter = samadapt.load_adapter(tiled.adapter_dir)
    picture = np.asarray(Image.open(cells / "images" / "c0.png"))
    assert segmenter.predict(picture).instances.max() <= 5
