"""One list of checks that every registered method passes on every build."""

import copy
import re

import pytest
import torch

from samadapt.adapters.combining import find_method, method_from_dict
from samadapt.adapters.injection import inject
from samadapt.adapters.store import (
    AdapterRecord,
    load_into,
    load_trainable_state,
    merge_adapter,
    save_adapter,
    trainable_state,
)
from samadapt.errors import AdapterError, ConfigError, RunError
from samadapt.methods import METHODS
from samadapt.methods.base import select_blocks
from samadapt.methods.peft_library import count_decoder_parameters
from samadapt.methods.peft_others import OtherPeft
from samadapt.sam.types import Prompts
from samadapt.sam.weights.loading import base_hash
from samadapt.training.precision import Precision

# torch's, about the sparse matrices of peft's FRoD and SHiRA
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")
COMBINED = ("lora+layernorm", "lora+bias", "houlsby+layernorm", "adaptformer+fact")
# Kinds of peft's without a file here, with options that fit the tiny models; all slow. The scales
# of RandLoRA and WaveFT keep ``perturb`` from making weights so large that rounding shows.
OTHERS = {
    "beft": None,
    "boft": None,
    "c3a": {"block_size": 8},
    "deft": None,
    "delora": None,
    "fourierft": {"n_frequency": 100},
    "frod": None,
    "glora": None,
    "hira": None,
    "hra": {"r": 4},
    "miss": {"r": 8},
    "peanut": None,
    "psoft": {"r": 8},
    "pvera": None,
    "randlora": {"r": 8, "randlora_alpha": 8},
    "road": {"group_size": 8},
    "shira": {"r": 4},
    "supertuning": {"sparsity": 0.9},
    "tinylora": None,
    "waveft": {"n_frequency": 100, "scaling": 1.0},
}
# FRoD's blocks must have one width; in SAM 2 a block of a single width lies inside a stage. DeLoRA
# in all blocks of ``tiny_h``, whose random logits are large, overshoots in the three steps.
PLACED = {
    ("frod", "tiny_t"): {"blocks": "last:1"},
    ("frod", "tiny_h"): {"blocks": [2]},
    ("delora", "tiny_h"): {"blocks": "last:1"},
}
IN_FP32 = ("loha", "lokr", "oft", "vera")  # peft hands on in fp32 what autocast computed in bf16
UNTRIED = {name for name, cls in METHODS.items() if issubclass(cls, OtherPeft)}
QUICK_ON_TINY_VIT = ("lora", "adapter", "layernorm", "fact")
NAMES = [*sorted(METHODS.keys() - UNTRIED), *COMBINED]


def _cases(*, in_bf16=False):
    """Every method at its defaults on a ViT, some on the other encoders; slow: all else.

    Under autocast the latter are slow, too.
    """
    for name, options in OTHERS.items():
        for build in ("tiny", "tiny_t", "tiny_h", "tiny_r"):
            case = (name, {"options": options, **PLACED.get((name, build), {})}, build)
            yield pytest.param(case, id=f"{name}-{build}", marks=pytest.mark.slow)
    yield pytest.param(("adapter", {"depth": 2}, "tiny"), id="adapter-depth-tiny")
    for name in NAMES:
        placed = {"blocks": "last:2", "decoder": "lora"}
        if find_method(name).takes_decoder:
            placed["decoder"] = "own"
        variants = [{}, placed]
        if name != "decoder":  # frozen, it would train nothing
            variants.append({"blocks": "last:1", "decoder": "frozen"})
        if find_method(name).takes_decoder:
            variants += [{"blocks": "none", "decoder": "own"}, {"decoder": "lora"}]
        for options in variants:
            for build in ("tiny", "tiny_t", "tiny_h", "tiny_r"):
                quick = (options, build) == ({}, "tiny")
                quick |= (name, options, build) in (("lora", {}, "tiny_h"), ("lora", {}, "tiny_r"))
                if name in QUICK_ON_TINY_VIT and not in_bf16:
                    quick |= (options, build) == (placed, "tiny_t")
                yield pytest.param(
                    (name, options, build),
                    id="-".join((name, *options.values(), build)),
                    marks=[] if quick else [pytest.mark.slow],
                )


