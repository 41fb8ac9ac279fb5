"""Classes named by colour, in masks of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from samadapt.data import SliceRef, check_dataset, open_dataset
from samadapt.data.checks.survey import survey
from samadapt.data.colours import Colours, parse_colour, resolve_colours
from samadapt.errors import ConfigError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
LABELS = np.zeros((12, 10), np.uint8)
LABELS[2:6, 2:8], LABELS[7:10, 1:4] = 1, 2


def painted(*colours: tuple[int, int, int]) -> np.ndarray:
    """Return ``LABELS`` in the colours of 0, 1 and 2."""
    return np.array(colours, np.uint8)[LABELS]


def _folder(make_folder: Callable[..., Path], mask: np.ndarray, count: int = 3) -> Path:
    root = make_folder(count)
    for path in sorted((root / "masks").iterdir()):
        Image.fromarray(mask).save(path)
    return root


@pytest.mark.parametrize("liver", ["#ff0000", "ff0000", "#FF0000", "#f00", "red", ["#ff0000"]])
def test_colours_are_classes(make_folder: Callable[..., Path], liver: Any) -> None:
    root = _folder(make_folder, painted((0, 0, 0), RED, GREEN))
    dataset = open_dataset("folder", root, classes={"spleen": "#00ff00", "liver": liver})
    assert dataset.classes == ["spleen", "liver"]
    labels = dataset.sample(SliceRef("p1", 0)).labels
    np.testing.assert_array_equal(labels, np.array([0, 2, 1])[LABELS])
    assert dataset.findings == []


def test_alpha_palette_grey_and_tiff_files_of_one_data_set(
    make_folder: Callable[..., Path],
) -> None:
    root = make_folder(5)
    pixels = painted((0, 0, 0), WHITE, RED)
    masks = root / "masks"
    for path in masks.iterdir():
        path.unlink()
    Image.fromarray(pixels).save(masks / "p0.png")
    opaque = np.dstack([pixels, np.full((12, 10), 255, np.uint8)])
    Image.fromarray(opaque).save(masks / "p1.png")
    Image.fromarray(pixels).quantize(5).save(masks / "p2.gif")
    Image.fromarray((LABELS == 1) * np.uint8(255)).save(masks / "p3.png")
    tifffile.imwrite(masks / "p4.tif", pixels.astype(np.uint16) * 257, photometric="rgb")
    dataset = open_dataset("folder", root, classes={"a": "#ffffff", "b": "#ff0000"})
    for name in ("p0", "p1", "p2", "p4"):
        np.testing.assert_array_equal(dataset.sample(SliceRef(name, 0)).labels, LABELS)
    np.testing.assert_array_equal(dataset.sample(SliceRef("p3", 0)).labels, LABELS == 1)


def test_several_colours_of_one_class_and_all_merged(make_folder: Callable[..., Path]) -> None:
    root = _folder(make_folder, painted((0, 0, 0), RED, GREEN))
    dataset = open_dataset("folder", root, classes={"tissue": ["#ff0000", "#00ff00"]})
    np.testing.assert_array_equal(dataset.sample(SliceRef("p0", 0)).labels, LABELS > 0)
    both = {"a": "#ff0000", "b": "#00ff00"}
    merged = open_dataset("folder", root, classes=both, merge_classes=True)
    assert merged.classes == ["foreground"]
    np.testing.assert_array_equal(merged.sample(SliceRef("p0", 0)).labels, LABELS > 0)


def test_colours_that_no_mask_holds_are_not_called_empty_masks(
    make_folder: Callable[..., Path],
) -> None:
    root = _folder(make_folder, painted((0, 0, 0), RED, GREEN))
    (found,) = (
        f
        for f in check_dataset("folder", root, classes={"liver": "#0000ff"})
        if f.severity == "error"
    )
    assert found.code == "no_objects"
    assert found.message == "none of 3 masks holds a colour of data.classes (liver)"


def test_unnamed_colours_are_listed_with_their_share(make_folder: Callable[..., Path]) -> None:
    root = _folder(make_folder, painted((0, 0, 0), RED, GREEN))
    findings = check_dataset("folder", root, classes={"liver": "#ff0000"})
    assert {(f.code, f.severity) for f in findings} == {("unnamed_colours", "warning")}
    assert len(findings) == 3
    assert "#00ff00 (7.50%)" in findings[0].message
    named = check_dataset(
        "folder", root, classes={"liver": "#ff0000"}, background=["#000000", "#00ff00"]
    )
    assert named == []
    assert check_dataset("folder", root, classes={"x": "#ff0000"}, background="rest") == []


def _smoothed(size: int = 96) -> np.ndarray:
    big = np.zeros((8 * size, 8 * size, 3), np.uint8)
    y, x = np.mgrid[: 8 * size, : 8 * size]
    big[(y - 380) ** 2 + (x - 350) ** 2 < 150**2] = RED
    return np.asarray(Image.fromarray(big).resize((size, size), Image.Resampling.BICUBIC))


def test_smoothed_edges_are_an_error(make_folder: Callable[..., Path]) -> None:
    root = make_folder(3)
    for index in range(3):
        image = np.random.default_rng(index).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "images" / f"p{index}.png")
        Image.fromarray(_smoothed()).save(root / "masks" / f"p{index}.png")
    findings = check_dataset("folder", root, classes={"liver": "#ff0000"})
    assert {(f.code, f.severity) for f in findings} == {("blended_colours", "error")}
    assert "more (" in findings[0].message
    assert check_dataset("folder", root, classes={"x": "#ff0000"}, background="rest") == []


def test_without_colours_the_message_lists_them(make_folder: Callable[..., Path]) -> None:
    root = _folder(make_folder, painted((0, 0, 0), RED, GREEN))
    finding = check_dataset("folder", root)[0]
    assert finding.code == "colour_mask"
    assert "#ff0000 (20.00%)" in finding.message
    assert "data.classes={" in finding.fix


def test_the_background_may_have_any_colour(make_folder: Callable[..., Path]) -> None:
    root = _folder(make_folder, painted(WHITE, (0, 0, 0), RED))
    classes = {"a": "#000000", "b": "#ff0000"}
    dataset = open_dataset("folder", root, classes=classes, background="#ffffff")
    np.testing.assert_array_equal(dataset.sample(SliceRef("p0", 0)).labels, LABELS)


def test_the_background_alone_names_a_single_class(make_folder: Callable[..., Path]) -> None:
    root = _folder(make_folder, (LABELS == 0) * np.uint8(255))  # objects are black on white
    dataset = open_dataset("folder", root, background="#ffffff")
    assert dataset.classes == ["foreground"]
    np.testing.assert_array_equal(dataset.sample(SliceRef("p0", 0)).labels, LABELS > 0)
    assert open_dataset("folder", root, background="white", classes=["cell"]).classes == ["cell"]
    Image.fromarray(painted(WHITE, RED, BLUE)).save(root / "masks" / "p1.png")
    (finding,) = check_dataset("folder", root, background="#ffffff")
    assert finding.code == "several_colours"
    assert "#0000ff" in finding.message
    assert "data.classes" in finding.fix


def test_survey_counts_classes_by_colour(make_folder: Callable[..., Path]) -> None:
    root = _folder(make_folder, painted((0, 0, 0), RED, GREEN), 5)
    rows = survey("folder", root, classes={"a": "#ff0000", "b": "#00ff00"}).classes
    assert [(row["class"], row["voxels"]) for row in rows] == [("a", 5 * 24), ("b", 5 * 9)]


@pytest.mark.parametrize(
    ("classes", "background", "message"),
    [
        ({"a": "#ff0000", "b": 3}, None, "mixes label values and colours"),
        ({"a": ["#ff0000", 3]}, None, "mixes label values and colours"),
        ({"a": "ff0000", "b": 112233}, None, '"#112233"'),
        ({"a": "#ff0000", "b": "#f00"}, None, "#ff0000 belongs to 'a' and to 'b'"),
        ({"a": "#ff00"}, None, "data.classes.a"),
        ({"a": "reddish"}, None, "data.classes.a"),
        ({"a": "#ff0000"}, "#ff0000", "background's colour"),
        ({"a": "#ff0000"}, "255", "data.background"),
        ({"a": 1}, "#000000", "name the classes by colour too"),
        (None, "rest", "name the classes by colour too"),
    ],
)
def test_choices_that_contradict_themselves(
    make_folder: Callable[..., Path], classes: Any, background: Any, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_dataset("folder", make_folder(3), classes=classes, background=background)
    assert message in str(caught.value)


def test_black_as_a_class_leaves_no_default_background() -> None:
    choice, colours = resolve_colours({"a": "#000000", "b": "#ffffff"}, None)
    assert choice == {"a": [1], "b": [2]}
    assert colours == Colours({0: 1, 0xFFFFFF: 2}, frozenset())
    assert resolve_colours({"a": 1}, None) == ({"a": 1}, None)
    assert resolve_colours(["a"], None) == (["a"], None)
    assert parse_colour("x", "112233") == 0x112233


def test_deep_masks_are_no_colours(make_folder: Callable[..., Path]) -> None:
    root = make_folder(3)
    tifffile.imwrite(root / "masks" / "p1.tif", LABELS.astype(np.uint16) * 300)
    (root / "masks" / "p1.png").unlink()
    (finding,) = check_dataset("folder", root, classes={"a": "#ffffff"})
    assert finding.code == "colour_range"


def test_volumes_have_no_colours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="masks of data=nifti have label values"):
        check_dataset("nifti", tmp_path, classes={"a": "#ff0000"})


def test_ignored_colours(make_folder: Callable[..., Path]) -> None:
    """The border of PASCAL VOC's masks in RGB has a colour of its own."""
    root = _folder(make_folder, painted((0, 0, 0), RED, (224, 224, 192)))
    given: dict[str, Any] = {"classes": {"cat": "#ff0000"}, "ignore": "#e0e0c0"}
    assert check_dataset("folder", root, **given) == []
    labels = open_dataset("folder", root, **given).sample(SliceRef("p0", 0)).labels
    assert (labels[LABELS == 1] == 1).all()
    assert (labels[LABELS == 2] < 0).all()
    alone = open_dataset("folder", root, background="#000000", ignore=["#e0e0c0"])
    np.testing.assert_array_equal(alone.sample(SliceRef("p0", 0)).labels, labels)
    for wrong in ({**given, "ignore": 255}, {**given, "ignore": "#f00"}, {"ignore": "#ff0000"}):
        with pytest.raises(ConfigError, match=r"data\.ignore"):
            check_dataset("folder", root, **wrong)
    with pytest.raises(ConfigError, match=r"data\.regions"):
        open_dataset("folder", root, background="#000000", regions={"a": 1})
