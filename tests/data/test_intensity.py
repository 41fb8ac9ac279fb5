"""Intensity rules: names, windows, percentiles, records."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from samadapt.data import make_intensity, to_rgb
from samadapt.data.intensity import WINDOWS, intensity_of_modality
from samadapt.data.types import Volume
from samadapt.errors import ConfigError, DataError


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


RULES = ["mri", "ct:bone", "ct:-10,20", "percentile:2,98", "microscopy", "microscopy:5,95", "rgb"]
RULES += ["ct:soft_tissue+lung+bone", "mri+microscopy:0,50+ct:-3,4"]


@pytest.mark.parametrize("spec", RULES)
@pytest.mark.parametrize("neighbours", [0, 2])
def test_a_rule_is_read_back_from_its_record(spec: str, neighbours: int) -> None:
    rule = make_intensity(spec)
    if not rule.channels:
        rule = rule.with_neighbours(neighbours)
    assert make_intensity(json.loads(json.dumps(rule.to_dict()))) == rule


def test_records_of_older_adapters_stay_as_they_are() -> None:
    record = {"kind": "percentile", "low": 0.5, "high": 99.5}
    assert make_intensity(record) == make_intensity("mri")
    assert make_intensity("mri").to_dict() == record


def test_microscopy_takes_percentiles_of_all_pixels() -> None:
    """The images have 16 bits and a background of 0, which the rule for MRI leaves out."""
    image = np.zeros((40, 50, 1), dtype=np.uint16)
    image[:10, :10, 0] = np.arange(100).reshape(10, 10) * 600
    rule = make_intensity("microscopy")
    assert rule.bounds(image) == pytest.approx(tuple(np.percentile(image, (1, 99.8))))
    assert make_intensity("mri").bounds(image)[0] > 0
    shown = rule(image)
    assert (shown[20:] == 0).all()
    assert shown.max() == 255
    assert len(np.unique(shown)) > 80


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        ("ct:soft_tissue+lung+bone", ["ct:soft_tissue", "ct:lung", "ct:bone"]),
        ("ct+ct:0,80+-1350,150", ["ct", "ct:brain", "ct:lung"]),
        ("mri + percentile:0,50 + 50,100", ["mri", "percentile:0,50", "percentile:50,100"]),
    ],
)
def test_three_rules_are_three_channels(spec: str, same: list[str]) -> None:
    values = np.random.default_rng(0).uniform(-1500, 1500, (5, 6, 4)).astype(np.float32)
    rule = make_intensity(spec)
    for index in range(4):
        picture = rule.picture(rule(values), index)
        assert picture.shape == (5, 6, 3)
        assert picture.flags.c_contiguous
        for channel, name in enumerate(same):
            alone = make_intensity(name)(values)[:, :, index]
            np.testing.assert_array_equal(picture[..., channel], alone)


def test_neighbours_are_channels_and_the_ends_repeat() -> None:
    values = np.random.default_rng(0).uniform(1, 100, (5, 6, 4)).astype(np.float32)
    grey = make_intensity("mri")(values)
    for distance, seen in ((1, [0, 0, 1]), (3, [0, 0, 3]), (9, [0, 0, 3])):
        rule = make_intensity("mri").with_neighbours(distance)
        np.testing.assert_array_equal(rule(values), grey)
        picture = rule.picture(grey, 0)
        np.testing.assert_array_equal(picture, np.stack([grey[..., i] for i in seen], axis=-1))
    picture = make_intensity("mri").with_neighbours(1).picture(grey, 2)
    np.testing.assert_array_equal(picture, grey[..., 1:4])


def test_neighbours_and_three_rules_exclude_each_other() -> None:
    windows = make_intensity("ct:soft_tissue+lung+bone")
    with pytest.raises(ConfigError, match="both fill"):
        windows.with_neighbours(1)
    with pytest.raises(ConfigError, match="records 2"):
        make_intensity("ct").with_neighbours(2).with_neighbours(1)
    colour = Volume(np.zeros((4, 5, 3), np.uint8), is_color=True)
    with pytest.raises(DataError, match="colours"):
        windows(colour)
    for flat in (colour, Volume(np.zeros((4, 5, 1), np.uint8))):
        with pytest.raises(DataError, match="one slice"):
            make_intensity("rgb").with_neighbours(1)(flat)


@pytest.mark.parametrize("spec", ["ct:lung+bone", "ct:lung+bone+brain+liver", "mri+rgb+mri"])
def test_channels_are_three_and_of_grey(spec: str) -> None:
    with pytest.raises(ConfigError, match="join three rules"):
        make_intensity(spec)


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
        {"kind": "window", "low": 0, "high": 1, "neighbours": -1},
        {"kind": "channels", "low": 0, "high": 1},
        {"channels": [1, 2, 3]},
        {"channels": [{"kind": "window", "low": 0, "high": 1, "neighbours": 1}] * 3},
        "ct:soft_tissue+stomach+bone",
        "ct:lung++bone",
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
