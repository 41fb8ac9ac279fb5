"""Adapters that were trained beside 4-bit weights are loaded onto weights of the same values."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from samadapt.adapters.four_bits import LEVELS, frozen_linears, round_frozen, rounded
from samadapt.adapters.injection import inject
from samadapt.adapters.record import AdapterRecord, read_record
from samadapt.adapters.store import load_into, save_adapter
from samadapt.data.intensity import make_intensity
from samadapt.errors import AdapterError
from samadapt.methods import METHODS
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.weights.loading import base_hash, load_sam


def test_every_block_has_its_largest_value_and_sixteen_levels():
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))  # the last block: 8
    found = rounded(weight).flatten()
    for start in range(0, 200, 64):
        block, own = weight.flatten()[start : start + 64], found[start : start + 64]
        largest = block.abs().max()
        assert own.abs().max() == largest
        levels = torch.tensor(LEVELS) * largest
        nearest = (block[:, None] - levels).abs().min(dim=1).values
        torch.testing.assert_close((block - own).abs(), nearest)
    assert torch.equal(rounded(torch.zeros(3, 70)), torch.zeros(3, 70))
    assert torch.equal(rounded(found.view(5, 40)), found.view(5, 40))


@pytest.fixture
def trained(tmp_path):
    """A folder with an adapter of rounded weights, and the model that was saved."""
    sam = load_sam("tiny")
    record = AdapterRecord(
        "tiny",
        base_hash(sam),
        sam.image_size,
        intensity=make_intensity("rgb").to_dict(),
        prompt=PromptPolicy("box").to_dict(),
        classes=["cell"],
        quantize="nf4",
    )
    injection = inject(sam, METHODS["lora"](blocks="last:1"))
    for parameter in injection.parameters.values():
        torch.nn.init.normal_(parameter, std=0.02)
    save_adapter(tmp_path / "adapter", sam, injection, record)
    round_frozen(sam, injection.exact)
    return tmp_path / "adapter", sam


def test_loading_repeats_the_rounding(trained):
    folder, sam = trained
    base = load_sam("tiny")
    shared = copy.copy(base.state_dict())
    loaded = load_sam("tiny")
    injection = load_into(folder, loaded)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.encode(images), sam.encode(images))
    assert not torch.equal(loaded.encode(images), base.encode(images))
    assert len(frozen_linears(loaded, injection.exact)) > 4
    assert all(torch.equal(base.state_dict()[name], value) for name, value in shared.items())


def test_a_base_that_adapters_share_stays_whole(trained):
    from samadapt.inference.bundle import load_bundle

    folder, sam = trained
    base = load_sam("tiny")
    before = base_hash(base)
    bundle = load_bundle(folder, read_record(folder), base)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(bundle.sam.encode(images), sam.encode(images))
    assert base_hash(base) == before
    assert bundle.first_trainable_block == -1  # nothing of the encoder is that of the base


def test_other_roundings_are_refused(trained):
    folder, _ = trained
    path = folder / "samadapt.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | {"quantize": "int3"}), encoding="utf-8")
    with pytest.raises(AdapterError, match="quantize"):
        read_record(folder)


def test_other_adapters_say_nothing_of_it(tmp_path):
    sam = load_sam("tiny")
    record = AdapterRecord("tiny", base_hash(sam), sam.image_size)
    save_adapter(tmp_path / "adapter", sam, inject(sam, METHODS["lora"]()), record)
    text = (tmp_path / "adapter" / "samadapt.json").read_text(encoding="utf-8")
    assert "quantize" not in text
