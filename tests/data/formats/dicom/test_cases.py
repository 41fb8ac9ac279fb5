"""Which DICOM files become cases, with which masks; what is left out and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_files import change, circle, write_structures
from PIL import Image

from samadapt.data import check_dataset, open_dataset, read_image, write_prediction
from samadapt.data.formats.base import ReaderOptions
from samadapt.data.formats.dicom.reader import DicomReader
from samadapt.errors import ConfigError, DataError

pydicom = pytest.importorskip("pydicom")

Make = Callable[..., list[Path]]
PLANES = np.random.default_rng(0).integers(0, 2000, (6, 8, 10)).astype(np.uint16)
CORONAL = (1, 0, 0, 0, 0, -1)


def add(make_series: Make, folder: Path, prefix: str, *args: Any, **tags: Any) -> list[Path]:
    """Write a series into a folder that holds others, under names of its own."""
    made = make_series(folder / "made", *args, **tags)
    moved = [path.rename(folder / f"{prefix}{path.name}") for path in made]
    (folder / "made").rmdir()
    return moved


def add_localizers(make_series: Make, folder: Path) -> None:
    """Write one series of two scouts with two orientations."""
    for number, turn in enumerate((CORONAL, (0, 1, 0, 0, 0, -1))):
        kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        add(make_series, folder, f"scout{number}_", PLANES[:1], turn, uid="1.2.9", ImageType=kind)


def add_screenshot(make_series: Make, folder: Path) -> None:
    (path,) = add(make_series, folder, "shot_", PLANES[:1], Modality="OT")
    gone = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    change(path, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", **gone)


def add_object(folder: Path, source: Path, kind: str, modality: str) -> None:
    data = pydicom.dcmread(source)
    for key in ("Rows", "Columns", "PixelData"):
        delattr(data, key)
    data.SOPClassUID, data.Modality = f"1.2.840.10008.5.1.4.1.1.{kind}", modality
    data.SeriesInstanceUID = pydicom.uid.generate_uid()
    data.save_as(folder / f"{modality.lower()}.dcm")


def add_everything(make_series: Make, folder: Path, source: Path) -> None:
    add_localizers(make_series, folder)
    add_screenshot(make_series, folder)
    others = [("481.3", "RTSTRUCT"), ("481.5", "RTPLAN"), ("88.11", "SR"), ("88.59", "KO")]
    for kind, modality in [*others, ("11.1", "PR")]:
        add_object(folder, source, kind, modality)
    (dose,) = add(make_series, folder, "dose_", PLANES[:1], Modality="RTDOSE")
    change(dose, SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2")


def mask_of(folder: Path, target: Path, **options: Any) -> np.ndarray:
    volume = DicomReader(ReaderOptions(folder, **options)).read_image(folder)
    mask = (volume.image > 0).astype(np.uint8)
    write_prediction(mask, volume, target)
    return mask


def test_a_study_of_a_clinic_is_one_case(tmp_path: Path, make_series: Make) -> None:
    for name in ("p1", "p2"):
        paths = make_series(tmp_path / name, PLANES)
        mask_of(tmp_path / name, tmp_path / "labels" / f"{name}.nii.gz")
        add_everything(make_series, tmp_path / name, paths[0])
    (found,) = check_dataset("dicom", tmp_path)
    assert (found.code, found.severity, found.file) == ("other_object", "warning", str(tmp_path))
    for part in ("CT localizer (4 files)", "OT screenshot (2 files)", "RTDOSE (2 files)"):
        assert part in found.message
    for kind in ("RTSTRUCT", "RTPLAN", "SR", "KO", "PR"):
        assert f"{kind} (2 files)" in found.message
    dataset = open_dataset("dicom", tmp_path)
    assert [case.name for case in dataset.cases] == ["p1", "p2"]
    assert [len(case.files) for case in dataset.cases] == [6, 6]
    assert dataset.intensity.to_dict()["kind"] == "window"
    volume = read_image(tmp_path / "p1")
    assert volume.shape[2] == 6
    assert [f.code for f in volume.findings] == ["other_object"]


def test_nested_folders_of_patient_study_and_series(tmp_path: Path, make_series: Make) -> None:
    study = tmp_path / "p1" / "study"
    paths = make_series(study / "ct", PLANES)
    mask_of(study / "ct", tmp_path / "labels" / "p1.nii.gz")
    add_localizers(make_series, study / "scout")
    add_screenshot(make_series, study / "capture")
    add_object(study, paths[0], "481.5", "RTPLAN")
    dataset = open_dataset("dicom", tmp_path)
    assert [case.name for case in dataset.cases] == ["p1_study_ct"]
    assert dataset.cases[0].labels == tmp_path / "labels" / "p1.nii.gz"
    assert read_image(tmp_path / "p1").shape == read_image(study / "ct").shape


def test_localizers_without_a_flag_and_single_images(tmp_path: Path, make_series: Make) -> None:
    make_series(tmp_path / "p1", PLANES)
    mask_of(tmp_path / "p1", tmp_path / "labels" / "p1.nii.gz")
    for number, turn in enumerate((CORONAL, (0, 1, 0, 0, 0, -1))):
        add(make_series, tmp_path / "p1", f"s{number}_", PLANES[:1], turn, uid="1.2.9")
    add(make_series, tmp_path / "p1", "t", PLANES[:1], CORONAL, uid="1.2.8")
    (found,) = check_dataset("dicom", tmp_path)
    assert "CT images of several orientations (2 files), CT single images (1 file)" in found.message
    assert read_image(tmp_path / "p1").shape[2] == 6


def test_a_localizer_in_the_series_of_the_scan(tmp_path: Path, make_series: Make) -> None:
    make_series(tmp_path / "p1", PLANES, uid="1.2.9")
    before = read_image(tmp_path / "p1").image
    add_localizers(make_series, tmp_path / "p1")
    np.testing.assert_array_equal(read_image(tmp_path / "p1").image, before)


def test_localizers_alone_are_refused(tmp_path: Path, make_series: Make) -> None:
    add_localizers(make_series, tmp_path / "p1")
    make_series(tmp_path / "p2", PLANES)
    for name in ("p1", "p2"):
        mask_of(tmp_path / "p2", tmp_path / "labels" / f"{name}.nii.gz")
    (found,) = [f for f in check_dataset("dicom", tmp_path) if f.severity == "error"]
    assert (found.code, found.file) == ("only_localizers", str(tmp_path / "p1"))
    assert "2 localizers and no scan" in found.message
    with pytest.raises(DataError, match="only_localizers"):
        read_image(tmp_path / "p1")


@pytest.fixture
def phases(tmp_path: Path, make_series: Make) -> Path:
    """Two CT phases with one geometry and an MR share a folder; the mask has the folder's name."""
    folder = tmp_path / "set" / "p1"
    make_series(folder, PLANES, uid="1.2.3", SeriesNumber=3, SeriesDescription="SECRET")
    mask_of(folder, tmp_path / "set" / "labels" / "p1.nii.gz")
    add(make_series, folder, "b", PLANES + 1, uid="1.2.4", SeriesNumber=4)
    add(make_series, folder, "c", PLANES[:5], uid="1.2.5", SeriesNumber=5, Modality="MR")
    return tmp_path / "set"


