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

from samadapt.data import SliceRef, open_dataset, write_prediction


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
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr
