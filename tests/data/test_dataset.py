"""A data set lists its slices, and cuts samples from its volumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.data import SliceRef, open_dataset
from samadapt.data.formats.base import label_presence
from samadapt.errors import ConfigError


def test_slices_are_those_of_the_masks(make_msd: Callable[..., Path]) -> None:
    dataset = open_dataset("nifti", make_msd(6))
    for name in dataset.train:
        filled = dataset.volume_labels(name).any(axis=(0, 1))
        indices = [ref.index for ref in dataset.slices("train") if ref.case == name]
        assert indices == np.flatnonzero(filled).tolist() == [0, 1, 2, 3]
        for column in range(2):
            has_class = (dataset.volume_labels(name) == column + 1).any(axis=(0, 1))
            np.testing.assert_array_equal(dataset.presence(name)[:, column], has_class)
    assert dataset.slices("train").left_out == {"empty": 8, "step": 0, "gap": 0}


def test_validation_keeps_every_slice(make_msd: Callable[..., Path]) -> None:
    dataset = open_dataset("nifti", make_msd(6), slice_step=3, empty_slices="drop")
    assert len(dataset.slices("val")) == 2 * 6
    assert dataset.slices("val").left_out == {"empty": 0, "step": 0, "gap": 0}
    taken = dataset.slices("train")
    assert {ref.index for ref in taken} == {0, 3}
    assert taken.left_out == {"empty": 0, "step": 16, "gap": 0}
    assert {ref.case for ref in taken}.isdisjoint(ref.case for ref in dataset.slices("val"))


def test_policies_for_empty_slices(make_msd: Callable[..., Path]) -> None:
    root = make_msd(6)
    dataset = open_dataset("nifti", root, empty_slices="keep")
    assert len(dataset.slices("train")) == 24
    assert len(dataset.slices("train", empty="drop")) == 16
    half = open_dataset("nifti", root, empty_slices=0.5, seed=1)
    assert len(half.slices("train")) == 20
    assert half.slices("train").left_out["empty"] == 4
    assert half.slices("train") == open_dataset("nifti", root, empty_slices=0.5, seed=1).slices(
        "train"
    )
    for seed in range(2, 9):  # another seed chooses others
        other = open_dataset("nifti", root, empty_slices=0.5, seed=seed)
        if other.slices("train") != half.slices("train"):
            break
    else:
        pytest.fail("the seed is not used")
    for bad in ("some", 1.5, -0.1):
        with pytest.raises(ConfigError, match="empty_slices"):
            open_dataset("nifti", root, empty_slices=bad)


def test_max_cases_reads_the_first_by_name(make_msd: Callable[..., Path]) -> None:
    root = make_msd(6)
    (root / "imagesTr" / "case_05.nii.gz").write_bytes(b"")
    dataset = open_dataset("nifti", root, max_cases=3)
    assert [case.name for case in dataset.cases] == ["case_00", "case_01", "case_02"]


@settings(deadline=None)
@given(st.lists(st.integers(-3, 70000), min_size=12, max_size=12))
def test_presence_is_what_a_plain_search_finds(flat: list[int]) -> None:
    labels = np.array(flat, dtype=np.int32).reshape(2, 2, 3)
    values, presence, zeros = label_presence(labels, [np.s_[:, :, i] for i in range(3)])
    assert list(values) == sorted(set(flat) - {0})
    assert zeros.tolist() == [(labels[:, :, index] == 0).any() for index in range(3)]
    for index in range(3):
        found = set(labels[:, :, index].ravel().tolist()) - {0}
        assert {v for v, there in zip(values, presence[index], strict=True) if there} == found


def test_samples(make_msd: Callable[..., Path], tools: Any) -> None:
    dataset = open_dataset("nifti", make_msd(2))
    samples = dataset.samples("case_01")
    assert [sample.index for sample in samples] == list(range(6))
    sample = dataset.sample(SliceRef("case_01", 2))
    image, _ = tools.volume_pair(1)
    low, high = np.percentile(image, (0.5, 99.5))
    expected = np.clip((image - low) / (high - low), 0, 1) * 255
    upright = expected[::-1, ::-1, 2].T
    assert sample.image.shape == (9, 8, 3)
    assert sample.image.dtype == np.uint8
    assert sample.labels.dtype == np.int16
    for channel in range(3):
        assert np.abs(sample.image[:, :, channel] - upright).max() <= 0.51
    sample.labels[:] = 7  # a sample is the caller's own
    assert dataset.sample(SliceRef("case_01", 2)).labels.max() <= 2
