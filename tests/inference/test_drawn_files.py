"""Scribbles and rough masks at prediction, as values and as files."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samadapt.cli import main
from samadapt.data.intensity import make_intensity
from samadapt.errors import PromptError
from samadapt.inference.segmenter import load_adapter
from samadapt.prompts.scribbles import resampled

CURVE = [[5, 6], [12, 9], [20, 22]]


@pytest.fixture
def adapter(save_adapted):
    """``adapter(kind, classes)``: the directory of an adapter of pictures."""

    def make(kind, classes=("cell",)):
        record = {"intensity": make_intensity("rgb").to_dict(), "classes": list(classes)}
        return save_adapted(f"adapter-{kind}-{len(classes)}", 5, kind, **record)[0]

    return make


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 255, (30, 41, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def numbers():
    drawn = np.zeros((30, 41), np.uint8)
    drawn[3:20, 5:22], drawn[22:28, 25:38] = 1, 2
    return drawn


def test_a_scribble_is_its_points_from_the_command_line_and_from_a_file(adapter, picture, tmp_path):
    directory, output = adapter("scribble"), tmp_path / "out.png"
    segmenter = load_adapter(directory, device="cpu")
    points = resampled(np.array(CURVE, float), segmenter.policy.scribble_points)
    expected = segmenter.segment(picture, points=points)
    assert 0 < expected.mean() < 1
    text = json.dumps(CURVE)
    base = [f"adapter={directory}", f"input={picture}", f"output={output}", "device=cpu"]
    assert main(["predict", *base, f"scribbles={text}"]) == 0
    assert np.array_equal(np.asarray(Image.open(output)), expected)
    file = tmp_path / "scribbles.json"
    file.write_text(json.dumps({"scribbles": [CURVE], "scribble_labels": [1]}), encoding="utf-8")
    assert main(["predict", *base, f"scribbles={file}"]) == 0
    assert np.array_equal(np.asarray(Image.open(output)), expected)
    outside = segmenter.segment(picture, scribbles=[[CURVE, CURVE]], scribble_labels=[[1, 0]])
    assert not np.array_equal(outside, expected)


def test_a_mask_file_is_a_prompt_for_each_of_its_numbers(adapter, picture, numbers, tmp_path):
    directory = adapter("mask")
    segmenter = load_adapter(directory, device="cpu")
    path, output = tmp_path / "rough.png", tmp_path / "out.png"
    Image.fromarray(numbers).save(path)
    found = segmenter.segment(picture, masks=str(path))
    base = [f"adapter={directory}", f"input={picture}", f"output={output}", "device=cpu"]
    assert main(["predict", *base, f"masks={path}"]) == 0
    assert np.array_equal(np.asarray(Image.open(output)), found)
    assert np.array_equal(segmenter.segment(picture, masks=numbers), found)
    planes = np.stack([numbers == 1, numbers == 2])
    assert np.array_equal(segmenter.segment(picture, masks=planes), found)
    assert 0 < found.mean() < 1
    other = segmenter.segment(picture, masks=numbers == 2)
    assert not np.array_equal(other, found)
    mirrored = segmenter.segment(picture, masks=numbers, tta="flip")
    assert mirrored.shape == found.shape


def test_with_several_classes_the_numbers_are_classes_unless_labels_name_them(
    adapter, picture, numbers
):
    segmenter = load_adapter(adapter("mask", ("cell", "nucleus")), device="cpu")
    found = segmenter.segment(picture, masks=numbers)
    assert set(np.unique(found)) <= {0, 1, 2}
    swapped = segmenter.segment(picture, masks=numbers, labels=["nucleus", "cell"])
    assert np.array_equal(np.array([0, 2, 1])[found], swapped)
    with pytest.raises(PromptError, match=r"the value 5 is no class .*labels"):
        segmenter.segment(picture, masks=(numbers > 0) * 5)


def test_a_folder_of_masks_goes_with_a_folder_of_pictures(adapter, picture, numbers, tmp_path):
    pictures, masks = tmp_path / "pictures", tmp_path / "masks"
    pictures.mkdir()
    masks.mkdir()
    picture.rename(pictures / "a.png")
    (pictures / "b.png").write_bytes((pictures / "a.png").read_bytes())
    Image.fromarray(numbers).save(masks / "a.png")
    segmenter = load_adapter(adapter("mask"), device="cpu")
    rows = segmenter.predict_folder(pictures, tmp_path / "out", masks=str(masks))
    assert rows[0]["voxels"]["cell"] > 0
    assert "expected one mask named b.SUFFIX; found none" in rows[1]["error"]


@pytest.mark.parametrize("kind", ["mask", "scribble"])
def test_objects_are_carried_through_a_volume(save_adapted, tmp_path, kind):
    record = {"intensity": make_intensity("mri").to_dict(), "axis": "coronal"}
    directory, _ = save_adapted(f"volume-{kind}", 5, kind, classes=["x"], **record)
    affine = np.array([[0, -2.0, 0, 5], [0, 0, 3.0, -7], [1.5, 0, 0, 11], [0, 0, 0, 1]])
    scan, drawn = tmp_path / "scan.nii.gz", tmp_path / "rough.nii.gz"
    values = np.cumsum(np.random.default_rng(3).normal(size=(22, 14, 28)), axis=0) * 40
    nib.save(nib.Nifti1Image(values.astype(np.float32), affine), scan)
    segmenter = load_adapter(directory, device="cpu")
    if kind == "scribble":
        given = {"scribbles": {10: [[[3, 6], [8, 9], [10, 18]]]}}
    else:
        rough = np.zeros(values.shape, np.uint8)
        rough[4:16, 3:11, 10:12] = 1
        nib.save(nib.Nifti1Image(rough, affine), drawn)
        given = {"masks": drawn}
    alone = segmenter.segment(scan, **given)
    carried = segmenter.segment(scan, **given, propagate=True, vanish=0.0)
    assert alone.any()
    assert carried.any(axis=(0, 1)).sum() > alone.any(axis=(0, 1)).sum()
    if kind == "mask":
        assert set(np.flatnonzero(alone.any(axis=(0, 1)))) <= {10, 11}  # the slices of the mask
        moved = tmp_path / "moved.nii.gz"
        elsewhere = affine.copy()
        elsewhere[0, 3] += 7
        nib.save(nib.Nifti1Image(rough, elsewhere), moved)
        with pytest.raises(PromptError, match="affine differs"):
            segmenter.segment(scan, masks=moved)
        small = tmp_path / "small.nii.gz"
        nib.save(nib.Nifti1Image(rough[:-1], affine), small)
        with pytest.raises(PromptError, match="expected the size of the image"):
            segmenter.segment(scan, masks=small)


def test_files_that_are_no_drawings_are_named(adapter, picture, tmp_path):
    segmenter = load_adapter(adapter("mask"), device="cpu")
    bad = tmp_path / "bad.json"
    for text, message in [
        ("{", "bad.json: expected JSON with scribbles"),
        ('{"curves": []}', "expected slice indices as keys, .* got 'curves'"),
        ("3", "expected a list of scribbles"),
    ]:
        bad.write_text(text, encoding="utf-8")
        with pytest.raises(PromptError, match=message):
            segmenter.segment(picture, scribbles=str(bad))
    empty = tmp_path / "empty.png"
    Image.fromarray(np.zeros((30, 41), np.uint8)).save(empty)
    with pytest.raises(PromptError, match=r"none\.json: scribbles cannot be read"):
        segmenter.segment(picture, scribbles=str(tmp_path / "none.json"))
    with pytest.raises(PromptError, match=r"none\.png: the file does not exist"):
        segmenter.segment(picture, masks=str(tmp_path / "none.png"))
    with pytest.raises(PromptError, match="every value is 0"):
        segmenter.segment(picture, masks=str(empty))
    with pytest.raises(PromptError, match="trained with mask prompts and needs one"):
        segmenter.segment(picture)
