"""Adapters that an earlier version wrote load, and predict what they predicted then."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

import samadapt

GOLDEN = Path(__file__).parents[1] / "golden"
INPUTS = runpy.run_path(str(GOLDEN / "inputs.py"))


@pytest.mark.parametrize("name", INPUTS["ADAPTERS"])
def test_an_adapter_of_an_earlier_version_predicts_the_same_labels(name, tmp_path):
    base = INPUTS["write_base"](tmp_path)
    segmenter = samadapt.load_adapter(
        GOLDEN / name, checkpoint=base, device="cpu", precision="fp32"
    )
    labels = segmenter.segment(INPUTS["image"](), **INPUTS["PROMPTS"][name])
    expected = np.load(GOLDEN / f"{name}.npy")
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(labels, expected)
