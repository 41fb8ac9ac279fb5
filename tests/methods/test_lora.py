"""LoRA changes only the chosen slices of qkv, and counts what it trains."""

from __future__ import annotations

import itertools

import pytest
import torch

from samadapt.adapters.injection import inject
from samadapt.errors import AdapterError, ConfigError
from samadapt.methods import METHODS
from samadapt.methods.lora import LoRA
from samadapt.methods.qkv_layer import QKV, SlicedProjection
from samadapt.sam.model import build_sam

SLICES = [c for n in (1, 2, 3) for c in itertools.combinations(QKV, n)]


def _layer(sam, site):
    return sam.get_submodule(site.qkv)


def _slices_of(rows, site):
    """(3, width, ...) of a tensor whose first axis is the fused projection's rows."""
    if site.qkv_order == "qkv_head":
        return rows.reshape(3, site.width, *rows.shape[1:])
    split = rows.reshape(site.heads, 3, -1, *rows.shape[1:])
    return split.transpose(0, 1).reshape(3, site.width, *rows.shape[1:])


@pytest.mark.parametrize("slices", SLICES, ids="".join)
def test_only_the_chosen_slices_change(fresh, perturb, slices):
    sam = fresh()
    site = sam.attention_blocks()[-1]
    perturb(inject(sam, LoRA(slices=slices, rank=2, alpha=3)))
    layer = _layer(sam, site)
    x = torch.randn(5, site.inputs)
    change = _slices_of((layer(x) - layer.base_layer(x)).T, site)
    for row, name in enumerate(QKV):
        assert (change[row].abs().max() > 1e-4) == (name in slices)


@pytest.mark.parametrize("slices", [("q", "v"), ("v", "k"), ("q", "k", "v")], ids="".join)
def test_each_slice_is_its_own_lora(fresh, perturb, slices):
    """Against the paper's arithmetic: slice += alpha / rank * B_i A_i x."""
    sam = fresh()
    site = sam.attention_blocks()[0]
    perturb(inject(sam, LoRA(slices=slices, rank=2, alpha=3)))
    layer = _layer(sam, site)
    x = torch.randn(5, site.width)
    stacked = layer.lora_A["default"].weight
    expected = torch.zeros(3, site.width, 5)
    for i, name in enumerate(slices):
        low = stacked[2 * i : 2 * i + 2] @ x.T
        expected[QKV.index(name)] = 3 / 2 * layer.lora_B["default"].blocks[i] @ low
    change = _slices_of((layer(x) - layer.base_layer(x)).T, site)
    torch.testing.assert_close(change, expected, atol=1e-5, rtol=1e-4)
    delta = _slices_of(layer.get_delta_weight("default") @ x.T, site)
    torch.testing.assert_close(delta, expected, atol=1e-5, rtol=1e-4)


def test_vit_b_counts_as_published():
    """4 * width * rank * depth on q and v: 147,456 for rank 4 (SAMed)."""
    with torch.device("meta"):
        sam = build_sam("vit_b")
    assert LoRA(rank=4).count_parameters(sam, sam.attention_blocks()) == 147_456
    assert LoRA(rank=8).count_parameters(sam, sam.attention_blocks()) == 294_912


def test_values_outside_the_slices_are_refused():
    projection = SlicedProjection(("q",), 2, 4, 1, torch.zeros(1))
    dense = projection.state_dict()["weight"]
    dense[5, 0] = 1.0  # a row of k
    with pytest.raises(AdapterError, match="outside the chosen slices"):
        projection.load_state_dict({"weight": dense})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"peft\.rank.*got 0"),
        ({"rank": 2.5}, r"peft\.rank"),
        ({"alpha": 0}, r"peft\.alpha"),
        ({"dropout": 1.0}, r"peft\.dropout.*got 1\.0"),
        ({"slices": ("q", "w")}, r"peft\.slices.*got .*'w'"),
        ({"slices": ()}, r"peft\.slices"),
        ({"slices": ("q", "q")}, r"peft\.slices"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        METHODS["lora"](**options)


def test_bf16_autocast_runs_and_gives_gradients(fresh, predict):
    sam = fresh()
    injection = inject(sam, LoRA(blocks="last:1"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predict(sam).float().square().mean().backward()
    injection.check_gradients()