@pytest.fixture(params=_cases())
def case(request):
    return request.param


@pytest.fixture
def fresh(case, request):
    """``fresh()``: another copy of the case's base."""
    base = request.getfixturevalue(f"{case[2]}_sam")
    return lambda: copy.deepcopy(base)


@pytest.fixture
def method(case):
    name, options, _ = case
    return find_method(name)(**options)


@pytest.mark.slow
def test_what_bf16_trained_loads_to_the_same_output(fresh, case, method, train, predict, tmp_path):
    """Trained over frozen weights that were rounded to bf16, loaded onto the whole base."""
    half, sam, loaded = Precision("bf16", ""), fresh(), fresh()
    record = AdapterRecord(case[2], base_hash(sam), sam.image_size)
    injection = inject(sam, method)
    half.store_frozen(sam, injection.exact)
    if injection.parameters:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            train(sam, injection, 2)
    save_adapter(tmp_path / "adapter", sam, injection, record)
    again = load_into(tmp_path / "adapter", loaded)
    assert again.parameters.keys() == injection.parameters.keys()
    for name, parameter in injection.parameters.items():
        assert torch.equal(again.parameters[name], parameter), name
    half.store_frozen(loaded, again.exact)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(predict(loaded), predict(sam))


@torch.no_grad()  # a graph changes the order of sums, and what is trained decides where one is
def test_identity_at_the_start(fresh, method, predict):
    sam = fresh()
    before = predict(sam)
    inject(sam, method)
    found = predict(sam)
    if method.decoder in ("full", "frozen") and method.name not in OTHERS:
        assert torch.equal(found, before)
    else:  # the decoder does not take its short ways through layers of ours, which sum otherwise
        largest = float(before.abs().max())
        torch.testing.assert_close(found, before, atol=1e-5 * max(1, largest), rtol=0)


@pytest.mark.parametrize("case", list(_cases(in_bf16=True)), indirect=True)
@torch.no_grad()
def test_identity_at_the_start_in_bf16(fresh, method, predict):
    """Under autocast, with the frozen linears held in bf16 as a run does it."""
    half = Precision("bf16", "")
    plain, sam = fresh(), fresh()
    for model in (plain, sam):  # SAM 2 may choose another mask for the single one after rounding
        model.mask_decoder.stable_mask = None
    half.store_frozen(plain.requires_grad_(False))
    injection = inject(sam, method)
    half.store_frozen(sam, injection.exact)
    with torch.autocast("cpu", torch.bfloat16):
        before, found = predict(plain).float(), predict(sam).float()
    if method.decoder == "frozen" and method.name not in {*OTHERS, *IN_FP32}:
        assert torch.equal(found, before)
    else:
        largest = float(before.abs().max())
        torch.testing.assert_close(found, before, atol=0.06 * max(1, largest), rtol=0)


@pytest.mark.parametrize("case", list(_cases(in_bf16=True)), indirect=True)
def test_trains_in_bf16(fresh, method, train, loss):
    sam = fresh()
    injection = inject(sam, method)
    if not injection.parameters:
        return
    Precision("bf16", "").store_frozen(sam, injection.exact)
    start = copy.deepcopy(sam)
    # Left open over several steps, autocast would keep the weights that it has cast.
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        train(sam, injection, 3)
    injection.check_gradients()
    _check_only_trained_moved(sam, injection, start.state_dict())
    with torch.no_grad():  # what three steps of a few weights change is lost in bf16's rounding
        assert loss(sam.float()) < loss(start.float())


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
    floor = 1e-5 if method.name == "adalora" else 1e-3  # a product of its A and B of 0.02
    for members in injection.groups.values():  # a real gradient, not rounding
        norm = sum(injection.parameters[name].grad.abs().sum() for name in members)
        assert norm > floor


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
    _check_only_trained_moved(sam, injection, before)


