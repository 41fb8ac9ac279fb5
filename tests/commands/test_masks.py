"""``samadapt masks`` through the command line's own entry."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

import samadapt
from samadapt.cli import main
from samadapt.data.dataset import open_dataset
from samadapt.errors import AdapterError
from samadapt.inference.automatic import MaskFinder
from samadapt.inference.files import plan_prediction
from samadapt.inference.folder_work import FolderWork
from samadapt.inference.mask_coco import rows_file
from samadapt.inference.mask_options import MaskOptions
from samadapt.inference.mask_outputs import preview_file
from samadapt.inference.mask_store import open_store

LOOSE = ["points_per_side=3", "min_iou=0", "min_stability=0", "relative_iou=0", "nms=0.99"]
"""Thresholds that some masks of a random model pass."""


# pycocotools' own decoder is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def find(*arguments):
    return main(["masks", *map(str, arguments), *LOOSE, "device=cpu"])


def test_a_picture_gives_numbers_in_colours_and_a_preview(pictures, tmp_path, capsys):
    target = tmp_path / "masks.png"
    code = find("model=tiny", f"input={pictures / 'a.png'}", f"output={target}", "preview=true")
    assert code == 0
    assert "masks: " in capsys.readouterr().out
    with Image.open(target) as written:
        assert (written.mode, written.size) == ("P", (30, 20))
        assert np.asarray(written).max() > 0
    preview = np.asarray(Image.open(tmp_path / "masks_preview.png"))
    assert preview.shape == (20, 30, 3)
    assert (preview != np.asarray(Image.open(pictures / "a.png"))).any()


def test_a_folder_gives_coco_with_scores(adapter_at, pictures, tmp_path, capsys):
    adapter = adapter_at(tmp_path / "adapter", "point", classes=["cell"], data="folder")
    target = tmp_path / "masks.json"
    assert find(f"adapter={adapter}", f"input={pictures}", f"output={target}", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    content = json.loads(target.read_text(encoding="utf-8"))
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.png"]
    assert content["categories"] == [{"id": 1, "name": "cell"}]
    counts = [row["masks"] for row in result["files"]]
    assert min(counts) > 0
    assert len(content["annotations"]) == sum(counts)
    for one in content["annotations"]:
        assert one["score"] == pytest.approx(one["predicted_iou"], abs=1e-6)
        mask = coco_mask.decode(one["segmentation"])
        assert mask.shape == (20, 30)
        assert mask.sum() == one["area"] > 0
        assert coco_mask.toBbox(one["segmentation"]).tolist() == one["bbox"]


def test_sa1b_is_read_back_as_a_data_set(pictures, tmp_path):
    target = tmp_path / "out"
    arguments = ("model=tiny", f"input={pictures}", f"output={target}", "format=sa1b")
    assert find(*arguments) == 0
    for path in pictures.iterdir():
        shutil.copy(path, target)
    (target / "masks_settings.yaml").unlink()
    dataset = open_dataset("sa1b", root=target)
    assert [case.name for case in dataset.cases] == ["a", "b"]
    content = json.loads((target / "a.json").read_text(encoding="utf-8"))
    assert content["image"]["width"] == 30
    assert {"predicted_iou", "stability_score", "point_coords", "crop_box"} <= set(
        content["annotations"][0]
    )


@pytest.mark.parametrize("output", ["out", "out.json"])
def test_a_folder_is_continued_and_never_mixed(pictures, tmp_path, capsys, output):
    target = tmp_path / output
    whole = tmp_path / f"whole_{output}"
    assert find("model=tiny", f"input={pictures}", f"output={whole}") == 0
    later = shutil.move(pictures / "b.png", tmp_path / "b.png")
    assert find("model=tiny", f"input={pictures}", f"output={target}") == 0
    shutil.move(later, pictures / "b.png")
    capsys.readouterr()
    assert find("model=tiny", f"input={pictures}", f"output={target}", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)["files"]
    assert first["skipped"] is True
    assert second["masks"] > 0
    if output == "out":
        assert (target / "b.png").read_bytes() == (whole / "b.png").read_bytes()
    else:
        assert target.read_text(encoding="utf-8") == whole.read_text(encoding="utf-8")
    other = ("model=tiny", f"input={pictures}", f"output={target}", "min_area=2")
    assert find(*other) == 2
    assert "min_area: 0 before, 2 now" in capsys.readouterr().err
    assert find(*other, "overwrite=true") == 0
    elsewhere = shutil.copytree(pictures, tmp_path / "elsewhere")
    assert find("model=tiny", f"input={elsewhere}", f"output={target}", "min_area=2") == 2
    assert "input: " in capsys.readouterr().err  # equal names of other pictures are not done


@pytest.mark.parametrize("output", ["out", "out.json"])
def test_parts_of_a_folder_find_the_masks_of_one_call(pictures, tmp_path, output, capsys):
    """Pictures are added later, so the parts are made twice."""
    whole, target = tmp_path / f"whole_{output}", tmp_path / output
    keys = ("model=tiny", f"input={pictures}", "--json")
    for name in ("", "c", "d"):
        if name:
            shutil.copy(pictures / "a.png", pictures / f"{name}.png")
        for index in (1, 0):
            assert find(*keys, f"output={target}", f"only_part={index}", "parts=2") == 0
    capsys.readouterr()
    assert find(*keys, f"output={target}") == 0
    assert all(row["skipped"] for row in json.loads(capsys.readouterr().out)["files"])
    assert find(*keys, f"output={whole}") == 0
    if output == "out.json":
        assert target.read_bytes() == whole.read_bytes()
    for path in whole.glob("*.png"):
        assert (target / path.name).read_bytes() == path.read_bytes()
    assert not list(tmp_path.rglob("part_*"))


def test_a_call_that_is_stopped_keeps_what_it_has_found(pictures, tmp_path, monkeypatch, capsys):
    whole, target = tmp_path / "whole.json", tmp_path / "out.json"
    keys = ("model=tiny", f"input={pictures}", "--json")
    assert find(*keys, f"output={whole}") == 0
    in_volume = MaskFinder.in_volume

    def stopped(self, volume, progress=None):
        if rows_file(target).exists():
            raise KeyboardInterrupt
        return in_volume(self, volume, progress)

    monkeypatch.setattr(MaskFinder, "in_volume", stopped)
    assert find(*keys, f"output={target}") == 130
    assert not target.exists()
    monkeypatch.setattr(MaskFinder, "in_volume", in_volume)
    capsys.readouterr()
    assert find(*keys, f"output={target}") == 0
    first, second = json.loads(capsys.readouterr().out)["files"]
    assert first["skipped"]
    assert second["masks"] > 0
    assert target.read_bytes() == whole.read_bytes()
    assert not rows_file(target).exists()


@pytest.mark.parametrize("output", ["out", "out.json"])
def test_files_of_another_program_are_never_taken_for_masks(pictures, tmp_path, capsys, output):
    target = tmp_path / output
    foreign = target / "a.png" if output == "out" else target
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_bytes(b"not ours")
    keys = ("model=tiny", f"input={pictures}", f"output={target}", "--json")
    assert find(*keys) == 2
    assert "nothing beside it says how" in capsys.readouterr().err
    assert foreign.read_bytes() == b"not ours"
    assert find(*keys, "overwrite=true") == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert not any(row.get("skipped") for row in files)


def test_what_an_interrupted_overwrite_left_is_not_continued(pictures, tmp_path):
    """The old outputs go before the record says how masks are found now."""
    target = tmp_path / "out"
    plan = plan_prediction(str(pictures), target, None)
    settings = {"base": "tiny", "options": {"nms": 0.7}}
    work = FolderWork(plan, "masks")
    with work:
        open_store(work, settings, "object", overwrite=False)
    for planned in plan.images:
        planned.output.write_bytes(b"old")
    with work:
        assert open_store(work, settings, "object", overwrite=False).done == {"a.png", "b.png"}
    newer = {**settings, "options": {"nms": 0.5}}
    with work:
        open_store(work, newer, "object", overwrite=True)
    with work:
        assert open_store(work, newer, "object", overwrite=False).done == frozenset()


@pytest.mark.parametrize(
    ("source", "target", "shared", "expected"),
    [
        ("a.png", "out/cell.1.png", False, "cell.1_preview.png"),
        ("a.nii.gz", "out/scan.nii.gz", False, "scan_preview.png"),
        ("a.png", "out.json", True, "a.png_preview.png"),
    ],
)
def test_previews_have_names_of_their_own(source, target, shared, expected):
    assert preview_file(Path(source), Path(target), shared=shared).name == expected


def test_a_volume_gives_a_volume_on_its_grid(tmp_path):
    values = np.random.default_rng(0).normal(100, 20, (12, 10, 3)).astype(np.float32)
    source, target = tmp_path / "in.nii.gz", tmp_path / "out.nii.gz"
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 3.0, 4.0, 1.0])), source)
    keys = ("model=tiny", "intensity=mri", "axis=axial", f"input={source}")
    assert find(*keys, f"output={target}") == 0
    written = nib.load(target)
    assert written.shape == values.shape
    assert np.allclose(written.affine, np.diag([2.0, 3.0, 4.0, 1.0]))
    numbers = np.asarray(written.dataobj)
    used = [set(np.unique(numbers[..., index])) - {0} for index in range(3)]
    assert all(used)
    assert not used[0] & used[1]  # a mask belongs to one slice


def test_a_broken_picture_does_not_stop_the_others(pictures, tmp_path, capsys):
    (pictures / "a.png").write_bytes(b"no picture")
    target = tmp_path / "out"
    assert find("model=tiny", f"input={pictures}", f"output={target}", "--json") == 1
    broken, fine = json.loads(capsys.readouterr().out)["files"]
    assert "a.png" in broken["error"]
    assert fine["masks"] > 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ((), "adapter=DIR, or model=NAME"),
        (("model=tiny", "input=x.png"), "output: this key is required"),
        (("adapter=a", "image_size=64", "input=x", "output=y"), "image_size: the adapter records"),
    ],
)
def test_wrong_keys_are_refused(keys, message, capsys):
    assert main(["masks", *keys]) == 2
    assert message in capsys.readouterr().err


def test_an_adapter_without_prompts_is_refused(adapter_at, pictures, tmp_path, capsys):
    adapter = adapter_at(tmp_path / "adapter", "semantic", classes=["cell"], data="folder")
    target = tmp_path / "m.png"
    assert find(f"adapter={adapter}", f"input={pictures / 'a.png'}", f"output={target}") == 2
    assert "finds its classes by itself" in capsys.readouterr().err


def test_several_adapters_are_refused(adapter_at, tmp_path):
    segmenter = samadapt.load_adapter([adapter_at(tmp_path / name) for name in ("a", "b")])
    with pytest.raises(AdapterError, match="come from one model, and 2 adapters are in use"):
        MaskFinder(segmenter, MaskOptions(), is_adapted=True)


def test_an_adapter_that_keeps_prompts_finds_masks(adapter_at, pictures, tmp_path):
    classes = ["cell", "nucleus"]
    adapter = adapter_at(tmp_path / "adapter", "semantic", classes=classes, class_tokens=2)
    found, expected = tmp_path / "found.json", tmp_path / "expected.json"
    keys = (f"input={pictures / 'a.png'}", "masks_per_point=three", "refine=0")
    assert find(f"adapter={adapter}", *keys, f"output={found}") == 0
    assert find("model=tiny", *keys, f"output={expected}") == 0
    content = json.loads(found.read_text(encoding="utf-8"))
    assert content["annotations"]
    assert content["categories"] == [{"id": 1, "name": "object"}]
    # The adapter was not trained, and what answers to prompts is the base's.
    before = json.loads(expected.read_text(encoding="utf-8"))
    assert content["annotations"] == before["annotations"]


def test_tuned_thresholds_are_scored_and_used(adapter_at, tmp_path, capsys):
    root = tmp_path / "data"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(10):
        truth = np.zeros((24, 30), np.uint8)
        truth[4:12, 3 + number : 15 + number] = 1
        picture = np.repeat(200 * truth[..., None], 3, axis=2)
        Image.fromarray(picture).save(root / "images" / f"{number}.png")
        Image.fromarray(truth).save(root / "masks" / f"{number}.png")
    adapter = adapter_at(tmp_path / "adapter", "box", classes=["cell"], data="folder")
    tuned = tmp_path / "tuned.yaml"
    keys = (f"adapter={adapter}", "points_per_side=3", "device=cpu")
    tune = ("tune=true", f"root={root}", f"output={tuned}", "--json")
    assert main(["masks", *keys, *tune]) == 0
    result = json.loads(capsys.readouterr().out)
    for sides in result["scores"].values():
        assert set(sides["chosen"]) == set(sides["given"]) >= {"msa", "map", "pq", "mean_iou"}
    # Ten pictures: two are held out, and of eight that train one chooses the step.
    assert result["images"] == {"chosen_on": 1, "scored_on": 2}
    assert "tried on 1 validation pictures with 1 objects" in result["warnings"][0]
    better = result["scores"]["validation"]
    assert result["is_tuned"] is (better["chosen"]["msa"] > better["given"]["msa"])
    kept = {item.name for item in fields(MaskOptions)} - {"points_per_batch"}
    assert set(result["options"]) == kept, "all that was in force while they were chosen"
    target = tmp_path / "found"
    used = (f"settings={tuned}", f"input={root / 'images'}", f"output={target}", "min_iou=0")
    assert main(["masks", *keys, *used]) == 0
    record = (target / "masks_settings.yaml").read_text(encoding="utf-8")
    options = yaml.safe_load(record)["options"]
    assert options == {**options, **result["options"], "min_iou": 0.0}


def test_tuning_a_base_model_is_refused(tmp_path, capsys):
    assert main(["masks", "model=tiny", "tune=true", f"output={tmp_path / 't.yaml'}"]) == 2
    assert "tune=true: expected adapter=DIR" in capsys.readouterr().err
