"""Which arithmetic and device a run takes, and why."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from samadapt.adapters.injection import inject
from samadapt.adapters.store import AdapterRecord, load_into, merge_adapter, save_adapter
from samadapt.errors import AdapterError, ConfigError
from samadapt.methods import METHODS
from samadapt.sam.types import Prompts
from samadapt.sam.weights.loading import base_hash
from samadapt.training import precision
from samadapt.training.precision import (
    Precision,
    Products,
    choose_device,
    choose_precision,
    measure_products,
    through_onednn,
)

CPU = torch.device("cpu")
AMD, AMX, INTEL = Products(1.8, 4e-7, 2.0), Products(6.0, 2.6e-3, 8.0), Products(1.0, 4e-7, 0.6)


@pytest.fixture
def measured(monkeypatch):
    """``measured(products)``: what the CPU is taken to measure."""
    return lambda found: monkeypatch.setattr(precision, "measure_products", lambda: found)


def _setting() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


def test_what_is_asked_for_is_taken():
    full = choose_precision("fp32", CPU)
    assert (full.name, full.dtype, full.is_half) == ("fp32", torch.float32, False)
    half = choose_precision("bf16", CPU)
    assert (half.name, half.dtype, half.is_half) == ("bf16", torch.bfloat16, True)
    assert full.reason.startswith("asked for; ")
    a = torch.ones(2, 2)
    with half.autocast(CPU):
        assert (a @ a).dtype == torch.bfloat16
    with full.autocast(CPU):
        assert (a @ a).dtype == torch.float32
    with pytest.raises(
        ConfigError, match=r"precision must be auto, fp32, bf16, fp16; got 'bf1'.*'bf16'"
    ):
        choose_precision("bf1", CPU)


@pytest.mark.parametrize(
    ("products", "name", "onednn"),
    [
        pytest.param(AMD, "bf16", True, id="amd"),
        pytest.param(AMX, "bf16", False, id="amx: the route is no longer fp32"),
        pytest.param(INTEL, "fp32", False, id="intel: nothing is faster"),
        pytest.param(Products(1.8, 4e-7, 1.2), "fp32", True, id="only the route is"),
        pytest.param(Products(1.8, 2.1e-6, 1.2), "fp32", False, id="not quite exact"),
    ],
)
def test_auto_measures_a_cpu(measured, products, name, onednn):
    measured(products)
    chosen = choose_precision("auto", CPU)
    assert (chosen.name, chosen.onednn) == (name, onednn)
    assert f"{products.bf16:.1f}x" in chosen.reason
    assert f"{products.onednn:.2f}x" in chosen.reason
    assert f"{products.error:.0e}, {'taken' if onednn else 'not taken'}" in chosen.reason
    assert choose_precision("fp32", CPU).onednn is onednn
    assert choose_precision("auto", torch.device("mps")).name == "fp32"


def test_a_resumed_run_goes_on_as_it_began(measured):
    measured(INTEL)
    chosen = choose_precision("auto", CPU, {"name": "bf16", "onednn": True})
    assert (chosen.name, chosen.onednn) == ("bf16", True)
    assert choose_precision("fp32", CPU, {"name": "bf16", "onednn": False}).name == "fp32"
    measured(AMD)
    assert choose_precision("auto", CPU, {"name": "fp32", "onednn": False}).onednn is False
    measured(AMX)  # another machine, where the route computes in bf16
    assert choose_precision("auto", CPU, {"name": "fp32", "onednn": True}).onednn is False


def test_products_are_measured_once_a_process():
    before, threads = _setting(), torch.get_num_threads()
    found = measure_products(tokens=64, width=64, rounds=2)
    assert 0 < found.onednn < 1000
    assert 0 < found.bf16 < 1000
    assert 0 < found.error < 1e-2
    assert found == measure_products(tokens=64, width=64, rounds=2), "measured once a process"
    assert (before, threads) == (_setting(), torch.get_num_threads())


def test_fp32_products_are_within_the_bound_of_exactness():
    """What ``EXACT`` promises, on this CPU: taken only where the result is that of fp32."""
    chosen = choose_precision("fp32", CPU)
    x, weight = torch.randn(300, 200), torch.randn(100, 200)
    with chosen.products():
        found = x @ weight.T
    exact = x.double() @ weight.double().T
    assert float((found - exact).norm() / exact.norm()) < precision.EXACT


def test_the_setting_is_restored():
    before = _setting()

    def fail():
        with Precision("fp32", "", onednn=True).autocast(CPU):
            assert _setting() == "bf16"
            with through_onednn():
                pass
            assert _setting() == "bf16"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert _setting() == before
    with Precision("fp32", "").autocast(CPU), Precision("fp32", "").products():
        assert _setting() == before


@pytest.mark.parametrize(
    ("has_bf16", "capability", "name"),
    [
        pytest.param(True, (8, 0), "bf16", id="ampere"),
        pytest.param(False, (7, 5), "fp16", id="turing: torch would emulate bf16"),
        pytest.param(False, (6, 1), "fp32", id="pascal: fp16 is slow"),
    ],
)
def test_auto_takes_what_a_gpu_is_fast_in(monkeypatch, has_bf16, capability, name):
    def is_bf16_supported(including_emulation=True):
        return has_bf16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    device = torch.device("cuda")
    assert choose_precision("auto", device).name == name
    assert choose_precision("fp32", device).name == "fp32"
    assert choose_precision("fp16", device).name == "fp16"
    if not has_bf16:
        with pytest.raises(ConfigError, match="this GPU has no bf16; use precision=fp16"):
            choose_precision("bf16", device)


def test_fp16_is_refused_where_it_is_not_tested():
    with pytest.raises(ConfigError, match="precision=fp16: not on mps; use precision=fp32"):
        choose_precision("fp16", torch.device("mps"))
    assert "slow on a CPU" in choose_precision("fp16", CPU).reason


def _run(sam):
    """Logits, and the gradient of every trained parameter, under autocast."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, sam.image_size, sam.image_size)
    boxes = torch.tensor([[[4.0, 6.0, 40.0, 50.0]], [[20.0, 12.0, 60.0, 44.0]]])
    with torch.autocast("cpu", torch.bfloat16):
        logits = sam.decode(sam.encode(images), Prompts(boxes=boxes), multimask=True).logits
    logits.float().square().mean().backward()
    return logits, {name: p.grad for name, p in sam.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("method", "decoder"),
    [("lora", "full"), ("lora", "lora"), ("lora", "frozen"), ("adapter", "full"), ("none", "lora")],
)
def test_frozen_linears_in_bf16_are_bit_equal_to_autocasts_own_casts(any_sam, method, decoder):
    one = any_sam
    inject(one, METHODS[method](decoder=decoder))
    other = copy.deepcopy(one)
    Precision("bf16", "").store_frozen(other)
    halves = {name for name, p in other.named_parameters() if p.dtype == torch.bfloat16}
    assert any(name.endswith("mlp.fc1.weight") or "mlp.lin1" in name for name in halves)
    for name, module in other.named_modules():
        if isinstance(module, nn.Linear):
            frozen = not any(p.requires_grad for p in module.parameters())
            assert (f"{name}.weight" in halves) is frozen, name
    assert not any(p.requires_grad for n, p in other.named_parameters() if n in halves)
    (expected, gradients), (found, others) = _run(one), _run(other)
    assert torch.equal(found, expected)
    assert gradients.keys() == others.keys() != set()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