def _check_only_trained_moved(sam, injection, before):
    trained = set(map(id, injection.parameters.values()))
    every = sam.named_parameters(remove_duplicate=False)  # what blocks share has several names
    own = {re.sub(r"\.(blocks|trained)$", ".weight", n) for n, p in every if id(p) in trained}
    moved = {n for n, p in sam.state_dict().items() if not torch.equal(p, before[n])}
    assert moved == own


def test_count_equals_the_formula(fresh, method):
    plain, sam = fresh(), fresh()
    injection = inject(sam, method)
    attention_blocks = select_blocks(method.blocks, plain.attention_blocks())
    encoder = method.count_parameters(plain, attention_blocks)
    assert injection.trainable == encoder + count_decoder_parameters(plain, method)
    assert injection.total == sum(p.numel() for p in sam.parameters())
    assert f"{injection.trainable:,} of {injection.total:,}" in injection.report()
    assert f"{encoder:,} trained" in injection.report()


FORMULAS = {
    "beft": lambda i, o: o,
    "boft": lambda i, o: i // 4 * 16 + o,
    "c3a": lambda i, o: i // 8 * (o // 8) * 8,
    "deft": lambda i, o: 8 * (i + o),
    "delora": lambda i, o: 8 * (i + o) + 1,
    "fourierft": lambda i, o: 100,
    "frod": lambda i, o: i + i * i // 100,
    "glora": lambda i, o: 2 * 8 * (i + o) + 8 * (i + 1) + 2,
    "hira": lambda i, o: 32 * (i + o),
    "hra": lambda i, o: 4 * i,
    "miss": lambda i, o: 8 * o,
    "peanut": lambda i, o: 2 * 32 * o,
    "psoft": lambda i, o: 8 * 7 // 2 + 2 * 8,
    "pvera": lambda i, o: o + 2 * 256,
    "randlora": lambda i, o: -(-min(i, o) // 8) * (8 + min(i, o)),
    "road": lambda i, o: 2 * (o // 2),
    "shira": lambda i, o: 4 * (i + o),
    "supertuning": lambda i, o: int(i * o * (1 - 0.9)),
    "tinylora": lambda i, o: 64,
    "waveft": lambda i, o: 100,
}
"""Trained parameters of a linear of i inputs and o outputs, with the options of ``OTHERS``."""


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_peft_trains_what_the_formula_of_its_kind_says(name, tiny_sam):
    """``OtherPeft.count`` asks peft, so that the contract's formula would agree with anything."""
    method = METHODS[name](
        blocks="last:2", targets=["qkv", "proj", "mlp"], decoder="frozen", options=OTHERS[name]
    )
    width = tiny_sam.image_encoder.blocks[0].attn.proj.in_features
    hidden = tiny_sam.image_encoder.blocks[0].mlp.lin1.out_features
    linears = [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]
    injected = inject(tiny_sam, method)
    assert injected.trainable == 2 * sum(FORMULAS[name](i, o) for i, o in linears)


def test_every_kind_that_is_listed_is_held_to_the_contract():
    assert set(OTHERS) == UNTRIED == set(FORMULAS)


@pytest.mark.slow
def test_blocks_of_several_widths_are_refused_where_they_share_matrices(tiny_t_sam):
    with pytest.raises(ConfigError, match=r"peft=frod .* one width; .*blocks=all have \[16, 24"):
        inject(tiny_t_sam, METHODS["frod"]())


@torch.no_grad()
def test_an_image_does_not_depend_on_those_beside_it(fresh, method, perturb):
    """Or its masks would change with the batch size, as those of peft's Lily do."""
    sam = fresh()
    perturb(inject(sam, method))
    images = torch.randn(2, 3, sam.image_size, sam.image_size)
    images[1] *= 3
    boxes = torch.tensor([[[4.0, 6.0, 40.0, 50.0]], [[20.0, 12.0, 60.0, 44.0]]])

    def logits(which):
        embeddings = sam.encode(images[which])
        return sam.decode(embeddings, Prompts(boxes=boxes[which]), multimask=True).logits

    together = logits(slice(0, 2))
    if getattr(method, "depth", 1) > 1:  # slices of one stack attend to one another
        with pytest.raises(AdapterError, match="whole stacks of 2 neighbouring slices"):
            logits(slice(0, 1))
        return
    alone = torch.cat([logits(slice(0, 1)), logits(slice(1, 2))])
    largest = float(together.abs().max())
    torch.testing.assert_close(alone, together, atol=1e-5 * max(1, largest), rtol=0)


def test_save_then_load_gives_the_same_output(fresh, case, method, adapted, predict):
    sam, injection, directory = adapted(case[0], **case[1])
    loaded = fresh()
    again = load_into(directory, loaded)
    assert torch.equal(predict(loaded), predict(sam))
    assert again.method == injection.method
    assert again.groups == injection.groups
    if injection.parameters:
        floor = 1e-5 if method.name == "adalora" else 1e-4
        assert (predict(sam) - predict(fresh())).abs().max() > floor


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
            merge_adapter(sam, injection)
        return
    unmerged = predict(sam)
    merge_adapter(sam, injection)
    largest = float(unmerged.detach().abs().max())
    torch.testing.assert_close(predict(sam), unmerged, atol=1e-5 * max(1, largest), rtol=0)
    assert sam.state_dict().keys() == fresh().state_dict().keys()
    assert not any(p.requires_grad for p in sam.parameters())


def test_boundary_is_where_training_begins(fresh, method, perturb):
    sam = fresh()
    injection = inject(sam, method)
    perturb(injection)
    images = torch.randn(2, 3, sam.image_size, sam.image_size)
    first_trainable_block = injection.first_trainable_block
    if not injection.has_frozen_prefix:
        assert sam.encode_prefix(images, 0).requires_grad
        return
    prefix = sam.encode_prefix(images, first_trainable_block)
    assert not prefix.requires_grad
    torch.testing.assert_close(sam.encode_suffix(prefix, first_trainable_block), sam.encode(images))
    if first_trainable_block <= injection.depth:
        assert sam.encode_prefix(images, first_trainable_block + 1).requires_grad


def test_a_copy_is_independent(fresh, method, predict, perturb):
    sam = fresh()
    injection = inject(sam, method)
    copied, before = copy.deepcopy(sam), predict(sam)
    perturb(injection)
    assert torch.equal(predict(copied), before)


@pytest.mark.parametrize("name", [*NAMES, "hra"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": "lst:2"}, r"peft\.blocks.*did you mean 'last:K'"),
        ({"blocks": "last:0"}, r"peft\.blocks"),
        ({"blocks": [0, 0]}, r"peft\.blocks names a block twice"),
        ({"blocks": "[0, x]"}, r"peft\.blocks"),
        ({"blocks": [-1]}, r"peft\.blocks"),
        ({"decoder": "ful"}, r"peft\.decoder.*did you mean 'full'"),
        ({"decoder_rank": 0}, r"peft\.decoder_rank.*got 0"),
        ({"no_such": 1}, r"peft\.no_such is no option"),
    ],
)
def test_a_wrong_option_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        method_from_dict({"name": name, **options})


@pytest.mark.parametrize("name", [*NAMES, "hra"])
def test_options_survive_a_round_trip(name):
    method = find_method(name)(blocks=(0, 3), decoder="lora", decoder_rank=2)
    assert method_from_dict(method.to_dict()) == method
