"""Peaks of memory are measured for a block, and stay known for the process."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from samadapt.system.peak_memory import peak_memory, peak_memory_bytes

MB = 10**6


def test_the_peak_is_in_bytes() -> None:
    assert 50e6 < peak_memory_bytes() < 1e12


def test_without_resource_as_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "resource":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert 50e6 < peak_memory_bytes() < 1e12


def test_the_peak_of_a_block_is_its_own_and_that_of_the_process_is_kept() -> None:
    np.ones(60 * MB, np.uint8).sum()
    highest = peak_memory_bytes()
    with peak_memory() as small:
        np.ones(MB, np.uint8).sum()
    with peak_memory() as large:
        np.ones(200 * MB, np.uint8).sum()
    assert large.peak - small.peak > 150 * MB
    assert peak_memory_bytes() >= max(highest, large.peak)