def test_an_adapter_trained_over_bf16_weights_is_saved_whole_and_merges_later(tiny_sam, tmp_path):
    base = base_hash(tiny_sam)
    one, fresh = copy.deepcopy(tiny_sam), copy.deepcopy(tiny_sam)
    injection = inject(one, METHODS["lora"](rank=2))
    Precision("bf16", "").store_frozen(one)
    _run(one)
    with torch.no_grad():
        for parameter in injection.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    record = AdapterRecord(base="tiny", base_sha256=base, image_size=one.image_size)
    save_adapter(tmp_path / "adapter", one, injection, record)
    again = load_into(tmp_path / "adapter", fresh)
    for name, parameter in injection.parameters.items():
        assert torch.equal(again.parameters[name], parameter)
    with pytest.raises(AdapterError, match=r"rounded to bf16 .* load base and adapter anew"):
        merge_adapter(one, injection)
    merge_adapter(fresh, again)


def test_fp32_stores_nothing_anew(tiny_sam):
    Precision("fp32", "").store_frozen(tiny_sam.requires_grad_(False))
    assert {p.dtype for p in tiny_sam.parameters()} == {torch.float32}


def test_a_device_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    assert choose_device("cpu") == CPU
    with pytest.raises(ConfigError, match="device=cuda: not available here; this machine has: cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
