from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samadapt.data.case_index import CaseIndex
from samadapt.data.dataset import Dataset, open_dataset
from samadapt.data.formats.base import FormatReader, read_image, write_prediction
from samadapt.data.formats.folder import FolderReader
from samadapt.data.formats.shared.object_reader import ObjectReader
from samadapt.data.formats.shared.volume_reader import VolumeReader
from samadapt.data.types import Case


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


def settle(root: Path, seconds: float = 60) -> None:
    """Let files look as if they were written a minute ago."""
    for path in root.rglob("*"):
        then = time.time_ns() - int(seconds * 1e9)
        os.utime(path, ns=(then, then))


@contextmanager
def names_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect the names of the cases whose files are read."""
    found: list[str] = []
    with monkeypatch.context() as patch:
        for kind in (VolumeReader, FolderReader, ObjectReader):
            patch.setattr(kind, "examine", _listing(kind.examine, found))
        yield found


def _listing(examine: Any, found: list[str]) -> Any:
    def listed(self: FormatReader, case: Case) -> Any:
        found.append(case.name)
        return examine(self, case)

    return listed


def facts(dataset: Dataset) -> Any:
    """Everything that opening a data set finds, in values that can be compared."""
    cases = [
        {field.name: getattr(case, field.name) for field in fields(case)} for case in dataset.cases
    ]
    for case in cases:
        for key in ("presence", "zeros"):
            case[key] = (case[key].dtype, case[key].tolist())
    return cases, dataset.findings, dataset.splits(), dataset.classes, dataset.intensity


Request = pytest.FixtureRequest


def write_nifti(request: Request, root: Path) -> Path:
    root = request.getfixturevalue("make_msd")()
    two, three = (root / "labelsTr" / f"case_0{number}.nii.gz" for number in (2, 3))
    three.write_bytes(two.read_bytes())
    return root


def write_pictures(request: Request, root: Path) -> Path:
    root = request.getfixturevalue("make_folder")()
    (root / "annotations").mkdir()
    note = json.dumps({"boxes": [[1, 1, 5, 6]]})
    (root / "annotations" / "p0.json").write_text(note, encoding="utf-8")
    return root


def write_dicom(request: Request, root: Path) -> Path:
    (root / "labels").mkdir()
    for number in range(6):
        planes = np.random.default_rng(number).integers(0, 200, (4, 8, 9)).astype(np.int16)
        folder = root / "images" / f"p{number}"
        request.getfixturevalue("make_series")(folder, planes)
        volume = read_image(folder)
        masks = (volume.image > np.median(volume.image)).astype(np.uint8)
        write_prediction(masks, volume, root / "labels" / f"p{number}.nii.gz")
    return root


def write_yolo(request: Request, root: Path) -> Path:
    pytest.importorskip("pycocotools")
    root = request.getfixturevalue("make_folder")()
    shutil.rmtree(root / "masks")
    (root / "labels").mkdir()
    for number in range(6):
        outline = f"{number % 2} 0.1 0.1 0.6 0.1 0.6 0.7\n"
        (root / "labels" / f"p{number}.txt").write_text(outline, encoding="utf-8")
    return root


def write_itk(request: Request, root: Path) -> Path:
    sitk = pytest.importorskip("SimpleITK")
    for part in ("images", "labels"):
        (root / part).mkdir()
        for number in range(6):
            values = np.random.default_rng(number).integers(0, 3, (6, 7, 8)).astype(np.int16)
            path = root / part / f"c{number}.mhd"  # and a .raw beside it
            sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    return root


def write_npz(request: Request, root: Path) -> Path:
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 200, (6, 7, 8)).astype(np.int16)
        labels = (values > 100).astype(np.uint8)
        np.savez(root / f"c{number}.npz", imgs=values, gts=labels, spacing=np.ones(3))
    return root


WRITERS = {
    "nifti": write_nifti,
    "folder": write_pictures,
    "dicom": write_dicom,
    "medsam_npz": write_npz,
    "yolo": write_yolo,
    "itk": write_itk,
}


@pytest.fixture(params=list(WRITERS))
def data_set(request: Request, tmp_path: Path) -> tuple[str, Path]:
    """The name of a format and a folder of six cases."""
    name = str(request.param)
    root = tmp_path / f"a_{name}"
    root.mkdir()
    root = WRITERS[name](request, root)
    settle(root)
    return name, root


OPTIONS: dict[str, dict[str, Any]] = {
    "medsam_npz": {"intensity": "mri"},
    "dicom": {"intensity": "mri"},
    "itk": {"intensity": "mri"},
}


def opened(data_set: tuple[str, Path], index: CaseIndex | None, **more: Any) -> Dataset:
    name, root = data_set
    return open_dataset(name, root, index=index, **{**OPTIONS.get(name, {}), **more})


def test_second_opening_finds_the_same_and_reads_nothing(
    data_set: tuple[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = facts(opened(data_set, None))
    assert facts(opened(data_set, CaseIndex(folder))) == plain
    index = CaseIndex(folder)
    with names_read(monkeypatch) as read:
        dataset = opened(data_set, index)
    assert facts(dataset) == plain
    assert not read
    assert not index.notes
    # What was not read is read when it is used.
    name = dataset.cases[0].name
    expected = opened(data_set, None).volume(name)
    assert np.array_equal(dataset.volume(name).image, expected.image)
    assert np.array_equal(dataset.volume(name).labels, expected.labels)


def other_time(path: Path) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def other_inode(path: Path) -> None:
    stat, content = path.stat(), path.read_bytes()
    beside = path.with_name("beside")  # both files exist, so the inode is another
    beside.write_bytes(content)
    os.utime(beside, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    beside.replace(path)


def other_size(path: Path) -> None:
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [other_time, other_inode, other_size])
@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_changed_file_is_read_again(
    make_folder: Callable[..., Path],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    part: str,
) -> None:
    root = make_folder()
    settle(root)
    open_dataset("folder", root, index=CaseIndex(folder))
    change(root / part / "p3.png")
    with names_read(monkeypatch) as read:
        open_dataset("folder", root, index=CaseIndex(folder))
    assert read == ["p3"]
    with names_read(monkeypatch) as read:
        open_dataset("folder", root, index=CaseIndex(folder))
    assert not read


def test_a_changed_data_file_of_a_header_is_read_again(
    request: Request, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "itk"
    root.mkdir()
    settle(write_itk(request, root))
    open_dataset("itk", root, intensity="mri", index=CaseIndex(folder))
    other_time(root / "labels" / "c1.raw")
    with names_read(monkeypatch) as read:
        open_dataset("itk", root, intensity="mri", index=CaseIndex(folder))
    assert read == ["c1"]


def test_new_annotations_are_read(
    make_folder: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder()
    settle(root)
    open_dataset("folder", root, index=CaseIndex(folder))
    (root / "annotations").mkdir()
    note = json.dumps({"boxes": [[1, 1, 5, 6]]})
    (root / "annotations" / "p2.json").write_text(note, encoding="utf-8")
    with names_read(monkeypatch) as read:
        open_dataset("folder", root, index=CaseIndex(folder))
    assert read == ["p2"]


def test_files_that_have_just_changed_are_not_indexed(
    make_folder: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder()
    settle(root)
    fresh = root / "masks" / "p4.png"
    os.utime(fresh)
    open_dataset("folder", root, index=CaseIndex(folder))
    with names_read(monkeypatch) as read:
        open_dataset("folder", root, index=CaseIndex(folder))
    assert read == ["p4"]


def test_without_trust_all_is_read_and_the_index_written_anew(
    make_folder: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder()
    settle(root)
    open_dataset("folder", root, index=CaseIndex(folder))
    # A change that size, time and inode do not show.
    path = root / "masks" / "p3.png"
    stat, content = path.stat(), (root / "masks" / "p2.png").read_bytes()
    from PIL import Image

    mask = np.zeros((12, 10), np.uint8)
    mask[2:6, 3:7] = 255
    Image.fromarray(mask).save(path)
    path.write_bytes(path.read_bytes().ljust(len(content), b"\0")[: max(stat.st_size, 1)])
    assert path.stat().st_size == stat.st_size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    before = open_dataset("folder", root, index=CaseIndex(folder)).case("p3").truth_digest
    with names_read(monkeypatch) as read:
        now = open_dataset("folder", root, index=CaseIndex(folder, trusts=False))
    assert len(read) == 6
    assert now.case("p3").truth_digest != before
    again = open_dataset("folder", root, index=CaseIndex(folder))
    assert again.case("p3").truth_digest == now.case("p3").truth_digest


@pytest.mark.parametrize("damage", [b"", b"[]", b"\xff\xfe", b"half"])
def test_a_damaged_index_is_written_anew_with_a_note(
    make_folder: Callable[..., Path],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: bytes,
) -> None:
    root = make_folder()
    settle(root)
    expected = facts(open_dataset("folder", root, index=CaseIndex(folder)))
    (path,) = folder.glob("*.json")
    content = path.read_bytes()
    # Half of a digit is enough to be found: the file starts with a checksum.
    path.write_bytes(
        content.replace(b'"axis":null', b'"axis":2   ') if damage == b"half" else damage
    )
    index = CaseIndex(folder)
    assert facts(open_dataset("folder", root, index=index)) == expected
    assert len(index.notes) == 1
    assert f"{path}: the index of the data set is damaged" in index.notes[0]
    index = CaseIndex(folder)
    with names_read(monkeypatch) as read:
        open_dataset("folder", root, index=index)
    assert not read
    assert not index.notes


def test_two_programs_keep_what_the_other_added(
    make_folder: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder()
    settle(root)
    save = CaseIndex.save

    def save_after_another(self: CaseIndex, names: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(CaseIndex, "save", save)
            open_dataset("folder", root, max_cases=5, index=CaseIndex(folder))
        self._added = {name: self._added[name] for name in ("p5",)}
        save(self, names)

    with monkeypatch.context() as patch:
        patch.setattr(CaseIndex, "save", save_after_another)
        open_dataset("folder", root, index=CaseIndex(folder))
    with names_read(monkeypatch) as read:
        open_dataset("folder", root, index=CaseIndex(folder))
    assert not read


def test_another_way_of_reading_has_another_index(
    make_folder: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder()
    settle(root)
    open_dataset("folder", root, index=CaseIndex(folder))
    for options in ({"instances": True}, {"tile": 16}, {"classes": {"cell": 255}}):
        with names_read(monkeypatch) as read:
            open_dataset("folder", root, index=CaseIndex(folder), **options)
        assert len(read) == 6
        # The number of cases is no other way of reading.
        with names_read(monkeypatch) as read:
            open_dataset("folder", root, index=CaseIndex(folder), max_cases=3, **options)
        assert not read


def test_removed_cases_are_forgotten(make_folder: Callable[..., Path], folder: Path) -> None:
    root = make_folder()
    settle(root)
    open_dataset("folder", root, index=CaseIndex(folder))
    for part in ("images", "masks"):
        (root / part / "p5.png").unlink()
    other_time(root / "masks" / "p0.png")
    open_dataset("folder", root, index=CaseIndex(folder))
    (path,) = folder.glob("*.json")
    assert "p5.png" not in path.read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_gives_a_note(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_folder()
    settle(root)
    (tmp_path / "file").write_bytes(b"")
    index = CaseIndex(tmp_path / "file" / "index")
    assert len(open_dataset("folder", root, index=index).cases) == 6
    assert len(index.notes) == 1
    assert "cannot be written" in index.notes[0]


def test_intensity_by_values_reads_nothing_the_second_time(
    make_msd: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_msd()
    (root / "dataset.json").unlink()
    settle(root)
    options = {"image": "imagesTr/*.nii.gz", "label": "labelsTr/*.nii.gz", "intensity": "auto"}
    first = open_dataset("nifti", root, index=CaseIndex(folder), **options)
    with names_read(monkeypatch) as read:
        second = open_dataset("nifti", root, index=CaseIndex(folder), **options)
    assert not read
    assert second.intensity == first.intensity


def test_a_second_opening_takes_less_than_a_millisecond_a_file(
    tmp_path: Path, folder: Path, tools: Any
) -> None:
    image, labels = tools.volume_pair(0, (8, 8, 4))
    for number in range(150):
        image[0, 0, 0] = number
        tools.write_nifti(tmp_path / "d" / "images" / f"c{number:03d}.nii", image)
        tools.write_nifti(tmp_path / "d" / "labels" / f"c{number:03d}.nii", labels)
    settle(tmp_path / "d")
    open_dataset("nifti", tmp_path / "d", intensity="mri", index=CaseIndex(folder))
    began = time.process_time()
    open_dataset("nifti", tmp_path / "d", intensity="mri", index=CaseIndex(folder))
    assert time.process_time() - began < 0.3  # 300 files
