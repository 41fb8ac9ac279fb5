"""What fits of an adapter is loaded, and what was kept is said in words."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from samadapt.adapters.combining import find_method
from samadapt.adapters.initial_weights import take_over
from samadapt.adapters.injection import inject
from samadapt.adapters.mask_tokens import TokenUse
from samadapt.adapters.record import AdapterRecord, read_record
from samadapt.adapters.store import save_adapter, stored_tensors, trainable_state
from samadapt.errors import AdapterError
from samadapt.sam.dense_head import HeadSettings
from samadapt.sam.types import Prompts
from samadapt.sam.weights.loading import base_hash, load_sam

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def first(tiny_sam, perturb, tmp_path):
    """``first(method, classes, **options)``: (model, directory) of a trained adapter."""

    def make(name, classes=(), **options):
        sam = copy.deepcopy(tiny_sam)
        base = base_hash(sam)
        if len(classes) > sam.build.num_multimask:
            sam.resize_mask_tokens(len(classes))
        record = AdapterRecord(
            base="tiny",
            base_sha256=base,
            image_size=sam.image_size,
            num_masks=sam.build.num_multimask,
            classes=list(classes),
            prompt={"kind": "semantic" if classes else "box"},
        )
        injection = inject(sam, find_method(name)(**options))
        perturb(injection)
        save_adapter(tmp_path / "first", sam, injection, record)
        return sam, tmp_path / "first"

    return make


@pytest.fixture
def start(tiny_sam):
    """``start(directory, method, classes, **options)``: (model, injection, what was taken over)."""

    def make(directory, name, classes=(), **options):
        sam = copy.deepcopy(tiny_sam)
        if len(classes) > sam.build.num_multimask:
            sam.resize_mask_tokens(len(classes))
        injection = inject(sam, find_method(name)(**options))
        now = TokenUse(classes, bool(classes), sam.build.num_multimask)
        taken = take_over(directory, read_record(directory), sam, injection, now)
        return sam, injection, taken

    return make


def class_logits(sam):
    torch.manual_seed(0)
    images = torch.randn(2, 3, sam.image_size, sam.image_size)
    with torch.no_grad():
        return sam.decode(sam.encode(images), Prompts(), multimask=True).logits[:, 0]


SAME = ["lora", "dora", "pissa", "adapter", "vera", "conv_lora", "adalora", "full"]


@pytest.mark.parametrize("method", SAME)
def test_the_same_method_starts_where_the_adapter_ended(first, start, predict, method):
    trained, directory = first(method, blocks="last:2")
    sam, injection, taken = start(directory, method, blocks="last:2")
    assert torch.equal(predict(sam), predict(trained))
    stored = stored_tensors(sam, injection)
    assert all(
        torch.equal(stored[key], value) for key, value in load_file(directory / WEIGHTS).items()
    )
    assert taken.kept == [f"{method} in 2 blocks (2-3)", "the mask decoder"]
    assert (taken.new, taken.left_out) == ([], [])
    assert all(parameter.requires_grad for parameter in injection.parameters.values())


def test_more_blocks_start_anew_and_fewer_are_left_out(first, start):
    _, directory = first("lora", blocks=(1, 2), decoder="frozen")
    _, _, taken = start(directory, "lora", blocks=(2, 3), decoder="full")
    assert taken.kept == ["lora in block 2"]
    assert taken.new == ["lora in block 3", "the mask decoder"]
    assert taken.left_out == ["lora in block 1"]


@pytest.mark.parametrize(
    ("there", "here", "reason"),
    [
        ({"rank": 4}, {"rank": 2}, "peft.rank=4 there, 2 here"),
        ({"slices": ("q", "v")}, {"slices": ("k", "v")}, "peft.slices=[q,v] there, [k,v] here"),
    ],
)
def test_layers_that_do_not_fit_start_anew_and_the_reason_is_named(
    first, start, tiny_sam, there, here, reason
):
    _, directory = first("lora", **there)
    sam, injection, taken = start(directory, "lora", **here)
    assert taken.kept == ["the mask decoder"]
    assert taken.new == ["lora in 4 blocks (0-3)"]
    assert taken.left_out == [f"lora in 4 blocks (0-3) ({reason})"]
    fresh = copy.deepcopy(tiny_sam)
    untouched = trainable_state(fresh, inject(fresh, injection.method))
    found = trainable_state(sam, injection)
    names = [name for name in found if name.endswith("blocks")]  # LoRA's B, which starts at zero
    assert names
    assert all(torch.equal(found[name], untouched[name]) for name in names)


def test_classes_are_matched_by_name(first, start):
    trained, directory = first("lora", ("a", "b", "c"), blocks="last:1")
    sam, _, taken = start(directory, "lora", ("c", "a", "b"), blocks="last:1")
    before, now = class_logits(trained), class_logits(sam)
    assert torch.allclose(now, before[:, [2, 0, 1]], atol=1e-4)
    assert not torch.allclose(now, before, atol=0.1)
    assert taken.kept[-1] == "mask tokens of c, a, b"
    assert (taken.new, taken.left_out) == ([], [])


def token_rows(sam):
    """The mask tokens, and one tensor of each token's hypernetwork."""
    decoder = sam.mask_decoder
    return decoder.mask_tokens.weight, [
        mlp.layers[0].weight for mlp in decoder.output_hypernetworks_mlps
    ]


