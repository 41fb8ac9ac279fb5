"""prompts=auto in a whole run: trained, saved, evaluated, predicted with, and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import samadapt
from samadapt.adapters.record import RECORD, read_record
from samadapt.cli import main
from samadapt.errors import AdapterError, ConfigError

AUTO = ("prompts=auto", "peft=none")


@pytest.fixture
def trained(make_pictures, run, base_file):
    return run(make_pictures(classes=2), f"model.checkpoint={base_file}", *AUTO)


def test_only_the_generator_is_trained_and_saved(trained):
    with safe_open(trained.adapter_dir / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert names
    assert all(".prompt_generator." in name for name in names)
    record = read_record(trained.adapter_dir)
    assert record.makes_prompts
    assert record.class_tokens == 0
    log = (trained.run_dir / "log.txt").read_text(encoding="utf-8")
    assert "trained parameters (prompt generator)" in log
    card = (trained.adapter_dir / "README.md").read_text(encoding="utf-8")
    assert "no prompt (a network makes one for each class)" in card
    assert trained.summary["adapted"]["dice"] is not None


def test_it_is_scored_predicts_and_still_answers_to_boxes(trained, base_file, tmp_path, capsys):
    root = next(tmp_path.glob("pictures"))
    keys = [f"adapter={trained.adapter_dir}", f"data.root={root}", "precision=fp32", "--json"]
    assert main(["evaluate", *keys]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["summary"]["adapted"]["dice"] == pytest.approx(
        trained.summary["adapted"]["dice"], abs=1e-6
    )
    segmenter = samadapt.load_adapter(trained.adapter_dir, checkpoint=base_file)
    picture = np.asarray(Image.open(root / "images" / "p0.png"))
    assert set(np.unique(segmenter.segment(picture))) <= {0, 1, 2}
    name = segmenter.classes[1]
    assert set(np.unique(segmenter.segment(picture, boxes=[4, 4, 20, 20], labels=name))) <= {0, 2}
    for target in ("sam", "onnx"):
        output = tmp_path / f"out-{target}"
        keys = [f"adapter={trained.adapter_dir}", f"checkpoint={base_file}", f"to={target}"]
        assert main(["export", *keys, f"output={output}"]) == 2
        assert "makes its prompts by a network" in capsys.readouterr().err
        assert not output.exists()


def test_a_record_of_another_kind_is_refused(trained, base_file):
    path = trained.adapter_dir / RECORD
    record = json.loads(path.read_text(encoding="utf-8"))
    record["prompt"]["kind"] = "semantic"
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(AdapterError):
        samadapt.load_adapter(trained.adapter_dir, checkpoint=base_file)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("prompts=auto",), "keeps SAM as it is; got peft=lora. Use peft=none"),
        ((*AUTO, "prompts.background_token=true"), "no prompt for the background"),
        ((*AUTO, "head=unet"), "prompts=auto predicts with SAM's frozen mask decoder"),
    ],
)
def test_whatever_else_would_train_is_refused(make_pictures, run, base_file, keys, message):
    with pytest.raises(ConfigError, match=message):
        run(make_pictures(), f"model.checkpoint={base_file}", *keys)


@pytest.mark.slow
def test_a_stopped_run_ends_bit_equal(make_pictures, base_file, resumes_bit_equal):
    options = [f"model.checkpoint={base_file}", "train.augment=[flip,intensity]", *AUTO]
    files = ["adapter/adapter_model.safetensors", "eval/per_case.csv"]
    resumes_bit_equal(make_pictures(classes=2), options, files)
