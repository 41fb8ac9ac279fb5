"""``samadapt predict`` through the command line's own entry."""

from __future__ import annotations

import json
from dataclasses import asdict

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samadapt.cli import main
from samadapt.data.intensity import make_intensity
from samadapt.methods import METHODS, inject
from samadapt.methods.store import AdapterRecord, save_adapter
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.weights import base_hash, load_sam
from samadapt.segmenter import load_adapter


@pytest.fixture
def adapter(tmp_path):
    """An adapter for boxes on the random model ``tiny``, which needs no file of weights."""
    sam = load_sam("tiny")
    record = AdapterRecord(
        base="tiny",
        base_sha256=base_hash(sam),
        image_size=sam.image_size,
        preprocessing=asdict(sam.preprocessing),
        intensity=make_intensity("mri").to_dict(),
        classes=["lesion"],
        prompt=PromptPolicy("box").to_dict(),
        axis="axial",
    )
    save_adapter(tmp_path / "adapter", sam, inject(sam, METHODS["lora"]()), record)
    return tmp_path / "adapter"


@pytest.fixture
def picture(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
    path = tmp_path / "cell.png"
    Image.fromarray(values).save(path)
    return path


def test_a_picture_gives_a_png(adapter, picture, tmp_path, capsys):
    target = tmp_path / "mask.png"
    arguments = [f"adapter={adapter}", f"input={picture}", f"output={target}", "device=cpu"]
    assert main(["predict", *arguments, "boxes=[[2,3,20,15],[5,5,9,9]]"]) == 0
    expected = load_adapter(adapter, device="cpu").segment(
        picture, boxes=[[2, 3, 20, 15], [5, 5, 9, 9]]
    )
    assert np.array_equal(np.asarray(Image.open(target)), expected)
    shown = capsys.readouterr().out
    assert "lesion" in shown
    assert str(target) in shown
    points = ["points=[[4,5],[9,9]]", "point_labels=[1,0]", "--json"]
    assert main(["predict", *arguments, *points]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["output"] == str(target)
    assert result["voxels"] == {"lesion": int(np.asarray(Image.open(target)).sum())}


def test_a_volume_gives_a_volume_with_boxes_by_slice(adapter, tmp_path, capsys):
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    values = np.random.default_rng(0).normal(100, 20, (12, 10, 5)).astype(np.float32)
    source, target = tmp_path / "in.nii.gz", tmp_path / "out.nii.gz"
    nib.save(nib.Nifti1Image(values, affine), source)
    arguments = [f"adapter={adapter}", f"input={source}", f"output={target}", "device=cpu"]
    assert main(["predict", *arguments, "boxes={3: [[1,1,9,8]]}"]) == 0
    written = nib.load(target)
    assert np.allclose(written.affine, affine)
    labels = np.asarray(written.dataobj)
    assert labels.shape == values.shape
    assert not labels[:, :, [0, 1, 2, 4]].any()
    assert "5 slices" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "trained with box prompts and needs one"),
        ({"boxes": "[[1,2,3]]"}, "boxes must be (p, 4)"),
        ({"boxes": "five"}, "boxes: expected a list"),
        ({"box": "[[1,2,3,4]]"}, "did you mean 'boxes'"),
        ({"output": "no/such/folder/out.png"}, "does not exist; make it first"),
        ({"output": "out.nii.gz"}, "written as .png"),
        ({"input": "gone.png"}, "gone.png: the input file does not exist"),
        ({"adapter": "nowhere"}, "nowhere: expected an adapter directory"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    adapter, picture, tmp_path, monkeypatch, capsys, changes, message
):
    monkeypatch.chdir(tmp_path)
    given = {"adapter": adapter, "input": picture, "output": "out.png", "device": "cpu"} | changes
    assert main(["predict", *(f"{key}={value}" for key, value in given.items())]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "out.png").exists()
    assert main(["predict"]) == 2
    said = capsys.readouterr().err
    assert all(f"{key}: it is needed" in said for key in ("adapter", "input", "output"))