def test_new_classes_start_from_the_base_and_dropped_ones_are_named(first, start, tiny_sam):
    trained, directory = first("lora", ("a", "b", "c", "d"), blocks="last:1")
    classes = ("e", "d", "c", "b", "f")
    sam, _, taken = start(directory, "lora", classes, blocks="last:1")
    (tokens, mlps), (old_tokens, old_mlps) = token_rows(sam), token_rows(trained)
    base_tokens, base_mlps = token_rows(tiny_sam)
    for place, name in enumerate(classes, start=1):
        old = "abcd".find(name) + 1
        base = 1 + (place - 1) % 3
        assert torch.equal(tokens[place], old_tokens[old] if old else base_tokens[base])
        assert torch.equal(mlps[place], old_mlps[old] if old else base_mlps[base])
    assert taken.kept[-1] == "mask tokens of d, c, b"
    assert taken.new == ["mask tokens of e, f"]
    assert taken.left_out == ["mask token of a"]


def test_the_rows_of_a_dense_head_move_with_their_classes(tiny_sam, perturb, tmp_path):
    def make(classes):
        sam = copy.deepcopy(tiny_sam)
        sam.add_dense_head(len(classes), HeadSettings(side=32, width=4, scales=2))
        return sam, inject(sam, find_method("lora")(blocks="last:1", decoder="lora"))

    trained, injection = make("abcd")
    perturb(injection)
    record = AdapterRecord(
        base="tiny",
        base_sha256=base_hash(tiny_sam),
        image_size=64,
        classes=list("abcd"),
        prompt={"kind": "semantic"},
        head=trained.dense_head.describe(),
    )
    save_adapter(tmp_path / "first", trained, injection, record)
    record = read_record(tmp_path / "first")
    sam, injection = make("dae")
    new = sam.dense_head.out.weight[2].clone()
    now = TokenUse(("d", "a", "e"), is_semantic=True, count=3)
    taken = take_over(tmp_path / "first", record, sam, injection, now)
    for place, source in enumerate([3, 0]):
        for name in ("weight", "bias"):
            found, expected = (getattr(one.dense_head.out, name) for one in (sam, trained))
            assert torch.equal(found[place], expected[source])
    assert torch.equal(sam.dense_head.out.weight[2], new)
    assert "the dense head" in taken.kept


def test_a_low_rank_decoder_keeps_a_class_only_at_its_place(first, start):
    _, directory = first("lora", ("a", "b"), blocks="last:1", decoder="lora")
    _, _, taken = start(directory, "lora", ("a", "c", "b"), blocks="last:1", decoder="lora")
    assert "mask token of a" in taken.kept
    assert taken.new == [
        "mask token of c",
        "mask token of b (token 2 there, 3 here, and not trained by both)",
    ]