def test_several_volumes_are_listed(phases: Path) -> None:
    (found,) = check_dataset("dicom", phases)
    assert (found.code, found.file) == ("several_series", str(phases / "p1"))
    assert "3 volumes: CT, 6 slices, series number 3 (" in found.message
    assert "MR, 5 slices, series number 5 (" in found.message
    assert "series=3 (data.series= " in found.fix
    assert "SECRET" not in str(found)
    with pytest.raises(DataError, match="several_series") as caught:
        read_image(phases / "p1")
    assert "series=" in str(caught.value)


@pytest.mark.parametrize(
    ("choice", "slices", "offset"),
    [("4", 6, 1), ("CT,3", 6, 0), ("mr", 5, 0), ("largest,4", 6, 1), ("ID", 6, 1)],
)
def test_a_choice_of_series(phases: Path, choice: str, slices: int, offset: int) -> None:
    if choice == "ID":
        (found,) = check_dataset("dicom", phases)
        choice = found.message.split("series number 4 (")[1][:8]
    volume = DicomReader(ReaderOptions(phases, series=choice)).read_image(phases / "p1")
    assert volume.shape[2] == slices
    if slices == 6:
        dataset = open_dataset("dicom", phases, series=choice)
        assert [case.name for case in dataset.cases] == ["p1"]
        image = dataset.reader.read(dataset.cases[0]).image
        assert image.min() == int(PLANES.min()) - 1000 + offset
        (warned,) = dataset.findings
        assert "CT series without a mask (6 files)" in warned.message


