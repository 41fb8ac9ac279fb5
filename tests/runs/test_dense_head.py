"""head=unet in a whole run: trained, saved, evaluated, predicted with, resumed and refused."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import samadapt
from samadapt.adapters.record import RECORD, read_record
from samadapt.cli import main
from samadapt.config.compose import compose
from samadapt.errors import ConfigError
from samadapt.runs.finetune import finetune

DENSE = ("prompts=semantic", "head=unet", "head.width=8", "head.scales=3")


@pytest.fixture
def trained(make_pictures, run, base_file):
    return run(make_pictures(classes=2), f"model.checkpoint={base_file}", *DENSE)


def test_a_run_trains_scores_and_records_the_head(trained):
    record = json.loads((trained.adapter_dir / RECORD).read_text(encoding="utf-8"))
    assert record["head"] == {
        "name": "unet",
        "side": 40,  # the longest side of the pictures
        "width": 8,
        "scales": 3,
        "sam_logits": True,
        "channels": 3,
        "depth": 1,
        "patch": 1,
        "jitter": 0.0,
    }
    assert trained.summary["adapted"]["dice"] is not None
    assert "a decoder for classes" in (trained.adapter_dir / "README.md").read_text(
        encoding="utf-8"
    )


def test_prediction_and_evaluation_agree_with_the_run(trained, base_file, tmp_path, capsys):
    root = next(tmp_path.glob("pictures"))
    keys = [f"adapter={trained.adapter_dir}", f"data.root={root}", "precision=fp32", "--json"]
    assert main(["evaluate", *keys]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["summary"]["adapted"]["dice"] == pytest.approx(
        trained.summary["adapted"]["dice"], abs=1e-6
    )
    segmenter = samadapt.load_adapter(trained.adapter_dir, checkpoint=base_file)
    picture = np.asarray(Image.open(root / "images" / "p0.png"))
    labels = segmenter.segment(picture)
    assert labels.shape == picture.shape[:2]
    assert set(np.unique(labels)) <= {0, 1, 2}


def test_a_frozen_base_trains_the_head_alone(make_pictures, run, base_file):
    result = run(make_pictures(), f"model.checkpoint={base_file}", "peft=none", *DENSE)
    assert result.adapter_dir is not None
    record = json.loads((result.adapter_dir / RECORD).read_text(encoding="utf-8"))
    assert record["head"]["sam_logits"] is False  # untrained mask tokens know no classes
    from safetensors import safe_open

    with safe_open(result.adapter_dir / "adapter_model.safetensors", framework="pt") as file:
        assert all(".dense_head." in name for name in file.keys())  # noqa: SIM118


def test_auto_blocks_keep_the_encoder_frozen_for_small_pictures(make_pictures, run, base_file):
    root = make_pictures(classes=2)  # of 40 pixels
    result = run(root, f"model.checkpoint={base_file}", "peft.blocks=auto", *DENSE)
    record = read_record(result.adapter_dir)
    assert record.method["name"] == "none"
    assert record.head["sam_logits"] is False
    page = (result.run_dir / "report.html").read_text(encoding="utf-8")
    assert re.search(r"<title>[^<]*: none on folder", page)
    log = (result.run_dir / "log.txt").read_text(encoding="utf-8")
    assert "peft.blocks=auto: as with peft=none, for training images of up to 40 pixels" in log


def test_prompts_are_refused(make_pictures, run):
    with pytest.raises(ConfigError, match="head=unet predicts classes without a prompt"):
        run(make_pictures(), "prompts=box", "head=unet")


@pytest.mark.parametrize(
    ("change", "text"),
    [({"side": 10**9}, "head.side"), ({"name": "other"}, "head: expected the name unet")],
)
def test_a_changed_record_is_refused(trained, refuses_head, change, text):
    refuses_head(trained.adapter_dir, change, text)


@pytest.mark.slow
@pytest.mark.parametrize("variants", [0, 2])
def test_a_stopped_run_ends_bit_equal(make_pictures, base_file, resumes_bit_equal, variants):
    options = [f"model.checkpoint={base_file}", "train.augment=[flip,intensity]", *DENSE]
    options.append(f"cache.variants={variants}")
    files = ["adapter/adapter_model.safetensors", "eval/per_case.csv"]
    resumes_bit_equal(make_pictures(classes=2), options, files)


def test_export_names_the_head(trained, base_file, tmp_path, capsys):
    keys = [f"adapter={trained.adapter_dir}", f"checkpoint={base_file}", "to=sam"]
    assert main(["export", *keys, f"output={tmp_path / 'out'}"]) == 2
    assert "dense head" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "tiny_t"])
def test_onnx_predicts_the_same_classes(make_pictures, run, request, tmp_path, model):
    import onnxruntime

    from samadapt.export import export_adapter
    from samadapt.export.onnx import CLASSES, Onnx

    base = tmp_path / "own.pth"
    torch.save(request.getfixturevalue(f"{model}_sam").state_dict(), base)
    keys = (f"model={model}", f"model.checkpoint={base}", *DENSE)
    trained = run(make_pictures(classes=2), *keys)
    done = export_adapter(trained.adapter_dir, Onnx(), tmp_path / "out", checkpoint=base)
    assert done.difference.logits < 1e-3 * max(1, done.difference.largest)
    assert done.difference.largest > 0.1
    inputs = onnxruntime.InferenceSession(tmp_path / "out" / CLASSES).get_inputs()
    assert [(item.name, item.shape) for item in inputs] == [
        ("input_image", [1, 3, 64, 64]),
        ("picture", [1, 3, 40, 40]),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["folder", "nifti"])
def test_the_recipe_for_few_labels_reads_any_folder(
    make_pictures, make_scans, base_file, tmp_path, reader
):
    """Its values follow the data: reader, size of the square, versions of each slice."""
    root = make_pictures(3) if reader == "folder" else make_scans(2)
    keys = ["model=tiny", f"model.checkpoint={base_file}", "peft.blocks=last:2", "head.width=8"]
    keys += [f"data.root={root}", "train.max_seconds=10", f"output.dir={tmp_path / 'runs'}"]
    result = finetune(compose("few_labels", keys))
    record = read_record(result.adapter_dir)
    assert (record.data, record.image_size) == (reader, 64)
    assert record.head["name"] == "unet"
    assert result.summary["validation_cases"] == 0
    assert result.summary["ended_by"] == "time"
