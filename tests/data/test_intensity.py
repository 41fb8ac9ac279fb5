"""Intensity rules: names, windows, percentiles, records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from samadapt.data import make_intensity, to_rgb
from samadapt.data.intensity import WINDOWS, intensity_of_modality
from samadapt.errors import ConfigError


def test_soft_tissue_is_minus_160_to_240_hu() -> None:
    values = np.array([[[-1000, -160, 40, 240, 3000]]], dtype=np.float32)
    for spec in ("ct", "ct:soft_tissue", "ct:-160,240", "ct:[-160, 240]"):
        assert make_intensity(spec)(values).ravel().tolist() == [0, 0, 128, 255, 255]


def test_windows_by_name() -> None:
    assert set(WINDOWS) == {"soft_tissue", "lung", "bone", "brain", "liver"}
    for name, (low, high) in WINDOWS.items():
        rule = make_intensity(f"ct:{name}")
        assert (rule.low, rule.high) == (low, high)


def test_percentiles_of_the_non_zero_voxels() -> None:
    values = np.zeros((10, 10, 10), dtype=np.float32)
    values[5:] = np.linspace(100, 1100, 500).reshape(5, 10, 10)
    low, high = make_intensity("mri").bounds(values)
    assert (low, high) == pytest.approx((105, 1095), abs=1e-3)
    assert make_intensity("percentile:1,99").bounds(values) == pytest.approx((110, 1090), abs=1e-3)


@settings(deadline=None)
@given(st.floats(1e-3, 1e3))
def test_percentiles_do_not_see_the_scale(scale: float) -> None:
    values = np.random.default_rng(0).uniform(1, 1000, (6, 6, 6)).astype(np.float32)
    rule = make_intensity("mri")
    first, second = rule(values).astype(int), rule(values * np.float32(scale)).astype(int)
    assert np.abs(first - second).max() <= 1


@settings(deadline=None)
@given(
    arrays(np.float32, (3, 4, 2), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from(["mri", "ct", "rgb", "percentile:0,100"]),
)
def test_any_values_become_bytes(values: np.ndarray, spec: str) -> None:
    before = values.copy()
    result = make_intensity(spec)(values)
    assert result.dtype == np.uint8
    assert result.shape == values.shape
    np.testing.assert_array_equal(values, before)


def test_values_that_are_no_numbers_or_constant() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 0, 5, 10], dtype=np.float32)
    assert make_intensity("ct:0,10")(values).tolist() == [0, 255, 0, 0, 128, 255]
    for constant in (0, 7):
        image = np.full((2, 2, 2), constant, dtype=np.float32)
        assert set(make_intensity("mri")(image).ravel()) <= {0, 255}
    two_values = np.array([0, 0, 9, 9], dtype=np.float32)
    assert make_intensity("mri")(two_values).tolist() == [0, 0, 255, 255]


def test_rgb_keeps_bytes_and_scales_deeper_values() -> None:
    rule = make_intensity("rgb")
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(rule(image), image)
    deep = np.linspace(1, 60000, 100, dtype=np.float32).reshape(10, 10, 1)
    assert rule(deep).min() == 0
    assert rule(deep).max() == 255


@pytest.mark.parametrize("spec", ["mri", "ct:bone", "ct:-10,20", "percentile:2,98", "rgb"])
def test_a_rule_is_read_back_from_its_record(spec: str) -> None:
    rule = make_intensity(spec)
    assert make_intensity(rule.to_dict()) == rule


@pytest.mark.parametrize(
    "spec",
    [
        "auto",
        "mri:3",
        "ct:stomach",
        "ct:5",
        "ct:10,5",
        "ct:nan,5",
        "percentile:99,1",
        "percentile:-1,50",
        "",
        {"kind": "window"},
        {"kind": "x", "low": 0, "high": 1},
        {"kind": "window", "low": 1, "high": 0},
        {"kind": "window", "low": "a", "high": 0},
    ],
)
def test_bad_specifications(spec: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.intensity must be one of"):
        make_intensity(spec)


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ct:soft_tissue'"):
        make_intensity("ct:soft_tisue")


def test_modalities() -> None:
    assert intensity_of_modality("CT") == "ct:soft_tissue"
    assert intensity_of_modality("FLAIR") == "mri"


def test_three_equal_channels() -> None:
    plane = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for grey in (plane, plane[:, :, None]):
        rgb = to_rgb(grey)
        assert rgb.shape == (2, 3, 3)
        assert (rgb == plane[:, :, None]).all()
    colour = np.zeros((2, 3, 3), dtype=np.uint8)
    assert to_rgb(colour).shape == (2, 3, 3)
