"""Adapters of several channels: one file, a list, a pattern, a folder of a case or of many."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from samadapt.errors import DataError, PromptError
from samadapt.inference.inputs import find_channel_cases
from samadapt.inference.segmenter import Segmenter

SHAPE = (9, 7, 5)
WINDOW = {"kind": "window", "low": 0.0, "high": 255.0}
NAMES = ("flair", "t1", "t1ce")


def labels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, SHAPE).astype(np.uint8)


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([1, 2, 3, 1.0])), path)
    return path


def case(folder: Path, name: str, seed: int, names: tuple[str, ...] = NAMES) -> Path:
    """Only the first channel shows what the oracle finds."""
    for index, channel in enumerate(names):
        values = labels(seed) * 85 if index == 0 else np.full(SHAPE, 7, np.uint8)
        save(folder / f"{name}_{channel}.nii.gz", values)
    return folder


@pytest.fixture
def segmenter(make_oracle):
    def make(channel=NAMES, count: int = 3) -> Segmenter:
        made = make_oracle()
        options = {"channel": list(channel)}
        record = replace(made.record, intensity={"inputs": [WINDOW] * count}, data_options=options)
        return Segmenter(made.sam, record)

    return make


def test_files_of_one_case(tmp_path: Path, segmenter) -> None:
    folder = case(tmp_path / "p1", "p1", 1)
    listed = [folder / f"p1_{name}.nii.gz" for name in NAMES]
    model = segmenter()
    for source in (
        listed,
        folder,
        folder / "p1_{channel}.nii.gz",
        str(tmp_path / "*/*_{channel}.nii.gz"),
    ):
        model.predict_file(source, tmp_path / "out.nii.gz")
        np.testing.assert_array_equal(
            np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj), labels(1)
        )
        np.testing.assert_array_equal(model.segment(source), labels(1))
        (tmp_path / "out.nii.gz").unlink()
    turned = model.segment(folder, channel=["t1", "flair", "t1ce"])
    assert not turned.any()  # the caller's order counts


def test_one_file_with_the_channels(tmp_path: Path, segmenter) -> None:
    values = np.stack([np.full(SHAPE, 7, np.uint8), labels(2) * 85], axis=-1)
    source = save(tmp_path / "a.nii.gz", values)
    np.testing.assert_array_equal(segmenter([1, 0], 2).segment(source), labels(2))
    model = segmenter(["flair", "t1"], 2)
    np.testing.assert_array_equal(model.segment(source, channel=[1, 0]), labels(2))
    with pytest.raises(DataError, match=r"'flair'.*by its index"):
        model.segment(source)
    names = {"channel_names": {"0": "t1", "1": "flair"}}
    (tmp_path / "dataset.json").write_text(json.dumps(names), encoding="utf-8")
    np.testing.assert_array_equal(model.segment(source), labels(2))


@pytest.mark.parametrize("layout", ["flat", "nested", "pattern", "nnunet"])
def test_a_folder_of_cases(tmp_path: Path, segmenter, layout: str) -> None:
    root = tmp_path / "in"
    names = ("0000", "0001", "0002") if layout == "nnunet" else NAMES
    for seed in (1, 2):
        place = root if layout in ("flat", "nnunet") else root / f"p{seed}"
        case(place, f"p{seed}", seed, names)
        save(place / f"p{seed}_seg.nii.gz", labels(seed))
    model = segmenter((0, 1, 2) if layout == "nnunet" else NAMES)
    source = root / "*" / "*_{channel}.nii.gz" if layout == "pattern" else root
    rows = model.predict_folder(source, tmp_path / "out")
    assert [Path(row["output"]).name for row in rows] == ["p1.nii.gz", "p2.nii.gz"]
    for seed in (1, 2):
        found = nib.load(tmp_path / "out" / f"p{seed}.nii.gz")
        np.testing.assert_array_equal(np.asarray(found.dataobj), labels(seed))
    with pytest.raises(DataError, match="holds 2 cases"):
        model.predict_file(source, tmp_path / "one.nii.gz")
    with pytest.raises(DataError, match="expected one case"):
        model.segment(source)


@pytest.mark.parametrize("source", ["imagesTs", "imagesTs/*_{channel}.nii.gz"])
def test_names_of_channels_are_numbers_of_files_in_nnunets_folders(
    tmp_path: Path, segmenter, source: str
) -> None:
    """An adapter of nnU-Net data knows names, and ``dataset.json`` says which number each has."""
    for seed in (1, 2):
        case(tmp_path / "imagesTs", f"p{seed}", seed, ("0001", "0000", "0002"))
    names = {"channel_names": {"0": "t1", "1": "flair", "2": "t1ce"}}
    (tmp_path / "dataset.json").write_text(json.dumps(names), encoding="utf-8")
    rows = segmenter().predict_folder(tmp_path / source, tmp_path / "out")
    assert [Path(row["output"]).name for row in rows] == ["p1.nii.gz", "p2.nii.gz"]
    found = nib.load(tmp_path / "out" / "p2.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), labels(2))


def test_what_is_missing_is_named(tmp_path: Path, segmenter) -> None:
    folder = case(tmp_path / "p1", "p1", 1)
    model = segmenter()
    with pytest.raises(PromptError, match=r"sees 3 \(flair, t1, t1ce\); got t1"):
        model.segment(folder, channel="t1")
    with pytest.raises(DataError, match=r"sees 3 .*got 2"):
        model.segment([folder / "p1_t1.nii.gz", folder / "p1_flair.nii.gz"])
    with pytest.raises(DataError, match=r"one channel and channels flair, t1, t1ce.*folder"):
        model.segment(folder / "p1_t1.nii.gz")
    (folder / "p1_t1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"p1 has no file of the channel t1; it has"):
        model.segment(folder)
    with pytest.raises(DataError, match=r"p1_t1\.nii\.gz|no file matches"):
        model.segment(folder / "p1_{channel}.nii.gz")
    with pytest.raises(DataError, match=r"\(h, w, 3\)"):
        model.segment(np.zeros((4, 4), np.uint8))


def test_arrays_have_a_channel_an_input(segmenter) -> None:
    plane = labels(3)[:, :, 0]
    values = np.stack([plane * 85, 0 * plane], axis=-1)
    np.testing.assert_array_equal(segmenter(["a", "b"], 2).segment(values), plane)


def test_an_adapter_of_one_channel_reads_what_it_was_trained_on(
    tmp_path: Path, make_oracle
) -> None:
    made = make_oracle()
    record = replace(made.record, data_options={"channel": "t1"})
    model = Segmenter(made.sam, record)
    alone = save(tmp_path / "alone.nii.gz", labels(1) * 85)
    np.testing.assert_array_equal(model.segment(alone), labels(1))
    both = save(tmp_path / "x" / "a.nii.gz", np.stack([0 * labels(2), labels(2) * 85], axis=-1))
    names = {"channel_names": {"0": "flair", "1": "t1"}}
    (tmp_path / "x" / "dataset.json").write_text(json.dumps(names), encoding="utf-8")
    np.testing.assert_array_equal(model.segment(both), labels(2))  # the recorded channel
    np.testing.assert_array_equal(model.segment([alone]), labels(1))
    pattern = case(tmp_path / "p", "p", 4, ("t1",)) / "p_{channel}.nii.gz"
    np.testing.assert_array_equal(model.segment(pattern), labels(4))
    with pytest.raises(DataError, match="sees 1"):
        model.segment([alone, both])


def test_the_longest_channel_name_wins(tmp_path: Path) -> None:
    for name in ("a_ce", "a_t1_ce"):
        save(tmp_path / f"{name}.nii.gz", labels(0))
    found = find_channel_cases(tmp_path, ("ce", "t1_ce"))
    assert found is not None
    (only,) = found.cases
    assert [path.name for path in only.files] == ["a_ce.nii.gz", "a_t1_ce.nii.gz"]
