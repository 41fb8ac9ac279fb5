"""``samadapt check`` sorts what it finds, knows the splits of cards, and changes nothing."""

from __future__ import annotations

import hashlib
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scan_files import change, codes, write

from samadapt.data.checks.survey import survey


def test_errors_come_before_warnings(scans: Path) -> None:
    change(scans, "c1", lambda v: v + 1100)  # the values are no HU
    (scans / "labels" / "c4.nii.gz").write_bytes(b"")
    found = survey("nifti", scans, intensity="ct")
    assert [finding.severity for finding in found.findings] == ["error", "warning"]
    assert (found.cases, found.left_out) == (5, ["c4"])


def test_a_card_s_split_that_divides_a_patient_is_a_finding(
    scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samadapt.data.checks import survey as check

    card = SimpleNamespace(split={"val": ["c0"]}, classes=None, intensity=None)
    real = check.open_reader
    monkeypatch.setattr(check, "open_reader", lambda *args: ("nifti", card, real(*args)[2]))
    found = codes(scans, patient="(c)[0-9]")
    assert list(found) == ["bad_split"]
    card.split = {"val": ["c0"], "train": ["nobody"]}
    assert list(codes(scans)) == ["bad_split"]


def test_nothing_is_changed(scans: Path) -> None:
    def state() -> dict[Path, tuple[str, int]]:
        return {
            path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in scans.rglob("*")
            if path.is_file()
        }

    before = state()
    codes(scans)
    assert state() == before


@pytest.mark.slow
def test_a_thousand_small_volumes_take_less_than_a_minute(tmp_path: Path) -> None:
    root = tmp_path / "many"
    for index in range(1000):
        image = np.random.default_rng(index).normal(0, 100, (36, 50, 35)).astype(np.float32)
        labels = np.zeros(image.shape, np.uint8)
        labels[8:20, 9 + index % 9 : 40, 5:20], labels[22:30, 9:40, 5 : 20 + index % 11] = 1, 2
        labels[0, 0, index % 35] = 1
        write(root, f"c{index:04d}", image, labels)
    before = resource.getrusage(resource.RUSAGE_SELF)
    found = survey("nifti", root, intensity="mri")
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert found.cases == 1000
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
