"""Which files are cases, and which values are classes, in every layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samadapt.data import SliceRef, check_dataset, open_dataset, read_image, readers
from samadapt.data.types import IGNORED
from samadapt.errors import ConfigError, DataError, MissingExtraError


def test_msd(make_msd: Callable[..., Path], tools: Any) -> None:
    dataset = open_dataset("msd", make_msd(6))
    assert dataset.classes == ["one", "two"]
    assert dataset.axis == "axial"
    assert dataset.intensity.to_dict() == {"kind": "percentile", "low": 0.5, "high": 99.5}
    assert dataset.val == ["case_00", "case_05"]
    expected = tools.volume_pair(3)[1][::-1, ::-1].transpose(1, 0, 2)
    np.testing.assert_array_equal(dataset.volume_labels("case_03"), expected)
    assert dataset.volume_labels("case_03").dtype == np.int16


def _nnunet(root: Path, tools: Any, labels: dict[str, Any], channels: dict[str, str]) -> Path:
    for index in range(3):
        image, mask = tools.volume_pair(index)
        for channel in range(len(channels)):
            name = f"a_{index}_{channel:04d}.nii.gz"
            tools.write_nifti(root / "imagesTr" / name, image + channel)
        tools.write_nifti(root / "labelsTr" / f"a_{index}.nii.gz", mask)
    content = {"channel_names": channels, "labels": labels, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def test_nnunet(tmp_path: Path, tools: Any) -> None:
    root = _nnunet(tmp_path, tools, {"background": 0, "liver": 1, "tumour": 2}, {"0": "CT"})
    dataset = open_dataset("nnunet", root)
    assert dataset.classes == ["liver", "tumour"]
    assert dataset.intensity.to_dict() == {"kind": "window", "low": -160.0, "high": 240.0}
    assert [case.name for case in dataset.cases] == ["a_0", "a_1", "a_2"]


@pytest.mark.parametrize("channel", [1, "1", "T2"])
def test_nnunet_channel_by_index_or_name(tmp_path: Path, tools: Any, channel: int | str) -> None:
    root = _nnunet(tmp_path, tools, {"background": 0, "a": 1, "b": 2}, {"0": "T1", "1": "T2"})
    (finding,) = check_dataset("nifti", root)
    assert finding.code == "channel_choice"
    assert "T1, T2" in finding.fix
    dataset = open_dataset("nifti", root, channel=channel)
    assert dataset.cases[0].image.name == "a_0_0001.nii.gz"
    (finding,) = check_dataset("nifti", root, channel="FLAIR")
    assert finding.code == "channel_choice"


def test_nnunet_channel_that_is_missing(tmp_path: Path, tools: Any) -> None:
    root = _nnunet(tmp_path, tools, {"background": 0, "a": 1, "b": 2}, {"0": "T1", "1": "T2"})
    (root / "imagesTr" / "a_1_0001.nii.gz").unlink()
    (finding,) = check_dataset("nifti", root, channel=1)
    assert (finding.code, finding.file) == ("missing_image", str(root / "labelsTr/a_1.nii.gz"))


def test_nnunet_regions_and_ignore_are_told(tmp_path: Path, tools: Any) -> None:
    regions = {"background": 0, "whole": [1, 2], "core": [2]}
    root = _nnunet(tmp_path / "a", tools, regions, {"0": "CT"})
    dataset = open_dataset("nifti", root)
    assert dataset.findings == []
    assert (dataset.classes, dataset.overlapping) == (["whole", "core"], True)
    assert dataset.table.values == ((1, 2), (2,))
    assert open_dataset("nifti", root, classes=["core"]).classes == ["core"]
    assert not open_dataset("nifti", root, classes={"a": 1, "b": 2}).overlapping
    ignoring = {"background": 0, "a": 1, "ignore": 2}
    root = _nnunet(tmp_path / "b", tools, ignoring, {"0": "CT"})
    assert check_dataset("nifti", root) == []
    dataset = open_dataset("nifti", root)
    assert dataset.classes == ["a"]
    labels = dataset.volume_labels(dataset.cases[0].name)
    assert set(np.unique(labels)) == {IGNORED, 0, 1}


def test_two_named_files(tmp_path: Path, tools: Any) -> None:
    image, labels = tools.volume_pair(0)
    tools.write_nifti(tmp_path / "ct.nii.gz", image)
    tools.write_nifti(tmp_path / "seg.nii.gz", labels)
    options = {"image": "ct.nii.gz", "label": "seg.nii.gz", "intensity": "ct:lung"}
    dataset = open_dataset("nifti", tmp_path, classes={"both": [1, 2]}, **options)
    assert [case.name for case in dataset.cases] == ["ct"]
    assert dataset.classes == ["both"]
    assert "validation" in dataset.note
    with pytest.raises(ConfigError, match=r"data\.intensity.*choose"):
        open_dataset("nifti", tmp_path, image="ct.nii.gz", label="seg.nii.gz")
    codes = [f.code for f in check_dataset("nifti", tmp_path, image="ct.nii.gz")]
    assert codes == ["missing_label"]


def test_patterns_pair_by_what_the_star_stands_for(tmp_path: Path, tools: Any) -> None:
    for seed, name in enumerate(("s1", "s2", "s3")):
        image, labels = tools.volume_pair(seed)
        tools.write_nifti(tmp_path / name / "ct.nii.gz", image)
        tools.write_nifti(tmp_path / name / "labels.nii.gz", labels)
    options = {"image": "*/ct.nii.gz", "label": "*/labels.nii.gz"}
    dataset = open_dataset("nifti", tmp_path, intensity="mri", **options)
    assert [case.name for case in dataset.cases] == ["s1", "s2", "s3"]
    (tmp_path / "s2" / "ct.nii.gz").unlink()
    (finding,) = check_dataset("nifti", tmp_path, **options)
    assert (finding.code, finding.file) == ("missing_image", str(tmp_path / "s2/labels.nii.gz"))
    (finding,) = check_dataset("nifti", tmp_path, image="*.mha", label="*.nii.gz")
    assert finding.code == "no_cases"
    (finding,) = check_dataset("nifti", tmp_path, image="*/*.nii.gz", label="x")
    assert finding.code == "bad_pattern"


def test_images_and_labels_folders(tmp_path: Path, tools: Any) -> None:
    for seed, name in enumerate(("a", "b")):
        image, labels = tools.volume_pair(seed)
        tools.write_nifti(tmp_path / "images" / f"{name}.nii.gz", image)
        tools.write_nifti(tmp_path / "labels" / f"{name}_mask.nii.gz", labels)
    dataset = open_dataset("nifti", tmp_path, intensity="mri")
    assert dataset.classes == ["class_1", "class_2"]
    assert (dataset.train, dataset.val) == (["b"], ["a"])


def test_choice_of_classes(make_msd: Callable[..., Path], tools: Any) -> None:
    root = make_msd(2)
    raw = tools.volume_pair(1)[1][::-1, ::-1].transpose(1, 0, 2)
    ref = SliceRef("case_01", 0)
    by_name = open_dataset("nifti", root, classes=["two"])
    np.testing.assert_array_equal(by_name.sample(ref).labels, raw[:, :, 0] == 2)
    renamed = open_dataset("nifti", root, classes={"b": 2, "a": [1]})
    assert renamed.classes == ["b", "a"]
    swapped = np.array([0, 2, 1])[raw[:, :, 0]]
    np.testing.assert_array_equal(renamed.sample(ref).labels, swapped)
    merged = open_dataset("nifti", root, merge_classes=True)
    assert merged.classes == ["foreground"]
    np.testing.assert_array_equal(merged.sample(ref).labels, raw[:, :, 0] > 0)
    with pytest.raises(ConfigError, match=r"no class 'tow'.*did you mean 'two'"):
        open_dataset("nifti", root, classes=["tow"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a": 0}, "0 is background"),
        ({"a": 1, "b": [1, 2]}, "belongs to 'a' and to 'b'"),
        ({"a": "x"}, "label value"),
        ({"a": []}, "label value"),
        ({}, "names no class"),
    ],
)
def test_bad_choices_of_classes(
    make_msd: Callable[..., Path], classes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_dataset("nifti", make_msd(1), classes=classes)


def test_a_case_that_does_not_exist(make_msd: Callable[..., Path]) -> None:
    dataset = open_dataset("nifti", make_msd(2))
    with pytest.raises(DataError, match=r"'case_02'.*did you mean"):
        dataset.volume("case_02")


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_data_type_of_labels(make_msd: Callable[..., Path], tools: Any, dtype: str) -> None:
    root = make_msd(2)
    labels = tools.volume_pair(1)[1]
    path = root / "labelsTr" / "case_01.nii.gz"
    tools.write_nifti(path, labels.astype(dtype))
    dataset = open_dataset("nifti", root)
    read = dataset.volume_labels("case_01")
    np.testing.assert_array_equal(read, labels[::-1, ::-1].transpose(1, 0, 2))
    assert dataset.volume("case_01").labels[:, :, 0].flags.c_contiguous


def _four_axes(root: Path, tools: Any, names: dict[str, str] | None) -> Path:
    for index in range(3):
        image, mask = tools.volume_pair(index)
        both = np.stack([image, image + 5], axis=3)
        tools.write_nifti(root / "images" / f"a{index}.nii.gz", both)
        tools.write_nifti(root / "masks" / f"a{index}.nii.gz", mask)
    if names is not None:
        (root / "dataset.json").write_text(json.dumps({"modality": names}), encoding="utf-8")
    return root


def test_a_channel_of_four_axes_by_name(tmp_path: Path, tools: Any) -> None:
    root = _four_axes(tmp_path, tools, {"0": "T1", "1": "T2"})
    by_name = open_dataset("nifti", root, channel="T2", intensity="mri", classes=["a", "b"])
    by_index = open_dataset("nifti", root, channel=1, intensity="mri", classes=["a", "b"])
    first, second = (d.reader.read(d.case("a1")) for d in (by_name, by_index))
    np.testing.assert_array_equal(first.image, second.image)
    expected = read_image(root / "images" / "a1.nii.gz", channel=0).image + 5
    np.testing.assert_array_equal(first.image, expected)
    alone = read_image(root / "images" / "a1.nii.gz", channel="T2")
    np.testing.assert_array_equal(alone.image, expected)
    (finding,) = check_dataset("nifti", root, channel="FLAIR")
    assert (finding.code, finding.file) == ("channel_choice", str(root / "dataset.json"))
    assert "T1, T2" in finding.message
    with pytest.raises(DataError, match=r"FLAIR.*T1, T2"):
        read_image(root / "images" / "a1.nii.gz", channel="FLAIR")


def test_a_channel_by_name_where_nothing_names_them(tmp_path: Path, tools: Any) -> None:
    root = _four_axes(tmp_path, tools, None)
    (finding,) = check_dataset("nifti", root, channel="T2")
    assert finding.code == "channel_choice"
    assert "'T2'" in finding.message
    with pytest.raises(DataError, match=r"'T2'.*by its index"):
        read_image(root / "images" / "a1.nii.gz", channel="T2")


def test_a_channel_of_a_decathlon_set_by_name(make_msd: Callable[..., Path], tools: Any) -> None:
    root = make_msd(3, modality={"0": "T1", "1": "T2"})
    for index in range(3):
        image = tools.volume_pair(index)[0]
        path = root / "imagesTr" / f"case_{index:02d}.nii.gz"
        tools.write_nifti(path, np.stack([image, image + 5], axis=3))
    dataset = open_dataset("msd", root, channel="T2")
    volume = dataset.reader.read(dataset.case("case_01"))
    expected = read_image(root / "imagesTr" / "case_01.nii.gz", channel=1).image
    np.testing.assert_array_equal(volume.image, expected)
    by_name = read_image(root / "imagesTr" / "case_01.nii.gz", channel="T2").image
    np.testing.assert_array_equal(by_name, expected)


def test_extras_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samadapt.data.formats.base.find_spec", lambda _: None)
    for name, extra in (("dicom", "dicom"), ("coco", "coco"), ("sa1b", "coco"), ("itk", "itk")):
        with pytest.raises(MissingExtraError, match=rf"samadapt\[{extra}\]"):
            check_dataset(name, tmp_path)


@pytest.mark.parametrize("name", sorted(set(readers()) - {"mni152"}))
def test_every_reader_tells_of_a_folder_that_is_not_there(tmp_path: Path, name: str) -> None:
    for root in (None, tmp_path / "none", tmp_path):
        (finding,) = check_dataset(name, root)
        assert finding.severity == "error"
        assert finding.code in ("missing_folder", "no_cases", "missing_label")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (finding,) = check_dataset(name, tmp_path / "file")
    assert finding.code == "missing_folder"


def test_a_dataset_json_with_a_byte_order_mark_is_read(make_msd: Callable[..., Path]) -> None:
    root = make_msd()
    text = (root / "dataset.json").read_text(encoding="utf-8").replace('"one"', '"Tumör"')
    (root / "dataset.json").write_text(text, encoding="utf-8-sig")
    assert open_dataset("nifti", root).classes == ["Tumör", "two"]
