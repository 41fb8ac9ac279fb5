"""One list of checks that every registered method passes on every build."""

import copy

import pytest
import torch

from samadapt.errors import AdapterError, ConfigError, RunError
from samadapt.methods import METHODS, inject
from samadapt.methods.base import method_from_dict, select_blocks
from samadapt.methods.peft_layers import decoder_formula
from samadapt.methods.store import (
    load_adapter,
    load_trainable_state,
    merge,
    trainable_state,
)

VARIANTS = ({}, {"blocks": "last:2", "decoder": "lora"}, {"blocks": "last:1", "decoder": "frozen"})
CASES = [
    pytest.param(
        (name, options),
        id="-".join((name, *options.values())),
        marks=[pytest.mark.slow] if options.get("decoder") == "frozen" else [],
    )
    for name in sorted(METHODS)
    for options in VARIANTS
]


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture
def method(case):
    name, options = case
    return METHODS[name](**options)


@torch.no_grad()  # a graph changes the order of sums, and what is trained decides where one is
def test_identity_at_the_start(fresh, method, predict):
    sam = fresh()
    before = predict(sam)
    inject(sam, method)
    assert torch.equal(predict(sam), before)


def test_only_what_is_declared_gets_a_gradient(fresh, method, predict):
    sam = fresh()
    injection = inject(sam, method)
    before = {name for name, p in sam.named_parameters() if p.requires_grad}
    assert before == set(injection.parameters)
    assert sorted(before) == sorted(n for names in injection.groups.values() for n in names)
    if not before:
        return
    predict(sam).square().mean().backward()
    assert {name for name, p in sam.named_parameters() if p.grad is not None} == before
    injection.check_gradients()
    for members in injection.groups.values():  # a real gradient, not rounding
        norm = sum(injection.parameters[name].grad.abs().sum() for name in members)
        assert norm > 1e-3


def test_a_dead_group_is_named(fresh, method, predict):
    sam = fresh()
    injection = inject(sam, method)
    if not injection.groups:
        return
    with pytest.raises(RunError, match=next(iter(injection.groups))):
        injection.check_gradients()


def test_frozen_weights_stay_bit_equal_and_the_loss_falls(fresh, method, train):
    sam = fresh()
    injection = inject(sam, method)
    if not injection.parameters:
        return
    before = copy.deepcopy(sam.state_dict())
    losses = train(sam, injection, 3)
    assert losses[-1] < losses[0]
    own = set(injection.parameters)
    packed = {f"{name.rpartition('.')[0]}.weight" for name in own if name.endswith(".blocks")}
    for name, value in sam.state_dict().items():
        changed = not torch.equal(value, before[name])
        assert not changed or name in own | packed, name
    moved = [n for n, p in sam.state_dict().items() if not torch.equal(p, before[n])]
    assert len(moved) == len(own), "something declared as trained did not move"


def test_count_equals_the_formula(fresh, method):
    plain, sam = fresh(), fresh()
    injection = inject(sam, method)
    sites = select_blocks(method.blocks, plain.sites())
    encoder = method.formula(plain, sites)
    assert injection.trainable == encoder + decoder_formula(plain, method)
    assert injection.total == sum(p.numel() for p in sam.parameters())
    assert f"{injection.trainable:,} of {injection.total:,}" in injection.report()
    assert f"{encoder:,} trained" in injection.report()


def test_save_then_load_gives_the_same_output(fresh, case, adapted, predict):
    sam, injection, directory = adapted(case[0], **case[1])
    loaded = fresh()
    again = load_adapter(directory, loaded)
    assert torch.equal(predict(loaded), predict(sam))
    assert again.method == injection.method
    assert again.groups == injection.groups
    if injection.parameters:
        assert (predict(sam) - predict(fresh())).abs().max() > 1e-4


def test_trainable_state_comes_back(fresh, method, predict, perturb):
    sam = fresh()
    injection = inject(sam, method)
    state, before = trainable_state(sam, injection), predict(sam)
    perturb(injection)
    load_trainable_state(sam, injection, state)
    assert torch.equal(predict(sam), before)


def test_merged_equals_unmerged_or_is_refused(case, adapted, predict, fresh):
    sam, injection, _ = adapted(case[0], **case[1])
    if not injection.method.can_merge:
        with pytest.raises(AdapterError, match="cannot be merged"):
            merge(sam, injection)
        return
    unmerged = predict(sam)
    merge(sam, injection)
    largest = float(unmerged.detach().abs().max())
    torch.testing.assert_close(predict(sam), unmerged, atol=1e-5 * max(1, largest), rtol=0)
    assert sam.state_dict().keys() == fresh().state_dict().keys()
    assert not any(p.requires_grad for p in sam.parameters())


def test_boundary_is_where_training_begins(fresh, method, perturb):
    sam = fresh()
    injection = inject(sam, method)
    perturb(injection)
    images = torch.randn(2, 3, sam.image_size, sam.image_size)
    boundary = injection.boundary
    if not injection.has_frozen_prefix:
        assert sam.encode_prefix(images, 0).requires_grad
        return
    prefix = sam.encode_prefix(images, boundary)
    assert not prefix.requires_grad
    torch.testing.assert_close(sam.encode_suffix(prefix, boundary), sam.encode(images))
    if boundary <= injection.depth:
        assert sam.encode_prefix(images, boundary + 1).requires_grad


def test_a_copy_is_independent(fresh, method, predict, perturb):
    sam = fresh()
    injection = inject(sam, method)
    copied, before = copy.deepcopy(sam), predict(sam)
    perturb(injection)
    assert torch.equal(predict(copied), before)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": "lst:2"}, r"peft\.blocks .*did you mean 'last:K'"),
        ({"blocks": "last:0"}, r"peft\.blocks"),
        ({"blocks": [0, 0]}, r"peft\.blocks names a block twice"),
        ({"blocks": "[0, x]"}, r"peft\.blocks"),
        ({"blocks": [-1]}, r"peft\.blocks"),
        ({"decoder": "ful"}, r"peft\.decoder .*did you mean 'full'"),
        ({"decoder_rank": 0}, r"peft\.decoder_rank .*got 0"),
        ({"no_such": 1}, r"peft\.no_such is no option"),
    ],
)
def test_a_wrong_option_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        method_from_dict({"name": name, **options})


@pytest.mark.parametrize("name", sorted(METHODS))
def test_options_survive_a_round_trip(name):
    method = METHODS[name](blocks=(0, 3), decoder="lora", decoder_rank=2)
    assert method_from_dict(method.to_dict()) == method
