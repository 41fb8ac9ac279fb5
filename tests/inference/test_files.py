"""Folders, formats and what lies beside the labels."""

from __future__ import annotations

import json
import sys

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samadapt.data.formats import base as readers_module
from samadapt.data.formats.base import FormatReader
from samadapt.data.formats.nifti.reader import NiftiReader
from samadapt.errors import DataError, MissingExtraError, PromptError
from samadapt.inference.files import is_folder_of_images, plan_prediction
from samadapt.inference.outputs import mask_files

LABELS = np.zeros((9, 15), dtype=np.uint8)
LABELS[1:4, 2:6], LABELS[6:8, 1:5], LABELS[2:7, 9:13] = 1, 1, 3


def save_picture(path, labels=LABELS):
    Image.fromarray((labels * 85).astype(np.uint8)).save(path)
    return path


def save_volume(path, seed=0):
    labels = np.random.default_rng(seed).integers(0, 4, (9, 15, 3)).astype(np.int16)
    nib.save(nib.Nifti1Image(labels * 85, np.diag([1.0, 1, 3, 1])), path)
    return labels


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    save_picture(folder / "one.png")
    save_picture(folder / "two.tif", LABELS.T.copy())
    save_volume(folder / "scan.nii.gz")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def test_every_image_of_a_folder_is_done_and_the_broken_one_named(make_oracle, folder, tmp_path):
    rows = make_oracle().predict_folder(folder, tmp_path / "out")
    assert [row["input"].name for row in rows] == [
        "broken.png",
        "one.png",
        "scan.nii.gz",
        "two.tif",
    ]
    assert "broken.png" in rows[0]["error"]
    assert all("error" not in row for row in rows[1:])
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["one.png", "scan.nii.gz", "two.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "one.png")), LABELS)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "two.png")), LABELS.T)
    scan = np.asarray(nib.load(tmp_path / "out" / "scan.nii.gz").dataobj)
    assert np.array_equal(scan * 85, np.asarray(nib.load(folder / "scan.nii.gz").dataobj))
    assert rows[1]["voxels"] == {"a": 20, "b": 0, "c": 20}


def test_two_images_of_one_stem_do_not_overwrite_each_other(make_oracle, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    save_picture(folder / "a.jpg")
    save_picture(folder / "a.png")
    first, second = make_oracle().predict_folder(folder, tmp_path / "out")
    assert first["output"].name == "a.png"
    assert second["error"].startswith(f"{folder / 'a.png'}: its output a.png is that of a.jpg")


def test_a_stack_in_an_npz_is_no_picture(make_oracle, tmp_path):
    values = np.random.default_rng(0).integers(1, 200, (5, 20, 30), dtype=np.uint8)
    np.savez(tmp_path / "stack.npz", imgs=values)
    with pytest.raises(DataError, match=r"stack\.npz: COCO JSON holds pictures"):
        make_oracle().predict_file(tmp_path / "stack.npz", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_series_folder_is_one_volume(make_oracle, folder, tmp_path, monkeypatch):
    class Series(NiftiReader):
        """A reader that takes any folder for a series, as that of DICOM does."""

        name, suffixes = "series", ()

        @classmethod
        def accepts(cls, path):
            return path.is_dir()

        def read_image(self, path):
            return super().read_image(path / "slices")

    known = {n: r for n, r in readers_module.readers().items() if n != "dicom"} | {"series": Series}
    monkeypatch.setattr(readers_module, "readers", lambda: known)
    monkeypatch.setattr("samadapt.inference.files.readers", lambda: known)
    labels = save_volume(tmp_path / "slices.nii")
    (tmp_path / "slices.nii").rename(folder / "sub" / "slices")
    (folder / "empty").mkdir()
    assert not is_folder_of_images(folder / "sub")
    assert is_folder_of_images(folder)
    make_oracle().predict_file(folder / "sub", tmp_path / "series.nii.gz")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "series.nii.gz").dataobj), labels)
    rows = make_oracle().predict_folder(folder, tmp_path / "out")
    assert [row["input"].name for row in rows][3] == "sub"
    assert np.array_equal(np.asarray(nib.load(tmp_path / "out" / "sub.nii.gz").dataobj), labels)


def test_prompts_that_fit_no_file_stop_before_the_first(make_oracle, folder, tmp_path):
    with pytest.raises(PromptError, match="needs one"):
        make_oracle("box").predict_folder(folder, tmp_path / "out")
    with pytest.raises(PromptError, match="keep_largest: the adapter has no class 'd'"):
        make_oracle().predict_folder(folder, tmp_path / "out", keep_largest=["a", "d"])
    assert not (tmp_path / "out").exists()


def test_a_png_of_classes_has_pascals_colours(make_oracle, tmp_path):
    make_oracle().predict_file(save_picture(tmp_path / "a.png"), tmp_path / "out.png")
    picture = Image.open(tmp_path / "out.png")
    assert picture.mode == "P"
    assert np.array_equal(np.asarray(picture), LABELS)
    palette = np.array(picture.getpalette()).reshape(-1, 3)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 15: (192, 128, 128)}
    for index, colour in (known | {255: (224, 224, 192)}).items():
        assert tuple(palette[index]) == colour
    assert len(np.unique(palette, axis=0)) == 256


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools' decode
def test_coco_holds_an_annotation_an_object(make_oracle, tmp_path, capsys):
    from pycocotools.coco import COCO

    target = tmp_path / "out.json"
    make_oracle().predict_file(save_picture(tmp_path / "a.png"), target)
    coco = COCO(str(target))
    assert [image["file_name"] for image in coco.imgs.values()] == ["a.png"]
    assert [category["name"] for category in coco.cats.values()] == ["a", "b", "c"]
    assert sorted(item["category_id"] for item in coco.anns.values()) == [1, 1, 3]
    drawn = sum(item["category_id"] * coco.annToMask(item) for item in coco.anns.values())
    assert np.array_equal(drawn, LABELS)
    for item in coco.anns.values():
        mask = coco.annToMask(item)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], len(columns), len(rows)]
        assert (item["bbox"], item["area"], item["iscrowd"]) == (box, mask.sum(), 0)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools' decode
def test_coco_keeps_prompted_objects_apart(make_oracle, folder, tmp_path, capsys):
    from pycocotools.coco import COCO

    (folder / "two.tif").unlink()
    labels = LABELS.copy()
    labels[6:8, 5:9] = 2  # touches the object on its left
    labels[2, 3] = 0  # a hole
    save_picture(folder / "one.png", labels)
    rows = make_oracle("box", classes=["x", "y"]).predict_folder(
        folder,
        tmp_path / "out.json",
        boxes=[[5, 6, 9, 8], [9, 2, 13, 7], [1, 6, 5, 8]],
        labels=["y", "x", "x"],
        fill_holes=True,
    )
    assert "COCO JSON holds pictures" in rows[2]["error"]
    coco = COCO(str(tmp_path / "out.json"))
    assert len(coco.imgs) == 1
    filled = labels.copy()
    filled[2, 3] = 1
    masks = {item["id"]: coco.annToMask(item) for item in coco.anns.values()}
    assert [item["category_id"] for item in coco.anns.values()] == [2, 1, 1]
    for mask, value in zip(masks.values(), (2, 3, 1), strict=True):
        assert np.array_equal(mask, filled == value)
    with_holes = make_oracle("box", classes=["x", "y"]).segment(
        folder / "one.png", boxes=[[1, 6, 5, 8]], labels="y"
    )
    assert np.array_equal(with_holes, np.where(labels == 1, 2, 0))


def test_without_pycocotools_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    source = save_picture(tmp_path / "a.png")
    with pytest.raises(MissingExtraError, match=r"samadapt\[coco\]"):
        plan_prediction(source, tmp_path / "out.json", None)


def softmax_of(labels, classes=3):
    scores = np.full((classes + 1, *labels.shape), -1.0)
    scores[0] = 0
    for class_id in range(1, classes + 1):
        scores[class_id][labels == class_id] = 1
    shares = np.exp(scores)
    return (shares / shares.sum(axis=0))[1:]


def test_probabilities_lie_beside_the_labels(make_oracle, tmp_path):
    labels = save_volume(tmp_path / "a.nii.gz")
    result = make_oracle().predict_file(
        tmp_path / "a.nii.gz", tmp_path / "out.nii.gz", probabilities=True
    )
    assert result["probabilities"] == tmp_path / "out_probabilities.nii.gz"
    image = nib.load(result["probabilities"])
    assert image.get_data_dtype() == np.uint8
    assert image.shape == (*labels.shape, 3)
    assert np.array_equal(image.affine, nib.load(tmp_path / "a.nii.gz").affine)
    values = np.moveaxis(np.asarray(image.dataobj), -1, 0)
    assert np.abs(values - softmax_of(labels)).max() < 0.5 / 255 + 1e-6
    rows = make_oracle().predict_file(
        save_picture(tmp_path / "a.png"), tmp_path / "b.png", probabilities=True
    )
    shares = np.load(rows["probabilities"], allow_pickle=False)["probabilities"]
    assert np.abs(shares / 255 - softmax_of(LABELS)).max() < 0.5 / 255 + 1e-6


def test_the_probability_of_prompted_classes_is_the_sigmoid_of_their_best_object(
    make_oracle, tmp_path
):
    result = make_oracle("box", classes=["x", "y"]).predict_file(
        save_picture(tmp_path / "a.png"),
        tmp_path / "b.png",
        boxes=[[9, 2, 13, 7], [2, 1, 6, 4]],
        labels="y",
        probabilities=True,
        keep_largest=True,
    )
    assert result["voxels"] == {"x": 0, "y": 20}  # of 20, 12 and 8 pixels
    shares = np.load(result["probabilities"], allow_pickle=False)["probabilities"] / 255
    assert not shares[0].any()
    expected = 1 / (1 + np.exp(-np.where(LABELS > 0, 1, -1)))
    assert np.abs(shares[1] - expected).max() < 0.5 / 255 + 1e-6


