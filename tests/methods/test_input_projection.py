"""The projection of more than three channels is trained, kept and loaded with every method."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samadapt.adapters.injection import inject
from samadapt.adapters.store import AdapterRecord, load_into, read_record, save_adapter
from samadapt.errors import AdapterError
from samadapt.methods import METHODS
from samadapt.sam.model import Sam
from samadapt.sam.weights.loading import base_hash


def _image() -> torch.Tensor:
    return torch.randint(0, 256, (4, 40, 30), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["lora", "adapter", "houlsby", "none"])
def test_saved_and_loaded(tmp_path: Path, tiny_sam: Sam, name: str) -> None:
    base = base_hash(tiny_sam)
    sam = copy.deepcopy(tiny_sam)
    sam.add_input_projection(4)
    injection = inject(sam, METHODS[name]())
    assert injection.groups["input"] == ["input_projection.weight"]
    assert not injection.has_frozen_prefix
    assert not injection.plain_peft
    with torch.no_grad():
        sam.input_projection.weight.mul_(torch.linspace(0.5, 1.5, 12).view(3, 4, 1, 1))
    record = AdapterRecord("tiny", base, sam.image_size, input_channels=4)
    save_adapter(tmp_path / "a", sam, injection, record)
    other = copy.deepcopy(tiny_sam)
    load_into(tmp_path / "a", other)
    assert other.input_channels == 4
    assert torch.equal(other.preprocess([_image()]), sam.preprocess([_image()]))
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["peft_type"].startswith("SAMADAPT_")


def test_a_record_that_contradicts_the_model_is_refused(tmp_path: Path, tiny_sam: Sam) -> None:
    base = base_hash(tiny_sam)
    sam = copy.deepcopy(tiny_sam)
    sam.add_input_projection(4)
    injection = inject(sam, METHODS["none"]())
    record = AdapterRecord("tiny", base, sam.image_size)
    with pytest.raises(AdapterError, match="input_channels: the model has 4; got 3"):
        save_adapter(tmp_path / "a", sam, injection, record)
    save_adapter(tmp_path / "a", sam, injection, replace(record, input_channels=4))
    assert read_record(tmp_path / "a").input_channels == 4