@pytest.mark.parametrize("choice", ["PT", "9", "MR,4"])
def test_a_data_series_that_no_series_matches_lists_those_there_are(
    phases: Path, choice: str
) -> None:
    for refused in (
        lambda: open_dataset("dicom", phases, series=choice),
        lambda: DicomReader(ReaderOptions(phases, series=choice)).read_image(phases / "p1"),
    ):
        with pytest.raises(DataError, match="no_series") as caught:
            refused()
        assert "MR, 5 slices" in str(caught.value)


@pytest.mark.parametrize("choice", ["the arterial one", "", ","])
def test_a_malformed_data_series_is_refused(phases: Path, choice: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.series: expected a modality"):
        open_dataset("dicom", phases, series=choice)


def test_a_choice_for_other_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data=folder has none"):
        open_dataset("folder", tmp_path, series="CT")


def test_no_patient_in_any_message(phases: Path, make_series: Make) -> None:
    """Every text field of every header holds planted text, number and modality included."""
    add_everything(make_series, phases / "p1", sorted((phases / "p1").iterdir())[0])
    texts = ("PatientName", "PatientID", "SeriesDescription", "StudyDescription", "StationName")
    for path in (phases / "p1").iterdir():
        change(path, **dict.fromkeys(texts, "SECRET"))
        content = path.read_bytes()
        for tag in (b"\x20\x00\x11\x00IS", b"\x08\x00\x60\x00CS"):  # SeriesNumber, Modality
            place = content.find(tag)
            size = int.from_bytes(content[place + 6 : place + 8], "little")
            held = b"SECRET"[:size].ljust(size)
            content = content[: place + 8] + held + content[place + 8 + size :]
        path.write_bytes(content)
    said = [str(f) for f in check_dataset("dicom", phases)]
    with pytest.raises(DataError) as caught:
        read_image(phases / "p1")
    said.append(str(caught.value))
    assert len(said) > 2
    assert "other, 6 slices (" in said[-1]
    assert not [text for text in said if "SE" in text.replace("SEG", "")]


def test_masks_in_a_tree_as_the_images(tmp_path: Path, make_series: Make) -> None:
    for patient in ("p1", "p2"):
        for path in make_pictures(make_series, tmp_path / "images" / patient, 2):
            save_mask(tmp_path / "masks" / patient / f"{path.stem}.png")
    dataset = open_dataset("dicom", tmp_path, intensity="mri")
    assert [case.name for case in dataset.cases][:3] == ["p1_cxr_0", "p1_cxr_1", "p2_cxr_0"]
    make_series(tmp_path / "v" / "images" / "p1", PLANES)
    mask_of(tmp_path / "v" / "images" / "p1", tmp_path / "v" / "labels" / "p1.nii.gz")
    assert len(open_dataset("dicom", tmp_path / "v").cases) == 1


def test_only_the_series_with_a_mask_is_used(tmp_path: Path, make_series: Make) -> None:
    paths = make_series(tmp_path / "p1", PLANES, uid="1.2.3")
    write_structures(paths, {"x": [(2, circle(5, 4, 2.2))]}, tmp_path / "p1" / "rs.dcm")
    add(make_series, tmp_path / "p1", "pet", PLANES, Modality="PT")
    dataset = open_dataset("dicom", tmp_path)
    assert [len(case.files) for case in dataset.cases] == [6]
    (warned,) = dataset.findings
    assert "PT series without a mask (6 files)" in warned.message


def make_pictures(make_series: Make, folder: Path, count: int = 4, **tags: Any) -> list[Path]:
    """Write X-rays: each is a file and a series of its own, without position."""
    gone = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
    found = []
    for index in range(count):
        plane = np.roll(PLANES[:1], index, axis=2)
        (path,) = make_series(folder, plane, Modality="DX", PatientID=f"P{index}", **tags)
        change(path, ImagerPixelSpacing=[0.2, 0.3], **dict.fromkeys(gone))
        found.append(path.rename(folder / f"cxr_{index}.dcm"))
    return found


MASK = np.zeros((8, 10), np.uint8)
MASK[2:5, 1:8] = 1


def save_mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(MASK).save(path)
    else:
        nib.save(nib.Nifti1Image(MASK.T[:, :, None], np.diag([-0.14, -0.14, 1, 1.0])), path)


@pytest.mark.parametrize("place", ["images/cxr_{}.dcm", "cxr_{}.dcm", "p{}/cxr_{}.dcm"])
@pytest.mark.parametrize(
    "mask", ["masks/cxr_{}.png", "labels/cxr_{}.nii.gz", "masks/cxr_{}_mask.png"]
)
def test_a_picture_is_a_case(tmp_path: Path, make_series: Make, place: str, mask: str) -> None:
    for index, path in enumerate(make_pictures(make_series, tmp_path / "made")):
        target = tmp_path / "set" / place.format(index, index)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
        save_mask(tmp_path / "set" / mask.format(index))
    findings = check_dataset("dicom", tmp_path / "set")
    assert not findings
    dataset = open_dataset("dicom", tmp_path / "set", intensity="mri")
    names = [f"p{i}_cxr_{i}" if place.startswith("p") else f"cxr_{i}" for i in range(4)]
    assert [case.name for case in dataset.cases] == names
    assert len({case.patient for case in dataset.cases}) == 4
    for index, name in enumerate(names):
        volume = dataset.reader.read(dataset.case(name))
        plane = np.roll(PLANES[0], index, axis=1).astype(float) - 1000
        np.testing.assert_array_equal(volume.image[:, :, 0], plane)
        np.testing.assert_array_equal(volume.labels[:, :, 0], MASK)
        assert volume.spacing_mm == (0.2, 0.3, 1.0)


def test_several_pictures_of_a_patient_in_a_folder(tmp_path: Path, make_series: Make) -> None:
    """Mammography has four views, each a series of its own, with masks beside them."""
    for patient in ("p1", "p2"):
        for path in make_pictures(make_series, tmp_path / patient):
            save_mask(path.with_suffix(".png"))
    dataset = open_dataset("dicom", tmp_path, intensity="mri")
    assert [case.name for case in dataset.cases][:2] == ["p1_cxr_0", "p1_cxr_1"]
    assert len(dataset.cases) == 8


def test_uids_and_masks_that_are_missing_in_a_flat_folder(
    tmp_path: Path, make_series: Make
) -> None:
    for path in make_pictures(make_series, tmp_path / "images"):
        change(path, SeriesInstanceUID="", SOPClassUID="", StudyInstanceUID="")
        save_mask(tmp_path / "masks" / f"{path.stem}.png")
    (tmp_path / "masks" / "cxr_2.png").unlink()
    save_mask(tmp_path / "masks" / "stray.png")
    found = {f.code: f for f in check_dataset("dicom", tmp_path)}
    assert set(found) == {"missing_label", "missing_image"}
    assert Path(found["missing_label"].file).name == "cxr_2.dcm"
    assert Path(found["missing_image"].file).name == "stray.png"
    dataset = open_dataset("dicom", tmp_path, intensity="mri", on_error="skip")
    assert len({case.patient for case in dataset.cases}) == 3


def test_a_flat_folder_of_ct_slices(tmp_path: Path, make_series: Make) -> None:
    """Each slice is a series and a patient of its own; or one series has a mask for each slice."""
    for number, uid in enumerate(("1.2.3", "1.2.4", "1.2.5", "1.2.6", "1.2.6")):
        (path,) = make_series(tmp_path / "made", PLANES[number : number + 1], uid=uid)
        (tmp_path / "images").mkdir(exist_ok=True)
        path.rename(tmp_path / "images" / f"s{number}.dcm")
        mask_of(tmp_path / "images" / f"s{number}.dcm", tmp_path / "masks" / f"s{number}.nii.gz")
    cases = open_dataset("dicom", tmp_path).cases
    assert [case.name for case in cases] == ["s0", "s1", "s2", "s3", "s4"]


def make_cine(make_series: Make, folder: Path, **tags: Any) -> Path:
    path = make_pictures(make_series, folder, 1, **tags)[0]
    data = pydicom.dcmread(path)
    data.SOPClassUID, data.Modality = "1.2.840.10008.5.1.4.1.1.3.1", "US"
    data.NumberOfFrames, data.PixelData = 6, PLANES.tobytes()
    data.save_as(path)
    return path.rename(folder / "cine.dcm")


def test_a_cine_of_ultrasound_is_read_as_frames(tmp_path: Path, make_series: Make) -> None:
    path = make_cine(make_series, tmp_path / "p1")
    masks = (PLANES > 900).astype(np.uint8)
    (tmp_path / "labels").mkdir()
    image = nib.Nifti1Image(masks.transpose(2, 1, 0), np.diag([-0.8, -0.8, 3, 1.0]))
    nib.save(image, tmp_path / "labels" / "p1.nii.gz")
    (found,) = check_dataset("dicom", tmp_path)
    assert (found.code, found.severity) == ("frames_as_slices", "warning")
    assert "6 frames" in found.message
    dataset = open_dataset("dicom", tmp_path, intensity="mri")
    volume = dataset.reader.read(dataset.case("p1"))
    np.testing.assert_array_equal(volume.image.transpose(2, 0, 1), PLANES.astype(float) - 1000)
    np.testing.assert_array_equal(volume.labels.transpose(2, 0, 1), masks)
    assert volume.spacing_mm is None
    change(path, Modality="CT")
    with pytest.raises(DataError, match="missing_geometry"):
        read_image(path)


def test_the_spacing_of_ultrasound(tmp_path: Path, make_series: Make) -> None:
    path = make_pictures(make_series, tmp_path, 1)[0]
    region = pydicom.Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03  # cm
    change(path, ImagerPixelSpacing=None, Modality="US", SequenceOfUltrasoundRegions=[region])
    assert read_image(path).spacing_mm == (0.3, 0.2, 1.0)
    change(path, SequenceOfUltrasoundRegions=None)
    assert read_image(path).spacing_mm is None


def test_a_mask_against_the_rows_of_a_picture_is_told(tmp_path: Path, make_series: Make) -> None:
    make_pictures(make_series, tmp_path / "images", 1)
    (tmp_path / "masks").mkdir()
    nib.save(nib.Nifti1Image(MASK.T[:, :, None], np.eye(4)), tmp_path / "masks" / "cxr_0.nii.gz")
    dataset = open_dataset("dicom", tmp_path, intensity="mri")
    (found,) = dataset.findings
    assert found.code == "mask_by_index"
    np.testing.assert_array_equal(dataset.volume_labels("cxr_0")[:, :, 0], MASK)


def write_seg(paths: list[Path], target: Path, kind: str = "BINARY") -> None:
    hd = pytest.importorskip("highdicom")
    code = hd.sr.CodedConcept("123037004", "SCT", "Anatomical Structure")
    manual = hd.seg.SegmentAlgorithmTypeValues.MANUAL
    described = [hd.seg.SegmentDescription(1, "Lesion", code, code, manual)]
    mask = np.zeros(PLANES.shape, np.float32 if kind == "FRACTIONAL" else np.uint8)
    mask[2:4, 2:6, 3:7] = 0.7 if kind == "FRACTIONAL" else 1
    sources = [pydicom.dcmread(path) for path in paths]
    rest = (hd.UID(), 100, hd.UID(), 1, "maker", "model", "1", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hd.seg.Segmentation(sources, mask, kind, described, *rest).save_as(target)


def unrefer(path: Path, *, images: bool = False) -> None:
    """Remove the references to series, and optionally those to images, from a SEG object."""
    data = pydicom.dcmread(path)
    del data.ReferencedSeriesSequence
    if images:
        for group in data.PerFrameFunctionalGroupsSequence:
            if "DerivationImageSequence" in group:
                del group.DerivationImageSequence
    data.save_as(path)


@pytest.mark.parametrize("images", [False, True], ids=["images", "frame_of_reference"])
def test_a_segmentation_without_references(tmp_path: Path, make_series: Make, images: bool) -> None:
    """Two scans share study and frame of reference, so that the grid decides."""
    study, frame = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    for name, origin in (("a", (-10.0, 20.0, 5.0)), ("b", (-10.0, 20.0, 905.0))):
        paths = make_series(tmp_path / name, PLANES, origin=origin)
        for path in paths:
            change(path, StudyInstanceUID=study, FrameOfReferenceUID=frame)
    write_seg(paths, tmp_path / "seg.dcm")
    unrefer(tmp_path / "seg.dcm", images=images)
    (case,) = DicomReader(ReaderOptions(tmp_path)).scan().cases
    assert case.name == "b"
    dataset = open_dataset("dicom", tmp_path, on_error="skip")
    assert dataset.classes == ["Lesion"]
    assert int(dataset.volume_labels("b").sum()) == 2 * 4 * 4


def test_a_segmentation_that_fits_nothing_or_two_says_so(tmp_path: Path, make_series: Make) -> None:
    study, frame = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    for name in ("a", "b"):
        paths = make_series(tmp_path / name, PLANES)
        for path in paths:
            change(path, StudyInstanceUID=study, FrameOfReferenceUID=frame)
    write_seg(paths, tmp_path / "seg.dcm")
    unrefer(tmp_path / "seg.dcm", images=True)
    found = {f.code: f for f in check_dataset("dicom", tmp_path)}
    assert "frame of reference and grid fit 2 series" in found["missing_image"].message
    change(tmp_path / "seg.dcm", FrameOfReferenceUID="1.2.3")
    found = {f.code: f for f in check_dataset("dicom", tmp_path)}
    assert "no series has its frame of reference" in found["missing_image"].message


def test_fractional_segments_are_refused_by_name(tmp_path: Path, make_series: Make) -> None:
    paths = make_series(tmp_path / "a", PLANES)
    write_seg(paths, tmp_path / "a" / "seg.dcm", "FRACTIONAL")
    (found,) = [f for f in check_dataset("dicom", tmp_path) if f.severity == "error"]
    assert found.code == "fractional_segments"
    assert "it is FRACTIONAL" in found.message


def test_patterns_of_files(tmp_path: Path, make_series: Make) -> None:
    for path in make_pictures(make_series, tmp_path / "x"):
        save_mask(tmp_path / "y" / f"m_{path.stem}.png")
    dataset = open_dataset("dicom", tmp_path, image="x/*.dcm", label="y/m_*.png", intensity="mri")
    assert [case.name for case in dataset.cases] == [f"cxr_{i}" for i in range(4)]


def test_several_volumes_in_folders_below_the_patient(tmp_path: Path, make_series: Make) -> None:
    for name, kind in (("ct1", "CT"), ("ct2", "CT"), ("mr", "MR")):
        make_series(tmp_path / "p1" / "study" / name, PLANES, Modality=kind)
    mask_of(tmp_path / "p1" / "study" / "mr", tmp_path / "labels" / "p1.nii.gz")
    (found,) = check_dataset("dicom", tmp_path)
    assert (found.code, found.file) == ("several_series", str(tmp_path / "p1"))
    assert "3 volumes" in found.message
    dataset = open_dataset("dicom", tmp_path, series="MR")
    assert [case.name for case in dataset.cases] == ["p1_study_mr"]


def test_names_that_are_uids(tmp_path: Path, make_series: Make) -> None:
    for index, path in enumerate(make_pictures(make_series, tmp_path / "images")):
        path.rename(path.with_name(f"1.2.840.113619.{index}"))
        save_mask(tmp_path / "masks" / f"1.2.840.113619.{index}.png")
    dataset = open_dataset("dicom", tmp_path, intensity="mri")
    assert [case.name for case in dataset.cases] == [f"1.2.840.113619.{i}" for i in range(4)]
    assert not dataset.findings
