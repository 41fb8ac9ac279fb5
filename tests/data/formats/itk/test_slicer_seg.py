"""Segmentations of 3D Slicer: names, layers, and an extent smaller than the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samadapt.data import check_dataset, open_dataset

sitk = pytest.importorskip("SimpleITK")

SHAPE = (6, 12, 14)  # z, y, x
ORIGIN, SPACING = (-9.0, 4.0, 2.0), (0.5, 0.75, 3.0)
DIRECTION = (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)


def box(z: slice, y: slice, x: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[z, y, x] = 1
    return mask


LIVER = box(slice(1, 4), slice(2, 8), slice(3, 9))
LESION = box(slice(2, 3), slice(4, 6), slice(5, 8))
KIDNEY = box(slice(4, 6), slice(8, 11), slice(9, 13))


def save_image(path: Path, seed: int) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 900, SHAPE).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetOrigin(ORIGIN)
    image.SetSpacing(SPACING)
    image.SetDirection(DIRECTION)
    sitk.WriteImage(image, str(path))
    return image


def save_segments(
    path: Path, layers: list[np.ndarray], segments: list[tuple[str, int, int]]
) -> Path:
    """Write a file as Slicer does: named segments, and layers as a first axis of kind list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    many = len(layers) > 1
    columns = ["(-0.5,0,0)", "(0,-0.75,0)", "(0,0,3)"]
    lines = [
        "NRRD0004",
        "type: uint8",
        f"dimension: {3 + many}",
        "space: left-posterior-superior",
        "sizes: " + " ".join(map(str, [len(layers)] * many + list(SHAPE[::-1]))),
        "space directions: " + " ".join(["none"] * many + columns),
        "kinds: " + " ".join(["list"] * many + ["domain"] * 3),
        "encoding: raw",
        "space origin: (" + ",".join(map(str, ORIGIN)) + ")",
    ]
    for index, (name, value, layer) in enumerate(segments):
        lines += [
            f"Segment{index}_{key}:={text}"
            for key, text in (
                ("ID", f"id{index}"),
                ("Name", name),
                ("LabelValue", value),
                ("Layer", layer),
            )
        ]
    values = np.stack(layers, axis=-1) if many else layers[0]
    path.write_bytes("\n".join([*lines, "", ""]).encode() + values.tobytes())
    return path


def labels_of(root: Path, name: str, **options: Any) -> np.ndarray:
    """Return the labels (z, y, x) of a case."""
    from samadapt.data.formats.shared.volume_slices import to_source

    dataset = open_dataset("itk", root, intensity="mri", **options)
    volume = dataset.reader.read(dataset.case(name))
    return to_source(dataset.table.remap(volume.labels), volume.source).T


