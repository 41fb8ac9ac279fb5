"""DICOM series against SimpleITK, pydicom and highdicom: order, affine, values, masks."""

from __future__ import annotations

import hashlib
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_files import change

from samadapt.data import check_dataset, open_dataset, read_image, write_prediction
from samadapt.data.formats.base import ReaderOptions
from samadapt.data.formats.dicom.reader import DicomReader
from samadapt.data.formats.shared.volume_slices import to_source
from samadapt.errors import DataError

pydicom = pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")
sitk = pytest.importorskip("SimpleITK")

Make = Callable[..., list[Path]]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
PLANES = np.random.default_rng(0).integers(0, 2000, (6, 8, 10)).astype(np.uint16)
COS, SIN = float(np.cos(0.3)), float(np.sin(0.3))
TWICE = np.array([[COS, 0, SIN], [0, 1, 0], [-SIN, 0, COS]]) @ np.array(
    [[1, 0, 0], [0, COS, -SIN], [0, SIN, COS]]
)
ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "upside_down": (1, 0, 0, 0, -1, 0),
    "turned": (-1, 0, 0, 0, -1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (COS, SIN, 0, -SIN, COS, 0),
    "twice_oblique": (*TWICE[:, 0], *TWICE[:, 1]),
}


def _with_simpleitk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the values (x, y, z) and the affine to RAS+ of SimpleITK's series reader."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, LPS @ affine


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_series_as_simpleitk_reads_it(
    tmp_path: Path, make_series: Make, orientation: str
) -> None:
    make_series(tmp_path / "s", PLANES, ORIENTATIONS[orientation])
    volume = read_image(tmp_path / "s")
    values, affine = _with_simpleitk(tmp_path / "s")
    assert volume.source is not None
    np.testing.assert_allclose(volume.source.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(to_source(volume.image, volume.source), values)
    ids = (volume.image > 0).astype(np.uint8) + 1
    write_prediction(ids, volume, tmp_path / "out.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(written.dataobj), (values > 0) + 1)


def test_gantry_tilt_keeps_every_position(tmp_path: Path, make_series: Make) -> None:
    paths = make_series(tmp_path / "s", PLANES, step=(0.0, 0.6, 2.0))
    volume = read_image(tmp_path / "s")
    assert volume.source is not None
    for index, path in enumerate(paths):
        position = LPS[:3, :3] @ [float(v) for v in pydicom.dcmread(path).ImagePositionPatient]
        np.testing.assert_allclose((volume.source.affine @ [0, 0, index, 1])[:3], position)
    ids = (volume.image > 0).astype(np.uint8)
    write_prediction(ids, volume, tmp_path / "labels" / "s.nii.gz")
    (finding,) = check_dataset("dicom", tmp_path)
    assert (finding.code, finding.severity) == ("gantry_tilt", "warning")
    assert "16.7 degrees" in finding.message


def test_values(tmp_path: Path, make_series: Make) -> None:
    signed = PLANES.astype(np.int16) - 900
    slopes = tuple(1 + i / 2 for i in range(6))  # PET has one slope for each slice
    make_series(tmp_path / "pet", signed, RescaleSlope=slopes, RescaleIntercept=-3.5)
    volume = read_image(tmp_path / "pet")
    expected = signed * np.array(slopes)[:, None, None] - 3.5
    assert volume.source is not None
    np.testing.assert_allclose(to_source(volume.image, volume.source).T, expected, rtol=1e-6)
    for name, planes, top in (("u", PLANES, 4095), ("s", signed, -1)):
        folder = tmp_path / name
        kind = "MONOCHROME1"
        make_series(folder, planes, PhotometricInterpretation=kind, BitsStored=12, HighBit=11)
        volume = read_image(folder)
        assert volume.source is not None
        found = to_source(volume.image, volume.source).T
        np.testing.assert_array_equal(found, top - planes.astype(int) - 1000)


def test_compressed(tmp_path: Path, make_series: Make) -> None:
    paths = make_series(tmp_path / "s", PLANES)
    before = read_image(tmp_path / "s").image
    for path in paths[::2]:
        data = pydicom.dcmread(path)
        data.compress(pydicom.uid.RLELossless)
        data.save_as(path)
    np.testing.assert_array_equal(read_image(tmp_path / "s").image, before)
    data = pydicom.dcmread(paths[1])
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + b"\0" * 60])
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    data.save_as(paths[1])
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "s")
    text = str(caught.value)
    assert paths[1].name in text
    assert "JPEG 2000" in text
    assert text.endswith(("[compressed_dicom]", "[truncated_file]"))


