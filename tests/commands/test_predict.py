"""``samadapt predict`` through the command line's own entry."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samadapt.cli import main
from samadapt.inference.options import PredictionOptions
from samadapt.inference.segmenter import load_adapter


@pytest.fixture
def adapter(tmp_path, adapter_at):
    """An adapter for boxes."""
    return adapter_at(tmp_path / "adapter", intensity="mri", classes=["lesion"], axis="axial")


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
        ({"tile": "3"}, "tile must be 0 (whole) or at least 16 pixels; got 3"),
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
    assert all(f"{key}: a value is required" in said for key in ("adapter", "input", "output"))


def save_volume(path, shape=(12, 10, 5)):
    values = np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 3.0, 4.0, 1.0])), path)
    return path


def test_a_folder_gives_a_table_and_names_what_failed(adapter, picture, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    picture.rename(folder / "cell.png")
    save_volume(folder / "scan.nii.gz")
    (folder / "bad.png").write_bytes(b"x")
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    arguments = [f"adapter={adapter}", f"input={folder}", f"output={tmp_path / 'out'}"]
    arguments += ["device=cpu", "boxes=[[1,1,9,8]]"]
    assert main(["predict", *arguments]) == 1
    said = capsys.readouterr()
    assert "bad.png: cannot be read" in said.err
    assert "Traceback" not in said.err
    assert "2 of 3 files" in said.out
    assert "skipped, as they are no images: notes.txt" in said.out
    assert [line.split()[:2] for line in said.out.splitlines()[:4]] == [
        ["file", "output"],
        ["bad.png", "failed"],
        ["cell.png", "cell.png"],
        ["scan.nii.gz", "scan.nii.gz"],
    ]
    (folder / "bad.png").unlink()
    assert main(["predict", *arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["shape"] for row in result["files"]] == [[20, 30, 1], [10, 12, 5]]
    assert result["other_files"] == ["notes.txt"]
    arguments[2] = f"output={tmp_path / 'all.json'}"
    assert main(["predict", *arguments]) == 1  # the volume
    assert "COCO JSON holds pictures" in capsys.readouterr().err
    content = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in content["images"]] == ["cell.png"]


def test_every_option_reaches_the_segmenter(adapter, tmp_path, monkeypatch, capsys):
    from samadapt.inference.segmenter import Segmenter

    asked = []

    def record(self, plan, options, *, progress, store):
        assert callable(progress)
        assert store is None  # a single image is always done
        asked.append(options)
        return [{"output": plan.target, "shape": (2, 3, 1), "voxels": {"lesion": 1}}]

    monkeypatch.setattr(Segmenter, "predict_plan", record)
    source = save_volume(tmp_path / "in.nii.gz")
    given = {
        "boxes": (
            "{2: [[1,1,9,8]], 3: [null,[2,2,5,5]]}",
            {2: [[1, 1, 9, 8]], 3: [None, [2, 2, 5, 5]]},
        ),
        "points": ("{2: [[[1,2]],[[3,4]]]}", {2: [[[1, 2]], [[3, 4]]]}),
        "point_labels": ("{2: [[1],[0]]}", {2: [[1], [0]]}),
        "scribbles": ("{2: [[[1,2],[3,4]]]}", {2: [[[1, 2], [3, 4]]]}),
        "scribble_labels": ("{2: [[1]]}", {2: [[1]]}),
        "masks": ("rough.nii.gz", "rough.nii.gz"),
        "labels": ("[lesion,lesion]", ["lesion", "lesion"]),
        "propagate": ("true", True),
        "carry": ("both", "both"),
        "slices": ("[1,4]", [1, 4]),
        "vanish": ("0.2", 0.2),
        "keep_largest": ("true", True),
        "fill_holes": ("[lesion]", ["lesion"]),
        "tile": ("64", 64),
        "probabilities": ("true", True),
        "tta": ("flip", "flip"),
        "second_pass": ("base", "base"),
        "uncertainty": ("mutual_information", "mutual_information"),
        "objects": ("true", True),
        "channel": ("[0]", [0]),
        "spacing": ("affine", "affine"),
        "series": ("two", "two"),
        "exif": ("ignore", "ignore"),
    }
    arguments = [f"{key}={text}" for key, (text, _) in given.items()]
    files = [f"adapter={adapter}", f"input={source}", f"output={tmp_path / 'out.nii.gz'}"]
    assert main(["predict", *files, *arguments, "device=cpu"]) == 0
    (options,) = asked
    assert {item.name for item in fields(PredictionOptions)} == given.keys()
    assert {key: getattr(options, key) for key in given} == {k: v for k, (_, v) in given.items()}


def test_objects_are_carried_from_the_command_line(adapter, tmp_path, capsys):
    source, target = save_volume(tmp_path / "in.nii.gz"), tmp_path / "out.nii.gz"
    arguments = [f"adapter={adapter}", f"input={source}", f"output={target}", "device=cpu"]
    arguments += ["boxes={3: [[1,1,9,8]]}", "propagate=true", "slices=[1,4]", "vanish=0"]
    assert main(["predict", *arguments, "labels=lesion", "probabilities=true"]) == 0
    assert "out_probabilities.nii.gz" in capsys.readouterr().out
    labels = np.asarray(nib.load(target).dataobj)
    assert labels[:, :, 1:].any(axis=(0, 1)).all()
    assert not labels[:, :, 0].any()
    assert main(["predict", *arguments, "labels=liver"]) == 2
    assert "the adapter has no class 'liver'" in capsys.readouterr().err
    assert main(["predict", *arguments, "labels=lesion", "propagate=memory"]) == 2
    assert "by the memory of SAM 2: tiny has none" in capsys.readouterr().err


def test_the_decoder_alone_from_the_recipe_to_a_mask(make_pictures, recipe, tmp_path, capsys):
    """``peft=decoder`` is understood by finetune, evaluate and predict alike."""
    root = make_pictures()
    assert (
        main(["finetune", f"recipe={recipe}", f"data.root={root}", "peft=decoder", "--json"]) == 0
    )
    adapter = json.loads(capsys.readouterr().out)["adapter_dir"]
    arguments = [f"adapter={adapter}", f"data.root={root}", f"output.dir={tmp_path / 'runs'}"]
    assert main(["evaluate", *arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["adapted"]["dice"] is not None
    picture = sorted((root / "images").iterdir())[0]
    arguments = [f"adapter={adapter}", f"input={picture}", f"output={tmp_path / 'mask.png'}"]
    assert main(["predict", *arguments, "boxes=[[2,3,20,15]]"]) == 0
    assert (tmp_path / "mask.png").is_file()


def test_the_input_is_searched_and_read_once(adapter, tmp_path, monkeypatch, capsys):
    """The files of a DICOM study are listed and read once."""
    from samadapt.data.formats.nifti.reader import NiftiReader
    from samadapt.inference import files

    folder, calls = tmp_path / "in", []
    folder.mkdir()
    save_volume(folder / "scan.nii.gz")

    def spy(owner, name):
        plain = getattr(owner, name)

        def counted(*args, **kwargs):
            calls.append(name)
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    spy(files, "list_folder")
    spy(NiftiReader, "read_image")
    arguments = [f"adapter={adapter}", f"input={folder}", f"output={tmp_path / 'out'}"]
    assert main(["predict", *arguments, "boxes=[[1,1,9,8]]", "device=cpu"]) == 0
    assert sorted(calls) == ["list_folder", "read_image"]


def test_several_adapters_from_the_command_line(adapter, picture, tmp_path, capsys):
    twin = shutil.copytree(adapter, tmp_path / "twin")
    target = tmp_path / "mask.png"
    arguments = [f"adapter=[{adapter},{twin}]", f"input={picture}", f"output={target}"]
    arguments += ["device=cpu", "boxes=[[2,3,20,15]]", "tta=flip", "objects=true"]
    assert main(["predict", *arguments, "uncertainty=mutual_information"]) == 0
    shown = capsys.readouterr().out
    assert "mask_uncertainty.png" in shown
    assert "mask_mutual_information.png" in shown
    assert "no confidence: this adapter was trained without it" in shown
    assert main(["predict", *arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["adapter"] == [str(adapter), str(twin)]
    (found,) = result["objects"]
    assert found.keys() == {"class", "box", "area", "probability", "confidence"}
    assert found["area"] == int(np.asarray(Image.open(target)).sum())
    assert main(["predict", *arguments, "uncertainty=variance"]) == 2
    assert "uncertainty: expected true or false, or one of mutual_info" in capsys.readouterr().err
    arguments[0] = f"adapter=[{adapter},{adapter}]"
    assert main(["predict", *arguments]) == 2
    assert "is named twice" in capsys.readouterr().err
