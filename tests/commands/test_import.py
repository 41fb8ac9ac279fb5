"""``samadapt import`` through the command line's own entry."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from samadapt.cli import main


@pytest.fixture
def foreign(tmp_path):
    """The file of a small SAM-LoRA project, for the random model ``tiny``."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (2, 32), "b": (32, 2)}
    tensors = {
        f"w_{part}_{i:03d}": 0.1 * torch.randn(shape, generator=generator)
        for i in range(8)
        for part, shape in shapes.items()
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def test_it_says_what_it_read(foreign, tmp_path, capsys):
    arguments = [f"from={foreign}", f"output={tmp_path / 'out'}", "model=tiny"]
    assert main(["import", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "SAM-LoRA" in shown
    assert "rank=2" in shown
    assert main(["import", *arguments]) == 2  # the folder holds something now
    assert "must be a new or an empty folder" in capsys.readouterr().err
    again = [f"source={foreign}", f"output={tmp_path / 'two'}", "model=tiny", "--json"]
    assert main(["import", *again]) == 0
    assert json.loads(capsys.readouterr().out)["largest_logit_difference"] < 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"from": "gone.pth"}, "no such checkpoint: gone.pth"),
        ({"model": "tinny"}, "did you mean 'tiny'"),
        ({"sacle": "2"}, "did you mean 'scale'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(foreign, tmp_path, capsys, changes, message):
    given = {"from": foreign, "output": tmp_path / "out", "model": "tiny"} | changes
    assert main(["import", *(f"{key}={value}" for key, value in given.items())]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