def test_enhanced_multi_frame(tmp_path: Path, make_series: Make) -> None:
    paths = make_series(tmp_path / "s", PLANES, ORIENTATIONS["twice_oblique"])
    single = read_image(tmp_path / "s")
    sources = [pydicom.dcmread(path) for path in paths[::-1]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        enhanced = hd.legacy.LegacyConvertedEnhancedCTImage(
            sources,
            hd.UID(),
            2,
            hd.UID(),
            1,
            transfer_syntax_uid=pydicom.uid.ExplicitVRLittleEndian,
        )
    (tmp_path / "e").mkdir()
    enhanced.save_as(tmp_path / "e" / "all.dcm")
    for place in (tmp_path / "e", tmp_path / "e" / "all.dcm"):
        volume = read_image(place)
        np.testing.assert_array_equal(volume.image, single.image)
        assert volume.source is not None
        assert single.source is not None
        np.testing.assert_allclose(volume.source.affine, single.source.affine, atol=1e-6)


def _text(folder: Path, paths: list[Path]) -> None:
    paths[2].write_text("<html>not found</html>", encoding="utf-8")


def _empty(folder: Path, paths: list[Path]) -> None:
    paths[2].write_bytes(b"")


def _cut_header(folder: Path, paths: list[Path]) -> None:
    paths[2].write_bytes(paths[2].read_bytes()[:400])


def _cut_pixels(folder: Path, paths: list[Path]) -> None:
    paths[2].write_bytes(paths[2].read_bytes()[:-40])


def _noise(folder: Path, paths: list[Path]) -> None:
    content = bytearray(paths[2].read_bytes())
    content[300:700] = np.random.default_rng(1).bytes(400)
    paths[2].write_bytes(content)


def _no_pixels(folder: Path, paths: list[Path]) -> None:
    change(paths[2], PixelData=None)


def _gone(folder: Path, paths: list[Path]) -> None:
    paths[2].unlink()


def _uneven(folder: Path, paths: list[Path]) -> None:
    for path in paths[3:]:
        position = pydicom.dcmread(path).ImagePositionPatient
        change(path, ImagePositionPatient=[*position[:2], float(position[2]) + 0.9])


def _double(folder: Path, paths: list[Path]) -> None:
    change(paths[2], ImagePositionPatient=pydicom.dcmread(paths[3]).ImagePositionPatient)


def _two_scans(folder: Path, paths: list[Path]) -> None:
    for path in paths:
        data = pydicom.dcmread(path)
        data.AcquisitionNumber = 2
        data.save_as(folder / f"second_{path.name}")


def _size(folder: Path, paths: list[Path]) -> None:
    change(paths[2], Rows=4, PixelData=PLANES[0, :4].tobytes())


def _huge(folder: Path, paths: list[Path]) -> None:
    for path in paths:
        change(path, Rows=65000, Columns=65000)


def _direction(folder: Path, paths: list[Path]) -> None:
    change(paths[2], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])


def _no_direction(folder: Path, paths: list[Path]) -> None:
    change(paths[2], ImageOrientationPatient=[1, 0, 0, 1, 0, 0])


def _no_position(folder: Path, paths: list[Path]) -> None:
    change(paths[2], ImagePositionPatient=None)


def _nan_position(folder: Path, paths: list[Path]) -> None:
    content = paths[2].read_bytes()
    place = content.index(b"\x20\x00\x32\x00DS") + 8
    size = int.from_bytes(content[place - 2 : place], "little")
    text = b"nan\\1\\1".ljust(size)
    paths[2].write_bytes(content[:place] + text + content[place + size :])


def _zero_spacing(folder: Path, paths: list[Path]) -> None:
    change(paths[2], PixelSpacing=[0, 1])


def _colour(folder: Path, paths: list[Path]) -> None:
    change(paths[2], SamplesPerPixel=3, PhotometricInterpretation="RGB")


