"""RTSTRUCT contours against a brute-force rasterisation and phantoms of known volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import circle, write_structures

from samadapt.data import check_dataset, open_dataset, read_image
from samadapt.data.formats.dicom import rtstruct as dicom_rtstruct
from samadapt.data.formats.shared.volume_slices import to_source
from samadapt.errors import DataError

pydicom = pytest.importorskip("pydicom")

Make = Callable[..., list[Path]]
Contour = np.ndarray
PLANES = np.random.default_rng(0).integers(0, 2000, (7, 24, 30)).astype(np.uint16)
COS, SIN = float(np.cos(0.3)), float(np.sin(0.3))
TWICE = np.array([[COS, 0, SIN], [0, 1, 0], [-SIN, 0, COS]]) @ np.array(
    [[1, 0, 0], [0, COS, -SIN], [0, SIN, COS]]
)
ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "prone": (-1, 0, 0, 0, -1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (*TWICE[:, 0], *TWICE[:, 1]),
}


def brute_force(polygons: Sequence[np.ndarray], shape: tuple[int, int] = (24, 30)) -> np.ndarray:
    """Fill polygons by the even-odd rule over all of their edges."""
    row, column = np.indices(shape)
    crossings = np.zeros(shape, dtype=int)
    for polygon in polygons:
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if y0 != y1:
                between = (y0 > row) != (y1 > row)
                crossings += between & (column < x0 + (row - y0) * (x1 - x0) / (y1 - y0))
    return crossings % 2 == 1


def labels_of(root: Path, name: str = "a", **options: Any) -> np.ndarray:
    """Return the labels (slice, row, column) of a case."""
    dataset = open_dataset("dicom", root, **options)
    volume = dataset.reader.read(dataset.case(name))
    assert volume.source is not None
    return to_source(volume.labels, volume.source).T


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_contours_as_a_brute_force_rasterisation(
    tmp_path: Path, make_series: Make, orientation: str
) -> None:
    paths = make_series(tmp_path / "a" / "ct", PLANES, ORIENTATIONS[orientation])
    rng = np.random.default_rng(1)
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = rng.uniform(4, 9, 40)
    star = np.column_stack([14.3 + radius * np.cos(turn), 11.2 + radius * np.sin(turn)])
    hole, island = circle(14.3, 11.2, 3.37), circle(14.3, 11.2, 1.71)
    apart = [circle(5.2, 4.9, 3.3), circle(24.6, 18.7, 4.1)]
    drawn = {2: [star], 3: [star, hole], 4: [island, hole, star], 5: apart}
    contours = [(place, polygon) for place, held in drawn.items() for polygon in held]
    write_structures(paths, {"organ": contours}, tmp_path / "a" / "rs.dcm")
    expected = np.zeros(PLANES.shape, bool)
    for place, held in drawn.items():
        expected[place] = brute_force(held)
    np.testing.assert_array_equal(labels_of(tmp_path, "a_ct"), expected)
    assert expected[4].sum() > brute_force([star]).sum() - brute_force([hole]).sum()


def test_a_keyhole_is_a_hole(tmp_path: Path, make_series: Make) -> None:
    paths = make_series(tmp_path / "a", PLANES)
    outer, inner = circle(14.3, 11.2, 9.1), circle(14.3, 11.2, 4.4)
    keyhole = np.vstack([outer, outer[:1], inner[:1], inner[::-1]])
    write_structures(paths, {"ring": [(3, keyhole)]}, tmp_path / "a" / "rs.dcm")
    np.testing.assert_array_equal(labels_of(tmp_path)[3], brute_force([outer, inner]))


@pytest.mark.parametrize("many", [0, 1 << 40], ids=["strips", "whole"])
def test_large_outlines_in_strips(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    monkeypatch.setattr(dicom_rtstruct, "_STRIPS_FROM", many)
    rng = np.random.default_rng(2)
    for _ in range(40):
        turn = np.linspace(0, 2 * np.pi, rng.integers(5, 60), endpoint=False)
        radius = rng.uniform(2, 14, len(turn))
        rows, columns = 12.3 + radius * np.sin(turn), 14.7 + radius * np.cos(turn)
        polygon = np.round(np.column_stack([rows, columns]), 3)
        place, inside, line = dicom_rtstruct._points_of(polygon, (24, 30))
        found = np.zeros((24, 30), bool)
        found[place] = inside | line
        np.testing.assert_array_equal(found, brute_force([polygon[:, ::-1]]))


def test_volumes_of_phantoms(tmp_path: Path, make_series: Make) -> None:
    planes = np.random.default_rng(0).integers(0, 9, (41, 80, 80)).astype(np.uint16)
    paths = make_series(tmp_path / "a", planes, spacing=(0.5, 0.5, 0.5))
    ball = [(z, circle(30.2, 30.4, np.sqrt(18.0**2 - (z - 20) ** 2))) for z in range(3, 38)]
    box = [(z, [[59.5, 19.5], [69.5, 19.5], [69.5, 39.5], [59.5, 39.5]]) for z in range(10, 20)]
    write_structures(paths, {"ball": ball, "box": box}, tmp_path / "a" / "rs.dcm")
    labels = labels_of(tmp_path)
    assert np.count_nonzero(labels == 2) == 10 * 20 * 10
    volume = np.count_nonzero(labels == 1) * 0.125
    assert volume == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.01)
    centre = np.argwhere(labels == 1).mean(axis=0)  # a shift of half a voxel would show here
    np.testing.assert_allclose(centre, [20, 30.4, 30.2], atol=0.03)


def test_contours_through_the_centres_of_voxels_come_back_exactly(
    tmp_path: Path, make_series: Make
) -> None:
    """rt-utils traces a square and its hole through the centres of the outermost voxels."""
    paths = make_series(tmp_path / "a", PLANES, ORIENTATIONS["oblique"])
    outer = [[5, 4], [20, 4], [20, 15], [5, 15]]
    hole = [[9, 7], [14, 7], [14, 11], [9, 11]]  # the voxels around the hole
    write_structures(paths, {"x": [(2, outer), (2, hole)]}, tmp_path / "a" / "rs.dcm")
    expected = np.zeros((24, 30), bool)
    expected[4:16, 5:21] = True
    expected[8:11, 10:14] = False
    np.testing.assert_array_equal(labels_of(tmp_path)[2], expected)


@pytest.mark.parametrize("shift", [0.3, 0.5, -0.3])
def test_contours_between_slices_go_to_the_nearest(
    tmp_path: Path, make_series: Make, shift: float
) -> None:
    paths = make_series(tmp_path / "a", PLANES)
    drawn = {z: circle(14.3, 11.2, 3.1 + z) for z in range(1, 5)}
    contours = [(z + shift, polygon) for z, polygon in drawn.items()]
    write_structures(paths, {"x": contours}, tmp_path / "a" / "rs.dcm")
    labels = labels_of(tmp_path)
    for z, polygon in drawn.items():
        np.testing.assert_array_equal(labels[z + (shift == 0.5)], brute_force([polygon]))
    (found,) = [f for f in check_dataset("dicom", tmp_path) if f.code == "contours_between_slices"]
    assert f"{abs(shift):.2f} slices" in found.message


def test_contours_denser_than_slices_do_not_cancel(tmp_path: Path, make_series: Make) -> None:
    paths = make_series(tmp_path / "a", PLANES)
    polygon = circle(14.3, 11.2, 6.2)
    places = np.arange(1, 5.01, 0.25)
    write_structures(paths, {"x": [(z, polygon) for z in places]}, tmp_path / "a" / "rs.dcm")
    labels = labels_of(tmp_path)
    for z in range(1, 6):
        np.testing.assert_array_equal(labels[z], brute_force([polygon]))
    assert not labels[[0, 6]].any()


def test_gaps_crossing_and_twice(tmp_path: Path, make_series: Make) -> None:
    paths = make_series(tmp_path / "a", PLANES)
    one, two = circle(12.3, 11.2, 5.2), circle(16.3, 11.2, 5.2)
    regions = {
        "gap": [(0, one), (3, one)],
        "crossing": [(5, one), (5, two)],
        "twice": [(6, one)] * 2,
    }
    write_structures(paths, regions, tmp_path / "a" / "rs.dcm")
    found = {f.code: f for f in check_dataset("dicom", tmp_path)}
    assert "gap (2)" in found["contour_gaps"].message
    assert "crossing" in found["contours_cross"].message
    np.testing.assert_array_equal(labels_of(tmp_path)[6] == 3, brute_force([one]))


def test_regions_are_classes_and_some_are_missing(tmp_path: Path, make_series: Make) -> None:
    one, two, body = circle(8.3, 11.2, 4.2), circle(20.3, 11.2, 4.2), circle(14.3, 11.2, 10.8)
    held = {"a": ("Liver", "GTV-1"), "b": ("Liver",), "c": ("Liver", "GTV-1", "BODY")}
    for name, regions in held.items():
        paths = make_series(tmp_path / name, PLANES)
        shapes = {"Liver": one, "GTV-1": two, "BODY": body}
        contours = {region: [(3, shapes[region])] for region in regions}
        write_structures(paths, contours, tmp_path / name / "rs.dcm")
    found = {f.code: f for f in check_dataset("dicom", tmp_path)}
    assert found["overlapping_segments"].file.endswith("c/rs.dcm")
    assert "'BODY'" in found["overlapping_segments"].message
    assert "GTV-1 (2 of 3)" in found["missing_region"].message
    dataset = open_dataset("dicom", tmp_path, classes=["Liver", "GTV-1"])
    assert dataset.classes == ["Liver", "GTV-1"]
    (warned,) = [f for f in dataset.findings if f.code == "missing_region"]
    assert "GTV-1 (2 of 3);" in warned.message
    codes = {f.code for f in open_dataset("dicom", tmp_path, classes=["Liver"]).findings}
    assert "missing_region" not in codes
    counts = [[int((dataset.volume_labels(n) == k).sum()) for k in (1, 2)] for n in "abc"]
    areas = [brute_force([one]).sum(), brute_force([two]).sum()]
    assert counts == [areas, [areas[0], 0], areas]
    assert "SECRET" not in str(list(found.values())) + repr(dataset.cases)


def test_two_regions_of_one_name_are_one_class(tmp_path: Path, make_series: Make) -> None:
    paths = make_series(tmp_path / "a", PLANES)
    one, two = circle(12.3, 11.2, 5.2), circle(16.3, 11.2, 5.2)
    write_structures(paths, {"x": [(3, one)], "y": [(3, two)]}, tmp_path / "a" / "rs.dcm")
    data = pydicom.dcmread(tmp_path / "a" / "rs.dcm")
    data.StructureSetROISequence[1].ROIName = "x "
    data.save_as(tmp_path / "a" / "rs.dcm")
    np.testing.assert_array_equal(labels_of(tmp_path)[3], brute_force([one]) | brute_force([two]))


def _other_frame(data: Any) -> None:
    data.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"


def _tilted(data: Any) -> None:
    values = [float(v) for v in data.ROIContourSequence[0].ContourSequence[0].ContourData]
    values[2] += 9
    data.ROIContourSequence[0].ContourSequence[0].ContourData = values


def _beyond(data: Any) -> None:
    contour = data.ROIContourSequence[0].ContourSequence[0]
    values = np.array([float(v) for v in contour.ContourData]).reshape(-1, 3)
    contour.ContourData = list((values + np.array([0, 0, 99])).ravel())


def _beside(data: Any) -> None:
    contour = data.ROIContourSequence[0].ContourSequence[0]
    values = np.array([float(v) for v in contour.ContourData]).reshape(-1, 3)
    contour.ContourData = list((values + np.array([99, 0, 0])).ravel())


def _points_alone(data: Any) -> None:
    data.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "POINT"


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_other_frame, "other_frame"),
        (_tilted, "bad_contours"),
        (_beyond, "outside_image"),
        (_beside, "outside_image"),
        (_points_alone, "bad_segmentation"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_contours_that_cannot_be_used(
    tmp_path: Path, make_series: Make, spoil: Callable[[Any], None], code: str
) -> None:
    paths = make_series(tmp_path / "a", PLANES)
    write_structures(paths, {"x": [(3, circle(14, 11, 5.2))]}, tmp_path / "a" / "rs.dcm")
    data = pydicom.dcmread(tmp_path / "a" / "rs.dcm")
    spoil(data)
    data.save_as(tmp_path / "a" / "rs.dcm")
    (found,) = [f for f in check_dataset("dicom", tmp_path) if f.severity == "error"]
    assert (found.code, Path(found.file).name) == (code, "rs.dcm")


def test_a_structure_set_finds_its_series(tmp_path: Path, make_series: Make) -> None:
    """A structure set belongs to the series that it names, else to one with its frame."""
    paths = make_series(tmp_path / "a", PLANES)
    make_series(tmp_path / "b", PLANES)
    contours = {"x": [(3, circle(14, 11, 5.2))]}
    target = tmp_path / "plans" / "rs.dcm"
    write_structures(paths, contours, target)
    cases = open_dataset("dicom", tmp_path, on_error="skip").cases
    assert [case.name for case in cases] == ["a"]
    data = pydicom.dcmread(target)
    study = data.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    study.RTReferencedSeriesSequence[0].SeriesInstanceUID = ""
    data.save_as(target)
    cases = open_dataset("dicom", tmp_path, on_error="skip").cases
    assert [case.name for case in cases] == ["a"]
    study.RTReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3.4"
    data.save_as(target)
    codes = {f.code for f in check_dataset("dicom", tmp_path)}
    assert codes >= {"missing_label", "missing_image"}
    with pytest.raises(DataError, match="missing_label"):
        open_dataset("dicom", tmp_path)


def test_a_mask_by_name_wins_over_contours(tmp_path: Path, make_series: Make) -> None:
    from samadapt.data import write_prediction

    paths = make_series(tmp_path / "a", PLANES)
    write_structures(paths, {"x": [(3, circle(14, 11, 5.2))]}, tmp_path / "a" / "rs.dcm")
    volume = read_image(tmp_path / "a")
    mask = (volume.image > 0).astype(np.uint8)
    write_prediction(mask, volume, tmp_path / "labels" / "a.nii.gz")
    np.testing.assert_array_equal(open_dataset("dicom", tmp_path).volume_labels("a"), mask)
    (found,) = check_dataset("dicom", tmp_path)
    assert found.code == "other_object"
    assert "RTSTRUCT (1 file)" in found.message
