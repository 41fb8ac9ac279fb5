"""A new method is one file: it registers itself, and then trains, saves, loads and merges."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

import samadapt
from samadapt.adapters.injection import inject
from samadapt.adapters.store import merge_adapter
from samadapt.methods import METHODS

SOURCE = '''
"""A trained gain for each channel after the attention."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import BOTTLENECKS, Method, register


@register("gain")
@dataclass(frozen=True)
class Gain(Method):
    """``(1 + gain) * attention(x)``."""

    summary: ClassVar[str] = "a gain for each channel after the attention"
    can_merge: ClassVar[bool] = False
    changes: ClassVar[frozenset[str]] = BOTTLENECKS

    start: float = Field(default=0.0, description="initial value", ge=0)

    def inject(self, sam, blocks):
        import torch
        from torch import nn

        from samadapt.methods.attached_layer import attach

        class Scale(nn.Module):
            def __init__(self, width, start):
                super().__init__()
                self.gain = nn.Parameter(torch.full((width,), start))

        def hook(module, inputs, output):
            return (1 + module.scale.gain) * output

        for block in blocks:
            attach(sam.get_submodule(block.attn), "scale", Scale(block.width, self.start), hook)

    def count_parameters(self, sam, blocks):
        return sum(block.width for block in blocks)
'''


@pytest.fixture
def gain(tmp_path, monkeypatch):
    (tmp_path / "gain_of_a_test.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("gain_of_a_test")
    yield METHODS["gain"]
    del METHODS["gain"], sys.modules["gain_of_a_test"]


def test_a_method_in_one_file_trains_and_loads(gain, make_pictures, run, tiny_sam):
    injection = inject(tiny_sam, gain(decoder="frozen"))
    assert injection.trainable == gain().count_parameters(tiny_sam, injection.attention_blocks)
    with pytest.raises(samadapt.errors.AdapterError, match="gain adds layers"):
        merge_adapter(tiny_sam, injection)

    root = make_pictures()
    result = run(root, "peft=gain", "peft.blocks=last:2", "peft.decoder=frozen")
    assert result.summary["trained_parameters"] == 64
    segmenter = samadapt.load_adapter(result.adapter_dir, device="cpu")
    assert segmenter.record.method["name"] == "gain"
    labels = segmenter.segment(root / "images" / "p0.png", boxes=[4, 4, 20, 20])
    assert set(np.unique(labels)) <= {0, 1}
