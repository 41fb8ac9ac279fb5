"""Palette masks: indices are classes only where all palettes say the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samadapt.data import SliceRef, check_dataset, open_dataset

BLACK, WHITE, RED, GREEN = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0)
INDICES = np.zeros((12, 10), np.uint8)
INDICES[2:6, 2:8], INDICES[7:10, 1:4] = 1, 2
Colour = tuple[int, int, int]


def _save(path: Path, indices: np.ndarray, palette: Sequence[Colour]) -> None:
    picture = Image.fromarray(indices)
    picture.putpalette([value for colour in palette for value in colour])
    picture.save(path)


@pytest.fixture
def masks(make_folder: Callable[..., Path]) -> Callable[..., Path]:
    """Return a function that makes a folder whose masks have the given indices and palettes."""

    def make(*files: tuple[np.ndarray, Sequence[Colour]]) -> Path:
        root = make_folder(len(files))
        for number, (indices, palette) in enumerate(files):
            _save(root / "masks" / f"p{number}.png", indices, palette)
        return root

    return make


def _codes(root: Path, **options: object) -> list[str]:
    return [finding.code for finding in check_dataset("folder", root, **options)]


def test_equal_palettes_keep_indices(masks: Callable[..., Path]) -> None:
    root = masks(*[(INDICES, [BLACK, RED, GREEN])] * 3)
    dataset = open_dataset("folder", root)
    assert dataset.classes == ["class_1", "class_2"]
    np.testing.assert_array_equal(dataset.sample(SliceRef("p0", 0)).labels, INDICES)


def test_only_colours_that_occur_count(masks: Callable[..., Path]) -> None:
    one = np.minimum(INDICES, 1)
    palettes = [[BLACK, RED, GREEN], [BLACK, RED, WHITE, RED], [BLACK, RED]]
    assert _codes(masks(*[(one, palette) for palette in palettes])) == []


def test_the_same_colours_in_another_order(masks: Callable[..., Path]) -> None:
    swapped = np.array([0, 2, 1], np.uint8)[INDICES]
    files = [(INDICES, [BLACK, RED, GREEN]), (swapped, [BLACK, GREEN, RED])] * 2
    root = masks(*files)
    (finding,) = check_dataset("folder", root)
    assert (finding.code, finding.severity) == ("palette_conflict", "error")
    assert finding.file == str(root / "masks" / "p1.png")
    assert "p0.png" in finding.message
    assert "#ff0000" in finding.message
    assert "#00ff00" in finding.message
    assert "data.classes={NAME" in finding.fix
    assert _codes(root, classes={"a": 1, "b": 2}) == ["palette_conflict"]
    dataset = open_dataset("folder", root, classes={"a": "#ff0000", "b": "#00ff00"})
    for index in range(4):
        labels = dataset.sample(SliceRef(f"p{index}", 0)).labels
        np.testing.assert_array_equal(labels, INDICES)


def test_a_colour_under_two_indices_of_two_files(masks: Callable[..., Path]) -> None:
    first, second = np.minimum(INDICES, 1), np.where(INDICES > 0, 2, 0).astype(np.uint8)
    files = [(first, [BLACK, RED]), (second, [BLACK, GREEN, RED]), (first, [BLACK, RED])]
    root = masks(*files)
    assert _codes(root) == ["palette_conflict"]
    assert _codes(root, classes={"a": "#ff0000"}) == []


def test_objects_saved_as_index_0(masks: Callable[..., Path]) -> None:
    """A paint program may store the white object as index 0 and black as index 1."""
    inverted = (INDICES == 0).astype(np.uint8)
    root = masks(*[(inverted, [WHITE, BLACK])] * 3)
    (finding,) = check_dataset("folder", root)
    assert finding.code == "palette_background"
    assert 'data.background="#000000"' in finding.fix
    dataset = open_dataset("folder", root, background="#000000")
    assert dataset.classes == ["foreground"]
    np.testing.assert_array_equal(dataset.sample(SliceRef("p1", 0)).labels, INDICES > 0)
    named = open_dataset("folder", root, classes={"cell": "#ffffff"})
    np.testing.assert_array_equal(named.sample(SliceRef("p1", 0)).labels, INDICES > 0)


def test_a_single_inverted_file_among_others(masks: Callable[..., Path]) -> None:
    one = np.minimum(INDICES, 1)
    files = [(one, [BLACK, WHITE]), (1 - one, [WHITE, BLACK]), (one, [BLACK, WHITE])]
    root = masks(*files)
    assert _codes(root) == ["palette_conflict"]
    dataset = open_dataset("folder", root, background="#000000")
    for index in range(3):
        np.testing.assert_array_equal(dataset.sample(SliceRef(f"p{index}", 0)).labels, one)


def test_black_that_is_not_index_0(masks: Callable[..., Path]) -> None:
    root = masks(*[((INDICES > 0) + np.uint8(1), [GREEN, BLACK, WHITE])] * 3)
    assert _codes(root) == ["palette_background"]


def test_two_indices_of_one_colour(masks: Callable[..., Path]) -> None:
    good = (INDICES, [BLACK, RED, GREEN])
    root = masks(good, (INDICES, [BLACK, RED, RED]), good)
    (finding,) = check_dataset("folder", root)
    assert finding.code == "palette_double"
    assert finding.file == str(root / "masks" / "p1.png")
    assert "1 and 2" in finding.message
    assert open_dataset("folder", root, on_error="skip").left_out == ["p1"]


def test_a_palette_of_greys(masks: Callable[..., Path]) -> None:
    ramp = [(value, value, value) for value in range(256)]
    root = masks(*[(INDICES, ramp)] * 3)
    assert _codes(root) == []
    np.testing.assert_array_equal(
        open_dataset("folder", root).sample(SliceRef("p0", 0)).labels, INDICES
    )


def test_gif_masks_whose_writer_sorts_the_palette(make_folder: Callable[..., Path]) -> None:
    """PIL sorts the palette of a GIF."""
    root = make_folder(3)
    colours = np.array([BLACK, RED, GREEN], np.uint8)
    for index in range(3):
        path = root / "masks" / f"p{index}.png"
        path.unlink()
        flipped = colours[np.flipud(INDICES)] if index == 1 else colours[INDICES]
        Image.fromarray(flipped).save(path.with_suffix(".gif"))
    dataset = open_dataset("folder", root, classes={"a": "#ff0000", "b": "#00ff00"})
    np.testing.assert_array_equal(dataset.sample(SliceRef("p0", 0)).labels, INDICES)
    np.testing.assert_array_equal(dataset.sample(SliceRef("p1", 0)).labels, np.flipud(INDICES))


def test_predictions_are_masks_that_can_be_read(tmp_path: Path) -> None:
    from samadapt.data.formats.shared.pictures import load_mask, save_mask

    save_mask(INDICES.astype(np.int16), tmp_path / "a.png")
    mask = load_mask(tmp_path / "a.png")
    np.testing.assert_array_equal(mask.values, INDICES)
    assert mask.colours[0] == (0, 0)


def test_object_numbers_may_have_any_colour(masks: Callable[..., Path]) -> None:
    palettes = [[BLACK, RED, RED], [BLACK, GREEN, WHITE], [BLACK, WHITE, GREEN]]
    root = masks(*[(INDICES, palette) for palette in palettes])
    assert _codes(root, instances=True) == []
    assert _codes(masks_with_white_background(root), instances=True) == ["palette_background"]


def masks_with_white_background(root: Path) -> Path:
    _save(root / "masks" / "p1.png", INDICES, [WHITE, RED, GREEN])
    return root


def test_a_mask_that_is_compared_with_no_other(tmp_path: Path) -> None:
    """Masks of DICOM pictures are read one at a time, so there is no other palette."""
    from samadapt.data.checks.palettes import check_palette
    from samadapt.data.findings import FindingError

    check_palette(tmp_path / "a.png", [(0, 0), (1, 0xFF0000)])
    for colours, code in (
        ([(0, 0xFFFFFF), (1, 0)], "palette_background"),
        ([(0, 0), (1, 0xFF0000), (2, 0xFF0000)], "palette_double"),
    ):
        with pytest.raises(FindingError, match=code):
            check_palette(tmp_path / "a.png", colours)


def test_indices_without_a_colour(make_folder: Callable[..., Path]) -> None:
    """PIL writes a palette of one colour for an image of mode P that got none."""
    root = make_folder(3)
    for index in range(3):
        picture = Image.new("P", (10, 12))
        picture.paste(1, (1, 2, 6, 7))
        picture.save(root / "masks" / f"p{index}.png")
    assert _codes(root) == []
    assert open_dataset("folder", root).sample(SliceRef("p0", 0)).labels[2:7, 1:6].all()
    assert set(_codes(root, classes={"a": "#ff0000"})) == {"colour_range"}
