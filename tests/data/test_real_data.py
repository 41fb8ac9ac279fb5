"""The data sets that people will name first, as they are."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from samadapt.data import SliceRef, check_dataset, open_dataset, write_prediction
from samadapt.data.formats.mni152 import tissue_labels
from samadapt.errors import MissingExtraError


def test_mni152() -> None:
    pytest.importorskip("nilearn")
    dataset = open_dataset("mni152")
    assert dataset.classes == ["grey_matter", "white_matter"]
    assert dataset.axis == "axial"
    assert "One averaged brain" in dataset.note
    train, val = dataset.slices("train"), dataset.slices("val")
    gap = min(abs(a.index - b.index) for a in train for b in val)
    assert gap > 5
    assert len(val) == 30
    assert len(train) > 100
    assert dataset.presence("mni152")[[ref.index for ref in val]].all()
    labels = dataset.volume_labels("mni152")
    assert labels.shape == (233, 197, 189)
    assert [int((labels == value).sum()) for value in (1, 2)] == [1079599, 632004]
    sample = dataset.sample(val[0])
    grey, white = (sample.image[:, :, 0][sample.labels == value].mean() for value in (1, 2))
    assert 60 < grey < white < 250
    assert not check_dataset("mni152")


def test_mni152_is_what_nilearn_gives() -> None:
    pytest.importorskip("nilearn")
    template = nib.load(open_dataset("mni152").cases[0].image)
    datasets = pytest.importorskip("nilearn.datasets")
    ours = np.asarray(template.dataobj).astype(np.float32)
    theirs = datasets.load_mni152_template(resolution=1).get_fdata(dtype=np.float32)
    np.testing.assert_allclose(ours / ours.max(), theirs, atol=1e-6)


def test_tissue_rule() -> None:
    grey = np.array([0.6, 0.5, 0.6, 0.4, 0.9])
    white = np.array([0.3, 0.5, 0.7, 0.3, 0.9])
    assert tissue_labels(grey, white).tolist() == [1, 0, 2, 0, 1]


def test_without_nilearn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samadapt.data.formats.mni152.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"nilearn.*samadapt\[demo\]"):
        open_dataset("mni152")


def test_hippocampus(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    root = shared_data("msd_hippocampus")
    start = time.perf_counter()
    dataset = open_dataset("msd_hippocampus", root)
    assert time.perf_counter() - start < 20  # 0.5 s on 2 idle cores
    assert (len(dataset.train), len(dataset.val)) == (160, 40)
    assert dataset.classes == ["anterior", "posterior"]
    assert not dataset.findings
    assert not set(dataset.train) & set(dataset.val)
    medians = []
    for name in dataset.train[:60]:
        image = dataset.volume(name).image
        medians.append(np.median(image[image > 0]))
    assert 40 < min(medians) < max(medians) < 220  # a thousandfold apart before the rule
    for name in dataset.val[:5]:
        source = nib.load(dataset.case(name).labels)
        volume = dataset.reader.read(dataset.case(name))
        write_prediction(dataset.volume_labels(name), volume, tmp_path / "out.nii.gz")
        written = nib.load(tmp_path / "out.nii.gz")
        np.testing.assert_array_equal(np.asarray(source.dataobj), np.asarray(written.dataobj))
        np.testing.assert_array_equal(nib.load(dataset.case(name).image).affine, written.affine)


def test_ct_pair(shared_data: Callable[[str], Path]) -> None:
    options: dict[str, Any] = {
        "image": "ct.nii.gz",
        "label": "labels.nii.gz",
        "classes": {"liver": 5, "spleen": 1, "kidney": [2, 3]},
        "intensity": "ct:soft_tissue",
    }
    dataset = open_dataset("nifti", shared_data("ct_sample"), **options)
    assert dataset.classes == ["liver", "spleen", "kidney"]
    labels = dataset.volume_labels("ct")
    assert labels.shape == (101, 122, 30)
    rows, columns = {}, {}
    for index, name in enumerate(dataset.classes, start=1):
        rows[name], columns[name] = (axis.mean() for axis in np.nonzero(labels == index)[:2])
    assert columns["liver"] < 61 < columns["spleen"]  # radiological: the liver on the left
    assert rows["kidney"] > rows["liver"]  # the back below
    sample = dataset.sample(SliceRef("ct", 15))
    assert 100 < sample.image[:, :, 0][sample.labels == 1].mean() < 220


def test_no_torch_and_no_slow_import() -> None:
    code = (
        "import sys, samadapt.data as d; d.list_cards(); d.readers();"
        "slow = {'torch', 'monai', 'nibabel', 'PIL', 'nilearn', 'scipy'} & set(sys.modules);"
        "sys.exit(repr(slow) if slow else 0)"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