def test_another_method_takes_what_matches(first, start):
    _, directory = first("lora", rank=2, blocks="last:2")
    _, injection, taken = start(directory, "dora", rank=4, blocks="last:2")
    assert taken.kept == ["dora in 2 blocks (2-3)", "the mask decoder"]
    assert taken.new == ["qkv.lora_magnitude_vector of 2 blocks (2-3)"]
    assert injection.method.name == "dora"


def test_nothing_that_fits_is_an_error_with_the_way_out(first, start):
    _, directory = first("lora", rank=8, decoder="frozen")
    with pytest.raises(AdapterError) as refused:
        start(directory, "adapter", decoder="frozen")
    said = str(refused.value)
    assert f"init={directory}: nothing of this adapter fits: peft=lora there, adapter here" in said
    assert "Train with its own method, peft=lora peft.blocks=all" in said
    assert f"samadapt export adapter={directory} to=sam" in said


def test_layers_around_another_random_pair_do_not_fit(first, start):
    _, directory = first("vera", rank=4, seed=0)
    with pytest.raises(AdapterError, match=r"peft\.seed=0 there, 1 here"):
        start(directory, "vera", rank=4, seed=1)


def test_changed_weights_are_refused(first, start):
    _, directory = first("lora")
    tensors = {key: value + 1 for key, value in load_file(directory / WEIGHTS).items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="were changed or damaged"):
        start(directory, "lora")


def test_class_tokens_move_with_the_names_of_their_classes(tiny_sam, perturb, tmp_path):
    """The same classes in another order predict the same masks, each in its new place."""
    before, now = ["a", "b", "c", "d", "e"], ["e", "x", "b", "a"]
    models = []
    for classes in (before, now):
        sam = copy.deepcopy(tiny_sam)
        digest = base_hash(sam)
        sam.add_class_tokens(len(classes))
        models.append((sam, inject(sam, find_method("lora")())))
    (old, injection), (new, own) = models
    perturb(injection)
    record = AdapterRecord(
        base="tiny",
        base_sha256=digest,
        image_size=old.image_size,
        classes=before,
        class_tokens=5,
        prompt={"kind": "semantic"},
    )
    save_adapter(tmp_path / "first", old, injection, record)
    use = TokenUse(now, is_semantic=True, count=3, has_own_tokens=True)
    directory = tmp_path / "first"
    taken = take_over(directory, read_record(directory), new, own, use)
    tokens = new.class_tokens.tokens.weight
    for place, name in enumerate(now):
        if name != "x":
            source = before.index(name)
            assert torch.equal(tokens[place], old.class_tokens.tokens.weight[source])
    images = torch.randn(1, 3, old.image_size, old.image_size)
    with torch.no_grad():
        first, second = (m.decode_classes(m.encode(images)).logits[0, 0] for m in (old, new))
        boxes = Prompts(boxes=torch.tensor([[[4.0, 5, 40, 50]]]))
        masks = [m.decode(m.encode(images), boxes, multimask=True).logits for m in (old, new)]
    assert second.shape[0] == 4
    assert torch.equal(masks[0], masks[1])
    assert "mask tokens of e, b, a" in " ".join(taken.kept)
    assert "mask token of x" in " ".join(taken.new)
    assert "c, d" in " ".join(taken.left_out)
    assert first.shape[0] == 5


def test_a_trained_memory_is_kept_or_left_out(perturb, tmp_path):
    sam = load_sam("tiny_h")
    record = AdapterRecord(base="tiny_h", base_sha256=base_hash(sam), image_size=sam.image_size)
    injection = inject(sam, find_method("lora")(blocks="last:1", memory="full"))
    perturb(injection)
    save_adapter(tmp_path / "first", sam, injection, record)
    now = TokenUse((), False, 3)
    for memory in ("full", "frozen"):
        fresh = load_sam("tiny_h")
        started = inject(fresh, find_method("lora")(blocks="last:1", memory=memory))
        record = read_record(tmp_path / "first")
        taken = take_over(tmp_path / "first", record, fresh, started, now)
        assert ("the memory of SAM 2" in taken.kept) is (memory == "full")
        assert ("the memory of SAM 2" in taken.left_out) is (memory == "frozen")
        state, own = trainable_state(sam, injection), trainable_state(fresh, started)
        assert all(torch.equal(value, state[name]) for name, value in own.items())
