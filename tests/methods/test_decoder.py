"""``peft=decoder``: the mask decoder alone is trained, saved and loaded."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import samadapt
from samadapt.adapters.combining import find_method
from samadapt.adapters.injection import inject
from samadapt.errors import ConfigError


@pytest.mark.parametrize("decoder", ["full", "lora"])
def test_a_run_trains_saves_and_loads_the_decoder(make_pictures, run, decoder):
    root = make_pictures()
    result = run(root, "peft=decoder", f"peft.decoder={decoder}")
    tensors = load_file(result.adapter_dir / "adapter_model.safetensors")
    assert all("mask_decoder." in name for name in tensors)
    record = json.loads((result.adapter_dir / "samadapt.json").read_text(encoding="utf-8"))
    assert (record["method"]["name"], record["method"]["decoder"]) == ("decoder", decoder)

    sam = samadapt.load_adapter(result.adapter_dir, device="cpu").sam
    base = samadapt.load_sam("tiny").state_dict()
    moved = {name for name, value in sam.state_dict().items() if name in base} & {
        name for name in base if not torch.equal(sam.state_dict().get(name, base[name]), base[name])
    }
    assert all(name.startswith("mask_decoder.") for name in moved)
    assert bool(moved) == (decoder == "full")
    log = (result.run_dir / "log.txt").read_text(encoding="utf-8")
    assert "8 computed, 0 reused; nothing runs the frozen blocks on them again" in log


def test_the_whole_encoder_is_frozen(tiny_sam):
    injection = inject(tiny_sam, find_method("decoder")())
    assert set(injection.groups) == {"decoder"}
    assert injection.first_trainable_block == injection.depth + 1
    assert injection.plain_peft


@pytest.mark.parametrize(("decoder", "hint"), [("frozen", "use peft=none"), ("own", "full, lora")])
def test_what_trains_nothing_is_refused(decoder, hint):
    with pytest.raises(ConfigError, match=hint):
        find_method("decoder")(decoder=decoder)
