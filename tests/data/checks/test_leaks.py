"""No image and no patient is in both splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scan_files import change, codes, volume, write

from samadapt.data import open_dataset
from samadapt.data.checks.survey import survey
from samadapt.errors import ConfigError, DataError


@pytest.mark.parametrize(("other", "code"), [(3, "duplicate_image"), (0, "duplicate_leak")])
def test_a_copy_is_one_finding(scans: Path, other: int, code: str) -> None:
    write(scans, "c4", volume(other)[0])
    assert codes(scans) == {code: ["c4.nii.gz"]}


def test_a_copy_on_the_other_side_is_refused_and_can_be_left_out(scans: Path) -> None:
    """The copy has another name, compression and voxel type."""
    values = np.round(volume(0)[0])
    for name, dtype in (("c0", np.float32), ("c4", np.int16)):
        write(scans, name, values.astype(dtype))
    with pytest.raises(
        DataError, match=r"c4\.nii\.gz: holds the same voxels as .*c0\.nii\.gz"
    ) as e:
        open_dataset("nifti", scans, intensity="ct")
    assert "copies are in training and in validation" in str(e.value)
    assert "data.on_error=skip" in str(e.value)
    dataset = open_dataset("nifti", scans, intensity="ct", on_error="skip")
    assert dataset.left_out == ["c4"]
    assert "c4" not in dataset.train + dataset.val
    assert [finding.code for finding in dataset.findings] == ["duplicate_image"]
    write(scans, "c4", volume(3)[0])  # both in training
    dataset = open_dataset("nifti", scans, intensity="ct")
    assert [finding.code for finding in dataset.findings] == ["duplicate_image"]


def test_cases_of_a_patient_stay_together(tmp_path: Path) -> None:
    root = tmp_path / "visits"
    for index in range(9):
        write(root, f"p{index // 3}_{index % 3}", *volume(index % 8 + index // 8))
        change(root, f"p{index // 3}_{index % 3}", lambda v, i=index: v + i)
    alone = open_dataset("nifti", root, intensity="ct")
    assert {name[:2] for name in alone.train} & {name[:2] for name in alone.val}
    grouped = open_dataset("nifti", root, intensity="ct", patient=r"(.+)_\d", val_every=3)
    assert not {name[:2] for name in grouped.train} & {name[:2] for name in grouped.val}
    assert grouped.val == ["p0_0", "p0_1", "p0_2"]
    with pytest.raises(ConfigError, match="in both splits"):
        open_dataset(
            "nifti", root, intensity="ct", patient=r"(.+)_\d", split={"val": ["p0_0", "p1_0"]}
        )
    found = survey("nifti", root, patient=r"(.+)_\d", val_every=3)
    assert found.patients == 3
    assert survey("nifti", root).patients is None
    partly = survey("nifti", root, patient=r"(p[01])_\d")
    assert [finding.code for finding in partly.findings if finding.code == "no_patient"]
    assert partly.patients == 5


@pytest.mark.parametrize("pattern", ["(", "p.+", "(p)(.)"])
def test_a_malformed_patient_pattern_is_refused(scans: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.patient"):
        open_dataset("nifti", scans, intensity="ct", patient=pattern)
