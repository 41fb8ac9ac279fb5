"""``data=auto``: the reader that a folder's files ask for."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from samadapt.data.dataset import open_dataset
from samadapt.data.detect import detect_reader
from samadapt.errors import ConfigError

FOLDERS = {
    "nifti": ["imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "dataset.json"],
    "itk": ["a/image.nrrd", "a/label.nrrd"],
    "dicom": ["a/0001.dcm", "a/label.nii.gz"],
    "medsam_npz": ["imgs/a.npy", "gts/a.npy"],
    "folder": ["images/a.png", "masks/a.png", "annotations.json"],
    "coco": ["images/a.png", "annotations.json"],
    "yolo": ["images/a.png", "labels/a.txt", "data.yaml"],
    "labelme": ["a.png", "a.json", "b.png"],
    "sa1b": ["sa_1.jpg", "sa_1.json"],
}


def make(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


@pytest.mark.parametrize(("reader", "names"), FOLDERS.items())
def test_the_files_decide(tmp_path, reader, names):
    assert detect_reader(make(tmp_path, names)) == reader


def test_dicom_without_an_ending_is_known_by_its_mark(tmp_path):
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    assert detect_reader(tmp_path) == "dicom"


def test_a_tiff_of_several_pages_is_a_volume(tmp_path):
    make(tmp_path, ["masks/a.tif", "images/.hidden.nii"])
    pages = [Image.fromarray(np.zeros((8, 8), np.uint8)) for _ in range(3)]
    pages[0].save(tmp_path / "images" / "a.tif", save_all=True, append_images=pages[1:])
    assert detect_reader(tmp_path) == "tiff"
    pages[0].save(tmp_path / "images" / "a.tif")
    assert detect_reader(tmp_path) == "folder"


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "holds no files"),
        (["a.xyz", "b.xyz", "c"], "2 files with .xyz, 1 files with no ending"),
        (["a.nrrd", "b.nii"], "several formats (itk, nifti); name the one to read"),
        (["images/a.png", "labels/a.txt", "x/coco.json"], "several formats (yolo, coco)"),
    ],
)
def test_what_cannot_be_decided_is_said(tmp_path, names, text):
    with pytest.raises(ConfigError) as caught:
        detect_reader(make(tmp_path, names))
    assert text in str(caught.value)


@pytest.mark.parametrize("root", [None, "nowhere"])
def test_a_folder_is_needed(root):
    with pytest.raises(ConfigError, match=r"data\.root"):
        detect_reader(root)


def test_a_data_set_opens_as_with_the_name_of_its_reader(make_pictures):
    root = make_pictures(4)
    found, named = open_dataset("auto", root), open_dataset("folder", root)
    assert found.name == named.name == "folder"
    assert [case.name for case in found.cases] == [case.name for case in named.cases]
