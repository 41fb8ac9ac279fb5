"""Several channels of an image: from files, 4D volumes and components to red, green and blue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from samadapt.data import SliceRef, check_dataset, make_intensity, open_dataset, read_image
from samadapt.data.channels import parse_channel
from samadapt.data.findings import FindingError
from samadapt.errors import ConfigError, DataError

COUNT, SHAPE = 3, (8, 9, 6)
NAMES = ("flair", "t1", "t2")
WINDOW = {"kind": "window", "low": 0.0, "high": 255.0}


def planes(case: int, channel: int) -> np.ndarray:
    rng = np.random.default_rng([case, channel])
    return rng.integers(0, 256, SHAPE).astype(np.int16)


def mask(case: int) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:5, 3:7, case : case + 3] = 1
    return labels


def brats(root: Path, tools: Any) -> Path:
    for case in range(COUNT):
        folder = root / f"case{case}"
        for channel, name in enumerate(NAMES):
            tools.write_nifti(folder / f"case{case}_{name}.nii.gz", planes(case, channel))
        tools.write_nifti(folder / f"case{case}_seg.nii.gz", mask(case))
    return root


BRATS = {"image": "*/*_{channel}.nii.gz", "label": "*/*_seg.nii.gz"}


def upright(values: np.ndarray, index: int) -> np.ndarray:
    return values[::-1, ::-1, index].T


def test_a_folder_a_case_with_a_file_a_channel(tmp_path: Path, tools: Any) -> None:
    root = brats(tmp_path, tools)
    options = {**BRATS, "channel": ["flair", "t1", "t2"]}
    assert check_dataset("nifti", root, **options) == []
    dataset = open_dataset("nifti", root, intensity=WINDOW, **options)
    assert [case.name for case in dataset.cases] == ["case0", "case1", "case2"]
    assert dataset.classes == ["foreground"]
    sample = dataset.sample(SliceRef("case1", 2))
    expected = np.stack([upright(planes(1, channel), 2) for channel in range(3)], axis=-1)
    np.testing.assert_array_equal(sample.image, expected)
    np.testing.assert_array_equal(sample.labels, upright(mask(1), 2))


def test_the_order_is_the_users_and_two_give_their_mean(tmp_path: Path, tools: Any) -> None:
    root = brats(tmp_path, tools)
    dataset = open_dataset("nifti", root, intensity=WINDOW, channel=["t2", "flair"], **BRATS)
    image = dataset.sample(SliceRef("case0", 1)).image.astype(int)
    np.testing.assert_array_equal(image[..., 0], upright(planes(0, 2), 1))
    np.testing.assert_array_equal(image[..., 1], upright(planes(0, 0), 1))
    np.testing.assert_array_equal(image[..., 2], (image[..., 0] + image[..., 1] + 1) // 2)


def test_one_channel_in_a_list_is_that_channel(tmp_path: Path, tools: Any) -> None:
    root = brats(tmp_path, tools)
    image = {**BRATS, "image": "*/*_t1.nii.gz"}
    plain = open_dataset("nifti", root, intensity="mri", **image)
    listed = open_dataset("nifti", root, intensity=["mri"], channel=["t1"], **BRATS)
    assert plain.intensity == listed.intensity
    for ref in plain.slices("val"):
        np.testing.assert_array_equal(plain.sample(ref).image, listed.sample(ref).image)


def nnunet(root: Path, tools: Any, *, declared: bool) -> Path:
    images, labels = ("imagesTr", "labelsTr") if declared else ("images", "labels")
    for case in range(COUNT):
        for channel in range(3):
            tools.write_nifti(
                root / images / f"case{case}_{channel:04d}.nii.gz", planes(case, channel)
            )
        tools.write_nifti(root / labels / f"case{case}.nii.gz", mask(case))
    if declared:
        names = {str(index): name for index, name in enumerate(NAMES)}
        content = {"channel_names": names, "labels": {"background": 0, "foreground": 1}}
        (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def four_axes(root: Path, tools: Any) -> Path:
    for case in range(COUNT):
        values = np.stack([planes(case, channel) for channel in range(3)], axis=-1)
        tools.write_nifti(root / "images" / f"case{case}.nii.gz", values)
        tools.write_nifti(root / "labels" / f"case{case}.nii.gz", mask(case))
    names = {str(index): name for index, name in enumerate(NAMES)}
    (root / "dataset.json").write_text(json.dumps({"channel_names": names}), encoding="utf-8")
    return root


def itk(root: Path, tools: Any) -> Path:
    sitk = pytest.importorskip("SimpleITK")
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for case in range(COUNT):
        values = np.stack([planes(case, channel).T for channel in range(3)], axis=-1)
        for part, image in (
            ("images", sitk.GetImageFromArray(values, isVector=True)),
            ("labels", sitk.GetImageFromArray(mask(case).T)),
        ):
            image.SetDirection(np.diag([-1.0, -1.0, 1.0]).ravel().tolist())
            sitk.WriteImage(image, str(root / part / f"case{case}.nrrd"))
    return root


def tiff(root: Path, tools: Any) -> Path:
    import tifffile

    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for case in range(COUNT):
        values = np.stack([planes(case, c)[::-1, ::-1].T for c in range(3)], axis=1)
        axes = {"axes": "ZCYX"}
        tifffile.imwrite(
            root / "images" / f"case{case}.tif",
            values.astype(np.uint16),
            imagej=True,
            metadata=axes,
        )
        labels = mask(case)[::-1, ::-1].T
        tifffile.imwrite(root / "masks" / f"case{case}.tif", labels, metadata={"axes": "ZYX"})
    return root


@pytest.mark.parametrize(
    ("reader", "layout", "channel"),
    [
        ("nifti", "nnunet", [2, 0, 1]),
        ("nifti", "nnunet", ["t2", "flair", "t1"]),
        ("nifti", "numbered", [2, 0, 1]),
        ("nifti", "four", [2, 0, 1]),
        ("nifti", "four", ["t2", "flair", "t1"]),
        ("itk", "itk", [2, 0, 1]),
        ("tiff", "tiff", [2, 0, 1]),
    ],
)
def test_every_layout_gives_the_same_pictures(
    tmp_path: Path, tools: Any, reader: str, layout: str, channel: list[Any]
) -> None:
    make = {
        "nnunet": lambda: nnunet(tmp_path, tools, declared=True),
        "numbered": lambda: nnunet(tmp_path, tools, declared=False),
        "four": lambda: four_axes(tmp_path, tools),
        "itk": lambda: itk(tmp_path, tools),
        "tiff": lambda: tiff(tmp_path, tools),
    }
    dataset = open_dataset(reader, make[layout](), intensity=WINDOW, channel=channel)
    assert [case.name for case in dataset.cases] == ["case0", "case1", "case2"]
    sample = dataset.sample(SliceRef("case2", 3))
    expected = np.stack([upright(planes(2, c), 3) for c in (2, 0, 1)], axis=-1)
    np.testing.assert_array_equal(sample.image, expected)
    np.testing.assert_array_equal(sample.labels, upright(mask(2), 3))


def test_a_rule_a_channel(tmp_path: Path, tools: Any) -> None:
    root = brats(tmp_path, tools)
    rules = ["ct:0,100", "ct:0,255", "mri"]
    dataset = open_dataset("nifti", root, intensity=rules, channel=list(NAMES), **BRATS)
    sample = dataset.sample(SliceRef("case0", 0))
    expected = np.clip(upright(planes(0, 0), 0) / 100, 0, 1) * 255
    assert np.abs(sample.image[..., 0] - expected).max() <= 0.51
    record = json.loads(json.dumps(dataset.intensity.to_dict()))
    assert make_intensity(record) == dataset.intensity
    with pytest.raises(ConfigError, match="2 rules and the images have 3 channels"):
        open_dataset("nifti", root, intensity=rules[:2], channel=list(NAMES), **BRATS)
    for refused in ("rgb", "ct:lung+bone+brain", ["mri", "rgb", "mri"]):
        with pytest.raises(ConfigError, match=r"data\.(intensity|channel)"):
            open_dataset("nifti", root, intensity=refused, channel=list(NAMES), **BRATS)
    with pytest.raises(ConfigError, match=r"data\.neighbours.*several channels"):
        open_dataset("nifti", root, intensity="mri", channel=["t1", "t2"], neighbours=1, **BRATS)


def test_fitted_to_a_volume_each_slice_is_the_same(tmp_path: Path, tools: Any) -> None:
    root = brats(tmp_path, tools)
    dataset = open_dataset("nifti", root, intensity="mri", channel=["t1", "t2"], **BRATS)
    volume = dataset.reader.read(dataset.case("case1"))
    rule = dataset.intensity.fitted(volume)
    for sample in dataset.samples("case1"):
        np.testing.assert_array_equal(rule.picture_of(volume.image, sample.index), sample.image)


def test_refusals_of_the_choice(tmp_path: Path, tools: Any) -> None:
    root = brats(tmp_path, tools)
    with pytest.raises(ConfigError, match=r"1 to 3 channels; got 4.*model\.input_channels"):
        open_dataset("nifti", root, channel=["flair", "t1", "t2", "t1ce"], **BRATS)
    with pytest.raises(ConfigError, match="empty list"):
        open_dataset("nifti", root, channel=[], **BRATS)
    with pytest.raises(ConfigError, match="counts from 0"):
        parse_channel([0, -1])
    with pytest.raises(ConfigError, match=r"reader folder reads one channel.*nifti"):
        open_dataset("folder", root, channel=[0, 1])
    (finding,) = check_dataset("nifti", root, **BRATS)
    assert finding.code == "channel_choice"
    assert "flair, t1, t2" in finding.message
    (finding,) = check_dataset("nifti", root, channel=["flair", "t9"], **BRATS)
    assert finding.code == "channel_choice"
    plain = {"image": "*/*_t1.nii.gz", "label": "*/*_seg.nii.gz"}
    findings = check_dataset("nifti", root, channel=[0, 1], **plain)
    assert {f.code for f in findings} == {"channel_choice"}
    assert "{channel}" in findings[0].fix


def test_a_missing_or_shifted_channel_names_its_file(tmp_path: Path, tools: Any) -> None:
    root = brats(tmp_path, tools)
    (root / "case0" / "case0_t1.nii.gz").unlink()
    moved = np.eye(4)
    moved[0, 3] = 3
    tools.write_nifti(root / "case1" / "case1_t2.nii.gz", planes(1, 2), moved)
    tools.write_nifti(root / "case2" / "case2_t2.nii.gz", planes(2, 2)[:, :, :4])
    findings = check_dataset("nifti", root, channel=list(NAMES), **BRATS)
    assert [(f.code, Path(f.file).name) for f in findings] == [
        ("missing_image", "case0_t1.nii.gz"),
        ("grid_mismatch", "case1_t2.nii.gz"),
        ("shape_mismatch", "case2_t2.nii.gz"),
    ]
    assert "case0_flair.nii.gz, case0_t2.nii.gz" in findings[0].message


def test_channels_with_other_axes_and_a_constant_one(tmp_path: Path, tools: Any) -> None:
    root = brats(tmp_path, tools)
    turned = nib.Nifti1Image(planes(0, 1), np.eye(4)).as_reoriented(
        np.array([[1, -1], [0, 1], [2, 1]])
    )
    nib.save(turned, root / "case0" / "case0_t1.nii.gz")
    tools.write_nifti(root / "case1" / "case1_t1.nii.gz", np.zeros(SHAPE, np.int16))
    options = {**BRATS, "channel": ["flair", "t1"]}
    (finding,) = check_dataset("nifti", root, **options)
    assert (finding.code, finding.severity) == ("constant_channel", "warning")
    assert finding.file.endswith("case1_t1.nii.gz")
    dataset = open_dataset("nifti", root, intensity=WINDOW, **options)
    image = dataset.sample(SliceRef("case0", 2)).image
    np.testing.assert_array_equal(image[..., 1], upright(planes(0, 1), 2))


def test_the_disk_cache_tells_channels_apart(tmp_path: Path, tools: Any) -> None:
    root = brats(tmp_path / "data", tools)
    for channel in (["flair", "t1"], ["flair", "t2"]):
        cached = open_dataset(
            "nifti", root, intensity=WINDOW, channel=channel, cache_dir=tmp_path / "c", **BRATS
        )
        plain = open_dataset("nifti", root, intensity=WINDOW, channel=channel, **BRATS)
        ref = SliceRef("case0", 2)
        np.testing.assert_array_equal(cached.sample(ref).image, plain.sample(ref).image)


def test_one_hot_masks_are_named_as_masks(tmp_path: Path, tools: Any) -> None:
    for case in range(COUNT):
        labels = mask(case)
        hot = np.stack([1 - labels, labels, 0 * labels], axis=-1)
        tools.write_nifti(tmp_path / "images" / f"c{case}.nii.gz", planes(case, 0))
        tools.write_nifti(tmp_path / "labels" / f"c{case}.nii.gz", hot)
    for channel in (None, 1):
        findings = check_dataset("nifti", tmp_path, channel=channel)
        assert {f.code for f in findings} == {"mask_channels"}
        assert "the mask has 3 channels" in findings[0].message
        assert "argmax" in findings[0].fix
        assert "numpy.max(mask * numpy.arange(1, 4), axis=-1)" in findings[0].fix


def test_one_file_with_channels_is_read(tmp_path: Path, tools: Any) -> None:
    values = np.stack([planes(0, channel) for channel in range(3)], axis=-1)
    path = tools.write_nifti(tmp_path / "a.nii.gz", values)
    volume = read_image(path, channel=[2, 1])
    assert volume.shape == (9, 8, 6)
    assert volume.channels == 2
    np.testing.assert_array_equal(volume.image[:, :, 1, 0], upright(values[..., 2], 1))
    with pytest.raises(FindingError, match=r"3 channels.*channels 0, 3 are asked for"):
        read_image(path, channel=[0, 3])
    vector = tools.write_nifti(tmp_path / "v.nii.gz", values[:, :, :, None, :])
    np.testing.assert_array_equal(read_image(vector, channel=[2, 1]).image, volume.image)
    with pytest.raises(DataError, match="expected an image of 1 channel"):
        make_intensity("mri")(volume)
    with pytest.raises(DataError, match="expected an image of 3 channels"):
        make_intensity(["mri", "mri", "mri"])(volume)
