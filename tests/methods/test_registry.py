"""Methods register themselves, and listing them imports no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from samadapt.adapters.combining import method_from_dict
from samadapt.adapters.injection import inject
from samadapt.errors import AdapterError, ConfigError
from samadapt.methods import METHODS, select_blocks
from samadapt.methods.base import method_for


def test_every_method_says_what_it_is():
    assert {"lora", "adapter", "none", "full"} <= METHODS.keys()
    for name, cls in METHODS.items():
        assert cls.name == name
        assert cls.summary


def test_importing_the_methods_imports_no_torch():
    code = (
        "import sys, samadapt.methods, samadapt.adapters.store\n"
        "print(sorted({'torch', 'peft', 'timm'} & sys.modules.keys()))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert shown.stdout.strip() == "[]"


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'lora'"):
        method_from_dict({"name": "lorra"})


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ("all", [0, 1, 2, 3]),
        ("last:1", [3]),
        ("first:2", [0, 1]),
        ("global", [1, 2]),
        ("window", [0, 3]),
        ([2, 0], [0, 2]),
        ("[1, 3]", [1, 3]),
    ],
)
def test_blocks_select(tiny_sam, blocks, expected):
    assert [block.index for block in select_blocks(blocks, tiny_sam.attention_blocks())] == expected


@pytest.mark.parametrize("blocks", ["last:5", "first:9", [4]])
def test_blocks_beyond_the_encoder_are_refused(tiny_sam, blocks):
    with pytest.raises(ConfigError, match="4 attention blocks"):
        select_blocks(blocks, tiny_sam.attention_blocks())


def test_blocks_of_a_kind_that_the_encoder_lacks_are_refused(tiny_t_sam):
    with pytest.raises(ConfigError, match="no global attention blocks"):
        select_blocks("global", tiny_t_sam.attention_blocks())


@pytest.mark.parametrize(
    ("blocks", "side", "expected"),
    [
        ("auto", 50, "none"),
        ("auto", 84, "none"),
        ("auto", 85, "last:8"),
        ("last:2", 50, "last:2"),
        ("all", 500, "all"),
    ],
)
def test_auto_blocks_follow_the_size_of_the_images(blocks, side, expected):
    method = METHODS["lora"](blocks=blocks, rank=3)
    chosen = METHODS["lora"](blocks=expected, rank=3)
    assert method_for(method, side, has_head=False) == chosen
    beside_head = METHODS["none"]() if expected == "none" else chosen
    assert method_for(method, side, has_head=True) == beside_head


def test_auto_blocks_keep_a_decoder_that_was_asked_for():
    chosen = method_for(METHODS["lora"](blocks="auto", decoder="lora"), 50, has_head=True)
    assert (chosen.name, chosen.blocks, chosen.decoder) == ("lora", "none", "lora")
    frozen = METHODS["lora"](blocks="auto", decoder="frozen")
    assert method_for(frozen, 50, has_head=True) == METHODS["none"]()
    with pytest.raises(ConfigError, match=r"peft\.blocks=auto keeps the encoder frozen"):
        method_for(frozen, 50, has_head=False)


def test_auto_blocks_without_a_data_set_are_refused(tiny_sam):
    with pytest.raises(ConfigError, match=r"peft\.blocks=auto needs a data set"):
        select_blocks("auto", tiny_sam.attention_blocks())


@pytest.mark.parametrize("name", ["lora", "adapter"])
def test_a_second_injection_is_refused(tiny_sam, name):
    inject(tiny_sam, METHODS[name]())
    with pytest.raises(AdapterError, match="already carries an adapter"):
        inject(tiny_sam, METHODS["lora"]())


def test_dropout_follows_the_mode_and_nothing_else_does(tiny_t_sam):
    injection = inject(tiny_t_sam, METHODS["lora"](dropout=0.5))
    injection.set_training(tiny_t_sam)
    training = [n for n, m in tiny_t_sam.named_modules() if m.training]
    assert training
    assert all(".lora_dropout." in name for name in training)
    injection.set_training(tiny_t_sam, False)
    assert not any(m.training for m in tiny_t_sam.modules())