def test_segments_are_classes_by_their_names(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        save_image(tmp_path / "images" / f"{name}.nrrd", seed)
        values = LIVER + 3 * KIDNEY
        save_segments(
            tmp_path / "labels" / f"{name}.seg.nrrd",
            [values],
            [("liver", 1, 0), ("left kidney", 3, 0)],
        )
    assert check_dataset("itk", tmp_path) == []
    dataset = open_dataset("itk", tmp_path, intensity="mri")
    assert dataset.classes == ["liver", "left kidney"]
    np.testing.assert_array_equal(labels_of(tmp_path, "b"), LIVER + 2 * KIDNEY)
    np.testing.assert_array_equal(labels_of(tmp_path, "b", classes=["left kidney"]), KIDNEY)


def test_names_count_where_files_number_them_otherwise(tmp_path: Path) -> None:
    for seed, (name, order) in enumerate({"a": (1, 2), "b": (2, 1)}.items()):
        save_image(tmp_path / "images" / f"{name}.nrrd", seed)
        values = order[0] * LIVER + order[1] * KIDNEY
        segments = [("liver", order[0], 0), ("kidney", order[1], 0)]
        save_segments(tmp_path / "labels" / f"{name}.seg.nrrd", [values], segments)
    for name in "ab":
        found = labels_of(tmp_path, name, classes=["liver", "kidney"])
        np.testing.assert_array_equal(found, LIVER + 2 * KIDNEY)


def test_overlapping_layers_are_refused_or_chosen(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        save_image(tmp_path / "images" / f"{name}.nrrd", seed)
        segments = [("liver", 1, 0), ("kidney", 2, 0), ("lesion", 1, 1)]
        layers = [LIVER + 2 * KIDNEY, LESION]
        save_segments(tmp_path / "labels" / f"{name}.seg.nrrd", layers, segments)
    findings = check_dataset("itk", tmp_path)
    assert {f.code for f in findings} == {"overlapping_segments"}
    assert f"'liver' and 'lesion' overlap in {LESION.sum()} voxels" in findings[0].message
    assert "Segment Editor" in findings[0].fix
    found = labels_of(tmp_path, "a", classes=["lesion", "kidney"])
    np.testing.assert_array_equal(found, LESION + 2 * KIDNEY)
    np.testing.assert_array_equal(labels_of(tmp_path, "a", classes=["liver"]), LIVER)


def test_layers_that_do_not_overlap_are_read(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "a.nrrd", 0)
    segments = [("liver", 1, 0), ("kidney", 1, 1)]
    save_segments(tmp_path / "labels" / "a.seg.nrrd", [LIVER, KIDNEY], segments)
    found = labels_of(tmp_path, "a", classes=["liver", "kidney"])
    np.testing.assert_array_equal(found, LIVER + 2 * KIDNEY)


@pytest.mark.parametrize("turned", [False, True])
def test_a_cropped_extent_is_put_in_its_place(tmp_path: Path, turned: bool) -> None:
    image = save_image(tmp_path / "images" / "a.nrrd", 0)
    mask = sitk.GetImageFromArray(LIVER)
    mask.CopyInformation(image)
    mask = mask[2:11, 1:9, 1:5]
    if turned:
        mask = sitk.DICOMOrient(mask, "RAS")
    (tmp_path / "labels").mkdir()
    sitk.WriteImage(mask, str(tmp_path / "labels" / "a.seg.nrrd"), True)
    np.testing.assert_array_equal(labels_of(tmp_path, "a"), LIVER)


def test_a_segmentation_of_another_grid_or_place_is_refused(tmp_path: Path) -> None:
    image = save_image(tmp_path / "images" / "a.nrrd", 0)
    (tmp_path / "labels").mkdir()
    mask = sitk.GetImageFromArray(LIVER)
    mask.CopyInformation(image)
    target = tmp_path / "labels" / "a.seg.nrrd"
    half = mask[2:11, 1:9, 1:5]
    half.SetOrigin([side + 0.2 for side in half.GetOrigin()])
    sitk.WriteImage(half, str(target))
    (finding,) = check_dataset("itk", tmp_path)
    assert finding.code == "shape_mismatch"
    far = sitk.Image(mask)
    far.SetOrigin((-9.0 - 0.5 * 8, 4.0, 2.0))
    sitk.WriteImage(far, str(target))
    (finding,) = check_dataset("itk", tmp_path)
    assert finding.code == "grid_mismatch"
    assert "outside the image" in finding.message


def test_broken_segmentations_are_named(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "a.nrrd", 0)
    target = tmp_path / "labels" / "a.seg.nrrd"
    save_segments(target, [LIVER + 3 * KIDNEY], [("liver", 1, 0)])
    (finding,) = check_dataset("itk", tmp_path)
    assert (finding.code, "value 3" in finding.message) == ("bad_segmentation", True)
    save_segments(target, [LIVER], [("liver", 1, 0), ("kidney", 1, 4)])
    (finding,) = check_dataset("itk", tmp_path)
    assert (finding.code, "layer 4" in finding.message) == ("bad_segmentation", True)


def test_named_layers_beside_masks_without_names(tmp_path: Path) -> None:
    """Some masks of a data set come from Slicer, others from a script."""
    for seed, name in enumerate("abc"):
        image = save_image(tmp_path / "images" / f"{name}.nrrd", seed)
        mask = sitk.GetImageFromArray(LIVER)
        mask.CopyInformation(image)
        (tmp_path / "labels").mkdir(exist_ok=True)
        sitk.WriteImage(mask[2:11, 1:9, 1:5], str(tmp_path / "labels" / f"{name}.seg.nrrd"))
    segments = [("liver", 1, 0), ("kidney", 1, 1)]
    target = tmp_path / "labels" / "a.seg.nrrd"
    save_segments(target, [LIVER, KIDNEY], segments)
    (finding,) = check_dataset("itk", tmp_path)
    assert (finding.code, finding.file) == ("mixed_labels", str(target))
    np.testing.assert_array_equal(labels_of(tmp_path, "b", on_error="skip"), LIVER)
    save_segments(
        target, [LIVER], [("liver", 1, 0)]
    )  # now the values of the names are the same in all files
    assert check_dataset("itk", tmp_path) == []
    assert open_dataset("itk", tmp_path, intensity="mri").classes == ["liver"]
