"""Findings are one line with a code, and headers that declare too much are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from samadapt.data.findings import (
    FindingError,
    check_bytes,
    check_size,
    error_finding,
    fault,
    warning_finding,
)
from samadapt.errors import DataError
from samadapt.system.limits import MAX_GB, MAX_SECONDS, set_limits


@pytest.fixture
def one_megabyte() -> Iterator[None]:
    """Files may declare at most 2**20 bytes."""
    set_limits(max_gb=2**-10)
    yield
    set_limits(MAX_GB, MAX_SECONDS)


def test_a_finding_is_one_line_with_its_code() -> None:
    found = warning_finding("saturated", Path("a/b.png"), "5 % of the voxels", "export it again")
    assert str(found) == "a/b.png: 5 % of the voxels; export it again [saturated]"
    assert found.severity == "warning"


def test_a_fault_is_an_error_of_the_data_that_keeps_its_finding() -> None:
    error = fault("empty_file", "a.png", "the file is empty", "copy it again")
    assert isinstance(error, DataError)
    assert error.finding == error_finding(
        "empty_file", "a.png", "the file is empty", "copy it again"
    )
    assert str(error) == str(error.finding)


@pytest.mark.parametrize("shape", [(), (0, 4), (4, -1, 3)])
def test_a_shape_needs_a_voxel_along_each_axis(shape: tuple[int, ...]) -> None:
    with pytest.raises(FindingError, match=r"a\.nii: expected at least one voxel") as error:
        check_size("a.nii", shape)
    assert error.value.finding.code == "bad_shape"


@pytest.mark.usefixtures("one_megabyte")
def test_a_header_may_declare_as_much_as_the_limit_allows() -> None:
    check_size("a.nii", (64, 64, 64))  # 2**18 voxels of 4 bytes
    check_bytes("a.nii", 2**20)
    for declare in (lambda: check_size("a.nii", (64, 64, 65)), lambda: check_bytes("a.nii", 2**21)):
        with pytest.raises(FindingError, match=r"a\.nii: it declares .*data\.max_gb") as error:
            declare()
        assert error.value.finding.code == "too_large"


@pytest.mark.usefixtures("one_megabyte")
def test_a_product_beyond_64_bits_is_too_large() -> None:
    with pytest.raises(FindingError, match="it declares"):
        check_size("a.nii", (2**40, 2**40))