def _constant(folder: Path, paths: list[Path]) -> None:
    for path in paths:
        change(path, PixelData=bytes(160))


@pytest.fixture
def two_cases(tmp_path_factory: pytest.TempPathFactory, make_series: Make) -> Path:
    """Return two series with masks; ``order`` lists b's files by position."""
    root = tmp_path_factory.getbasetemp() / "two_cases"
    if not root.is_dir():
        for name in ("a", "b"):
            paths = make_series(root / name, PLANES)
            volume = read_image(root / name)
            mask = (volume.image > 500).astype(np.uint8)
            write_prediction(mask, volume, root / "labels" / f"{name}.nii.gz")
        (root / "order").write_text(" ".join(path.name for path in paths), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("spoil", "code", "names_file"),
    [
        (_text, "not_dicom", True),
        (_empty, "empty_file", True),
        (_cut_header, "truncated_file", True),
        (_cut_pixels, "truncated_file", True),
        (_noise, None, False),
        (_no_pixels, "truncated_file", True),
        (_gone, "missing_slices", False),
        (_uneven, "uneven_spacing", False),
        (_double, "duplicate_position", False),
        (_two_scans, "several_acquisitions", False),
        (_size, "mixed_sizes", False),
        (_huge, "too_large", False),
        (_direction, "mixed_orientations", False),
        (_no_direction, "bad_geometry", True),
        (_no_position, "missing_geometry", True),
        (_nan_position, "bad_geometry", True),
        (_zero_spacing, "bad_spacing", True),
        (_colour, "colour_dicom", True),
        (_constant, "constant_image", False),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_each_fault_is_one_finding(
    tmp_path: Path, two_cases: Path, spoil: Callable[..., None], code: str | None, names_file: bool
) -> None:
    root = tmp_path / "set"
    shutil.copytree(two_cases, root)
    paths = [
        root / "b" / name for name in (two_cases / "order").read_text(encoding="utf-8").split()
    ]
    (root / "order").unlink()
    spoil(root / "b", paths)
    scan = DicomReader(ReaderOptions(root)).scan()
    (finding,) = [f for f in scan.findings if f.severity == "error"]
    assert finding.code == code or code is None
    assert str(root / "b") in finding.file
    assert Path(finding.file).name == paths[2].name or not names_file
    assert scan.left_out == ["b"]
    assert [case.name for case in scan.cases] == ["a"]


@pytest.mark.parametrize("gone", [None, ""], ids=["absent", "empty"])
@pytest.mark.parametrize("key", ["SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"])
@pytest.mark.parametrize("every", [True, False], ids=["all", "one"])
def test_uids_that_an_anonymiser_emptied(
    tmp_path: Path, two_cases: Path, gone: str | None, key: str, every: bool
) -> None:
    root = tmp_path / "set"
    shutil.copytree(two_cases, root)
    (root / "order").unlink()
    before = read_image(two_cases / "b").image
    for path in sorted(root.glob("*/*.dcm"))[None if every else 6 : None if every else 7]:
        change(path, **{key: gone})
    assert not [f for f in check_dataset("dicom", root) if f.severity == "error"]
    dataset = open_dataset("dicom", root)
    assert [case.name for case in dataset.cases] == ["a", "b"]
    np.testing.assert_array_equal(dataset.reader.read(dataset.case("b")).image, before)
    np.testing.assert_array_equal(read_image(root / "b").image, before)


def test_two_series_in_a_folder_and_other_objects(tmp_path: Path, make_series: Make) -> None:
    first = make_series(tmp_path / "case", PLANES, uid="1.2.3")
    names = [path.rename(path.with_name(f"first_{path.name}")) for path in first]
    make_series(tmp_path / "case", PLANES + 1, uid="1.2.4")
    (tmp_path / "case" / "DICOMDIR").write_bytes(b"index")
    (tmp_path / "case" / "notes.txt").write_text("hello", encoding="utf-8")
    change(names[0])
    report = pydicom.dcmread(names[0])
    for key in ("Rows", "Columns", "PixelData"):
        delattr(report, key)
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    report.save_as(tmp_path / "case" / "rtstruct.dcm")
    layout = DicomReader(ReaderOptions(tmp_path)).discover()
    digests = [hashlib.sha256(uid.encode()).hexdigest()[:8] for uid in ("1.2.3", "1.2.4")]
    assert [case.name for case in layout.cases] == [f"case_{digest}" for digest in digests]
    assert [len(case.files) for case in layout.cases] == [6, 6]
    assert {f.code for f in layout.findings} == {"other_file", "other_object"}
    assert layout.modality == "CT"
    with pytest.raises(DataError, match="several_series"):
        read_image(tmp_path / "case")


def test_a_copied_series_is_told(tmp_path: Path, make_series: Make) -> None:
    make_series(tmp_path / "a", PLANES, uid="1.2.3")
    make_series(tmp_path / "b", PLANES, uid="1.2.3")
    (finding,) = check_dataset("dicom", tmp_path)
    assert (finding.code, finding.file) == ("duplicate_case", str(tmp_path / "b"))


def test_an_element_that_cannot_be_decoded_is_a_finding(tmp_path: Path, make_series: Make) -> None:
    path = make_series(tmp_path / "s", PLANES)[1]
    content = path.read_bytes()
    rows = bytes([0x28, 0x00, 0x10, 0x00]) + b"US"
    place = content.index(rows)
    cut = rows + b"\x03\x00" + content[place + 8 : place + 11]
    path.write_bytes(content[:place] + cut + content[place + 10 :])
    found = [f for f in check_dataset("dicom", tmp_path) if f.severity == "error"]
    assert (found[0].code, found[0].file) == ("truncated_file", str(path))
    assert "Doe" not in "".join(map(str, found))


def test_the_same_in_a_series_without_a_uid(tmp_path: Path, make_series: Make) -> None:
    path = min(make_series(tmp_path / "s", PLANES, SeriesInstanceUID=None))  # read first
    content = path.read_bytes()
    frame = bytes([0x20, 0x00, 0x52, 0x00])  # FrameOfReferenceUID, here with an unknown VR
    path.write_bytes(content.replace(frame + b"UI", frame + b"UH"))
    found = [f for f in check_dataset("dicom", tmp_path) if f.severity == "error"]
    assert (found[0].code, found[0].file) == ("truncated_file", str(path))


def test_patients_are_hashes(tmp_path: Path, make_series: Make) -> None:
    for name, patient in (("a", "P-1"), ("b", "P-2"), ("c", "P-1"), ("d", " ")):
        make_series(tmp_path / name, PLANES, PatientID=patient)
    cases = DicomReader(ReaderOptions(tmp_path)).discover().cases
    first, second, third, none = (case.patient for case in cases)
    assert first == third != second
    assert none == ""
    assert "P-1" not in first
    assert first not in repr(cases)


def test_one_id_for_all_people_is_told_with_the_way_out(tmp_path: Path, make_series: Make) -> None:
    for name in "abc":
        make_series(tmp_path / name, PLANES + ord(name), PatientID="ANON")
        volume = read_image(tmp_path / name)
        mask = (volume.image > 0).astype(np.uint8)
        write_prediction(mask, volume, tmp_path / "labels" / f"{name}.nii.gz")
    assert "data.patient='(.+)'" in open_dataset("dicom", tmp_path).case_splits.rule
    apart = open_dataset("dicom", tmp_path, patient="(.+)")
    assert apart.train
    assert apart.val


def test_masks_by_name_by_pattern_and_beside(tmp_path: Path, make_series: Make) -> None:
    ids = None
    for name in ("a", "b"):
        make_series(tmp_path / name / "T1", PLANES)
        volume = read_image(tmp_path / name / "T1")
        ids = np.random.default_rng(3).integers(0, 3, volume.shape).astype(np.uint8)
        write_prediction(ids, volume, tmp_path / "labelsTr" / f"{name}_T1.nii.gz")
    dataset = open_dataset("dicom", tmp_path)
    assert [case.name for case in dataset.cases] == ["a_T1", "b_T1"]
    assert dataset.intensity.to_dict() == {"kind": "window", "low": -160.0, "high": 240.0}
    np.testing.assert_array_equal(dataset.volume_labels("b_T1"), ids)
    for name in ("a", "b"):
        target = tmp_path / name / "mask.nii.gz"
        (tmp_path / "labelsTr" / f"{name}_T1.nii.gz").rename(target)
    named = open_dataset("dicom", tmp_path, image="*/T1", label="*/mask.nii.gz", classes=["x", "y"])
    assert [case.name for case in named.cases] == ["a", "b"]
    (tmp_path / "a" / "mask.nii.gz").rename(tmp_path / "a" / "T1.nii.gz")
    codes = {(f.code, Path(f.file).parent.name) for f in check_dataset("dicom", tmp_path)}
    assert codes == {("missing_label", "b")}


def _seg(paths: list[Path], masks: dict[str, np.ndarray], target: Path, **options: Any) -> None:
    """Write a SEG with highdicom: ``masks`` (d, rows, columns) by label, slices as ``paths``."""
    code = hd.sr.CodedConcept("123037004", "SCT", "Anatomical Structure")
    described = [
        hd.seg.SegmentDescription(
            number, label, code, code, hd.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number, label in enumerate(masks, start=1)
    ]
    kind = options.pop("kind", hd.seg.SegmentationTypeValues.BINARY)
    seg = hd.seg.Segmentation(
        [pydicom.dcmread(path) for path in paths],
        np.stack(list(masks.values()), axis=-1).astype(np.uint8),
        kind,
        described,
        hd.UID(),
        100,
        hd.UID(),
        1,
        "maker",
        "model",
        "1",
        "0",
        **options,
    )
    seg.save_as(target)


@pytest.mark.parametrize(
    ("orientation", "kind"),
    [("turned", "LABELMAP"), ("sagittal", "BINARY"), ("twice_oblique", "BINARY")],
)
def test_segmentations_of_highdicom(
    tmp_path: Path, make_series: Make, orientation: str, kind: str
) -> None:
    rng = np.random.default_rng(5)
    expected = {}
    for name, labels in (("a", ("kidney", "liver")), ("b", ("liver", "spleen"))):
        paths = make_series(tmp_path / name, PLANES, ORIENTATIONS[orientation])
        ids = rng.integers(0, 3, PLANES.shape)
        ids[[1, 4]] = 0  # highdicom leaves empty frames out
        masks = {label: ids == value for value, label in enumerate(labels, start=1)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _seg(paths, masks, tmp_path / name / "seg.dcm", kind=kind)
        numbers = {"kidney": 1, "liver": 2, "spleen": 3}
        expected[name] = sum(mask * numbers[label] for label, mask in masks.items())
    dataset = open_dataset("dicom", tmp_path)
    assert dataset.classes == ["kidney", "liver", "spleen"]
    for name, ids in expected.items():
        volume = dataset.reader.read(dataset.case(name))
        assert volume.source is not None
        np.testing.assert_array_equal(to_source(volume.labels, volume.source).T, ids)


def test_segmentations_that_cannot_be_read(tmp_path: Path, make_series: Make) -> None:
    half = np.zeros(PLANES.shape, bool)
    half[2:4, 2:5] = True
    files = {name: make_series(tmp_path / name, PLANES) for name in "abcdef"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in "adef":
            _seg(files[name], {"x": half}, tmp_path / name / "seg.dcm")
        _seg(files["b"], {"x": half, "y": half}, tmp_path / "b" / "seg.dcm")
        _seg(files["c"], {"x": half}, tmp_path / "c" / "seg.dcm")
    moved = pydicom.dcmread(tmp_path / "d" / "seg.dcm")
    for group in moved.PerFrameFunctionalGroupsSequence:
        position = group.PlanePositionSequence[0].ImagePositionPatient
        group.PlanePositionSequence[0].ImagePositionPatient = [float(v) + 0.3 for v in position]
    moved.save_as(tmp_path / "d" / "seg.dcm")
    change(tmp_path / "e" / "seg.dcm", SegmentSequence=None)
    change(tmp_path / "f" / "seg.dcm", SegmentationType="FRACTIONAL")
    (tmp_path / "c" / "seg.dcm").write_bytes((tmp_path / "c" / "seg.dcm").read_bytes()[:-9])
    found = {Path(f.file).parent.name: f.code for f in check_dataset("dicom", tmp_path)}
    assert found == {
        "b": "overlapping_segments",
        "c": "truncated_file",
        "d": "grid_mismatch",
        "e": "bad_segmentation",
        "f": "fractional_segments",
    }
    assert [case.name for case in open_dataset("dicom", tmp_path, on_error="skip").cases] == ["a"]
    change(tmp_path / "a" / "seg.dcm", SegmentSequence=None)
    assert len(check_dataset("dicom", tmp_path)) == 6  # no mask with names is left


SECRET_KEYS = """
PatientName PatientID OtherPatientIDs PatientAddress PatientComments PatientMotherBirthName
PatientBirthName MedicalRecordLocator EthnicGroup Occupation AdditionalPatientHistory
InstitutionName InstitutionAddress ReferringPhysicianName PerformingPhysicianName OperatorsName
PhysiciansOfRecord StudyDescription SeriesDescription AccessionNumber StudyID DeviceSerialNumber
StationName ImageComments RequestingPhysician ProtocolName
"""
PLANTED = {key: f"SECRET{index:02d}" for index, key in enumerate(str.split(SECRET_KEYS))}


def test_planted_patient_strings_appear_nowhere(
    tmp_path: Path,
    make_series: Make,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    assert len(PLANTED) >= 25
    broken = {"x": {"ImagePositionPatient": None}, "y": {"PixelData": None}, "z": {}}
    for name in ("a", *broken):
        paths = make_series(tmp_path / "in" / name, PLANES, **PLANTED)
        for path in paths:
            data = pydicom.dcmread(path)
            block = data.private_block(0x0011, "SECRET MAKER", create=True)
            block.add_new(1, "LO", "SECRET99")
            data.save_as(path)
        if name in broken:
            change(paths[1], **broken[name])
        if name == "z":  # the position holds a name, which pydicom's error message quotes
            content = paths[1].read_bytes()
            place = content.index(b"\x20\x00\x32\x00DS") + 8
            size = int.from_bytes(content[place - 2 : place], "little")
            text = b"SECRET\\SECRET77\\1".ljust(size)[:size]
            paths[1].write_bytes(content[:place] + text + content[place + size :])
    volume = read_image(tmp_path / "in" / "a")
    write_prediction((volume.image > 0).astype(np.uint8), volume, tmp_path / "labels.nii")
    (tmp_path / "in" / "labels").mkdir()
    for name in ("a", *broken):
        (tmp_path / "in" / "labels" / f"{name}.nii").write_bytes(
            (tmp_path / "labels.nii").read_bytes()
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        findings = check_dataset("dicom", tmp_path / "in")
        dataset = open_dataset("dicom", tmp_path / "in", on_error="skip", cache_dir=tmp_path / "c")
        dataset.volume("a")
    assert len([f for f in findings if f.severity == "error"]) == 3
    with pytest.raises(DataError) as refused:
        open_dataset("dicom", tmp_path / "in")
    out = capfd.readouterr()
    said = [str(findings), repr(dataset), str(dataset.splits()), str(refused.value), caplog.text]
    said += [str(w.message) for w in caught] + [out.out, out.err, repr(dataset.cases)]
    assert not [text for text in said if "SECRET" in text]
    written = [p for p in (tmp_path / "c", tmp_path) for p in p.glob("*") if p.is_file()]
    assert len(written) >= 3
    assert not [path for path in written if b"SECRET" in path.read_bytes()]


def test_a_single_x_ray(tmp_path: Path, make_series: Make) -> None:
    (path,) = make_series(tmp_path / "s", PLANES[:1], Modality="DX")
    change(path, ImagePositionPatient=None, ImageOrientationPatient=None)
    volume = read_image(path)
    assert volume.shape == (8, 10, 1)
    assert volume.spacing_mm == (0.5, 0.75, 1.0)
    np.testing.assert_array_equal(volume.image[:, :, 0], PLANES[0].astype(float) - 1000)


def test_the_real_series(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("mri_dicom") / "series"
    volume = read_image(folder)
    values, affine = _with_simpleitk(folder)
    assert volume.source is not None
    np.testing.assert_allclose(volume.source.affine, affine, atol=1e-9)
    np.testing.assert_array_equal(to_source(volume.image, volume.source), values)
