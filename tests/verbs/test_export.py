"""``samadapt export`` through the command line's own entry, and the upload to a stand-in Hub."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from samadapt.cli import main
from samadapt.methods import METHODS, inject
from samadapt.methods.store import AdapterRecord, save_adapter
from samadapt.sam.weights import base_hash, load_sam


@pytest.fixture
def adapter(tmp_path):
    """``adapter(method)``: one on the random model ``tiny``, which needs no file of weights."""

    def make(method="lora"):
        sam = load_sam("tiny")
        record = AdapterRecord(
            base="tiny",
            base_sha256=base_hash(sam),
            image_size=sam.image_size,
            preprocessing=asdict(sam.preprocessing),
        )
        save_adapter(tmp_path / method, sam, inject(sam, METHODS[method]()), record)
        return tmp_path / method

    return make


def test_it_prints_the_files_and_the_largest_difference(adapter, tmp_path, capsys):
    directory = adapter()
    arguments = [f"adapter={directory}", "to=sam"]
    assert main(["export", *arguments, f"output={tmp_path / 'out'}"]) == 0
    shown = capsys.readouterr().out
    assert "model.pth" in shown
    assert "largest difference" in shown
    assert main(["export", *arguments, f"output={tmp_path / 'again'}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["largest_logit_difference"] < 1e-4
    assert set(result["files"]) == {"README.md", "model.pth", "model.safetensors"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": "onyx"}, "did you mean 'onnx'"),
        ({"naming": "transformers"}, "naming is no option of to=sam"),
        ({"push": "me"}, "push must be USER/NAME"),
        ({"adapter": "nowhere"}, "nowhere: expected an adapter directory"),
        ({"checkpoint": "gone.pth"}, "no such checkpoint: gone.pth"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    adapter, tmp_path, monkeypatch, capsys, changes, message
):
    monkeypatch.chdir(tmp_path)
    given = {"adapter": adapter(), "to": "sam", "output": "out"} | changes
    assert main(["export", *(f"{key}={value}" for key, value in given.items())]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