def test_what_cannot_be_read_or_written_is_said_first(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for source, target, message in [
        (folder, folder, "must not be the input folder"),
        (folder, tmp_path / "file", "a folder or a .json file"),
        (folder, tmp_path / "no" / "out", "make it first"),
        (tmp_path / "empty", tmp_path / "out", "no image in this folder; readable: .*png"),
        (folder / "scan.nii.gz", tmp_path / "out.json", "written as .nii.gz or .nii"),
        (folder / "one.png", tmp_path / "out.nii", "written as .png or .json"),
        (folder / "one.png", tmp_path / "empty", "it is a folder"),
    ]:
        with pytest.raises(DataError, match=message):
            plan_prediction(source, target, None)


def test_the_coco_file_of_a_folder_of_broken_pictures_is_still_valid(make_oracle, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    (row,) = make_oracle().predict_folder(tmp_path / "in", tmp_path / "out.json")
    assert "a.png" in row["error"]
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["images"] == []


def test_every_reader_says_what_is_written():
    for reader in readers_module.readers().values():
        assert issubclass(reader, FormatReader)
        assert reader.output_suffixes


def test_each_region_is_a_mask_of_its_own(make_regions, tmp_path):
    """Each class is a file of 0 and 1 on the grid of the source, also from Python."""
    truth = save_volume(tmp_path / "scan.nii.gz")
    segmenter = make_regions()
    row = segmenter.predict_file(
        tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz", probabilities=True
    )
    assert row["masks"] == {
        "whole tumour": tmp_path / "out_whole_tumour.nii.gz",
        "core": tmp_path / "out_core.nii.gz",
    }
    assert not (tmp_path / "out.nii.gz").exists()
    expected = {"whole tumour": truth > 0, "core": (truth == 1) | (truth == 3)}
    found = segmenter.segment(tmp_path / "scan.nii.gz")
    assert (found.shape, found.dtype) == ((2, 9, 15, 3), np.uint8)
    for mask, (name, path) in zip(found, row["masks"].items(), strict=True):
        written = nib.load(path)
        np.testing.assert_array_equal(np.asarray(written.dataobj), expected[name])
        np.testing.assert_array_equal(mask, expected[name])
        np.testing.assert_array_equal(written.affine, np.diag([1.0, 1, 3, 1]))
        assert row["voxels"][name] == expected[name].sum()
    shares = np.asarray(nib.load(tmp_path / "out_probabilities.nii.gz").dataobj)
    np.testing.assert_array_equal(shares[..., 0] > 0.5, expected["whole tumour"])


def test_regions_of_pictures(make_regions, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    save_picture(folder / "one.png")
    segmenter = make_regions()
    (row,) = segmenter.predict_folder(folder, tmp_path / "out", fill_holes=True, keep_largest=True)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["one_core.png", "one_whole_tumour.png"]
    core = np.asarray(Image.open(tmp_path / "out" / "one_core.png"))
    np.testing.assert_array_equal(core, (LABELS == 3))  # the largest part of colours 1 and 3
    assert row["voxels"] == {"whole tumour": 20, "core": 20}
    plain = segmenter.segment(folder / "one.png")
    np.testing.assert_array_equal(plain, np.stack([LABELS > 0, LABELS > 0]))


def test_prompted_regions_take_no_pixels_from_each_other(make_regions, tmp_path):
    save_picture(tmp_path / "one.png")
    segmenter = make_regions("box")
    boxes = [[9, 2, 13, 7], [9, 2, 13, 7], [2, 1, 6, 4]]
    labels = ["whole tumour", "core", "core"]
    found = segmenter.segment(tmp_path / "one.png", boxes=boxes, labels=labels)
    np.testing.assert_array_equal(found, np.stack([LABELS == 3, LABELS > 0]))
    target = tmp_path / "one.json"
    segmenter.predict_file(tmp_path / "one.png", target, boxes=boxes, labels=labels)
    kept = json.loads(target.read_text(encoding="utf-8"))["annotations"]
    areas = [(one["category_id"], one["area"]) for one in kept]
    assert areas == [(1, 20), (2, 20), (2, int((LABELS == 1).sum()))]


def test_two_regions_never_share_a_file(tmp_path):
    files = mask_files(tmp_path / "a.b.nii.gz", ["x/y", "x:y", "z"])
    names = [path.name for path in files.values()]
    assert names == ["a.b_x_y.nii.gz", "a.b_x_y_2.nii.gz", "a.b_z.nii.gz"]
