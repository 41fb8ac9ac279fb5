"""Adapter directories are saved and loaded exactly, and a damaged one names its file."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from samadapt.adapters.combining import method_from_dict
from samadapt.adapters.injection import inject
from samadapt.adapters.record import digest_of, sha256_of
from samadapt.adapters.sharing import share
from samadapt.adapters.store import (
    AdapterRecord,
    load_into,
    load_trainable_state,
    merge_adapter,
    read_record,
    save_adapter,
    trainable_state,
)
from samadapt.errors import AdapterError, ConfigError
from samadapt.methods import METHODS
from samadapt.sam.model import build_sam
from samadapt.sam.tracking import Tracker
from samadapt.sam.types import Prompts
from samadapt.sam.video_memory import MemoryBank
from samadapt.sam.weights.loading import base_hash, load_sam

WEIGHTS, CONFIG, RECORD = "adapter_model.safetensors", "adapter_config.json", "samadapt.json"


@pytest.fixture
def saved(adapted):
    return adapted("lora", blocks="last:2", decoder="frozen")[2]


@pytest.fixture
def saved_loha(adapted):
    return adapted("loha", blocks="last:2", decoder="frozen")[2]


@pytest.fixture
def saved_houlsby(adapted):
    return adapted("houlsby", hidden=4, blocks="last:2", decoder="own")[2]


def _load(directory):
    """The tensors are copies, because the mapped file will be overwritten."""
    return {key: value.clone() for key, value in load_file(directory / WEIGHTS).items()}


def _edit_weights(change):
    def edit(directory):
        tensors = _load(directory)
        change(tensors)
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        # Signed anew, so that the tensors themselves are judged.
        _edit_json(RECORD, "weights_sha256", value=sha256_of(directory / WEIGHTS))(directory)

    return edit


def _edit_json(name, *keys, value):
    def edit(directory):
        values = json.loads((directory / name).read_text(encoding="utf-8"))
        inner = values
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        if name == RECORD:  # signed anew, so that the entry itself is judged
            values["record_sha256"] = digest_of(values)
        (directory / name).write_text(json.dumps(values), encoding="utf-8")

    return edit


def _first(tensors, mark="lora_A"):
    return next(key for key in sorted(tensors) if mark in key)


def _pickle(directory):
    torch.save(_load(directory), directory / WEIGHTS)


def _put_outside_the_slices(tensors):
    key = _first(tensors, "lora_B")
    tensors[key] = torch.ones_like(tensors[key])


FAULTS = {
    "missing key": (WEIGHTS, "missing keys", _edit_weights(lambda t: t.pop(_first(t)))),
    "extra key": (WEIGHTS, "unexpected keys, first extra",
                  _edit_weights(lambda t: t.update(extra=torch.zeros(1)))),
    "wrong shape": (WEIGHTS, "expected shape",
                    _edit_weights(lambda t: t.update({_first(t): torch.zeros(2, 2)}))),
    "integers": (WEIGHTS, "expected torch.float32; got torch.int32",
                 _edit_weights(lambda t: t.update({_first(t): t[_first(t)].int()}))),
    "NaN": (WEIGHTS, "NaN", _edit_weights(lambda t: t[_first(t)].fill_(float("nan")))),
    "outside the slices": (WEIGHTS, "outside the chosen", _edit_weights(_put_outside_the_slices)),
    "edited alpha": (CONFIG, "lora_alpha was changed", _edit_json(CONFIG, "lora_alpha", value=64)),
    "edited rank": (CONFIG, "r was changed", _edit_json(CONFIG, "r", value=16)),
    "rank gone": (CONFIG, "r was changed", _edit_json(CONFIG, "r", value=None)),
    "rslora": (CONFIG, "use_rslora was changed", _edit_json(CONFIG, "use_rslora", value=True)),
    "alpha in the record": (CONFIG, "lora_alpha", _edit_json(RECORD, "method", "alpha", value=9.0)),
    "fewer blocks": (CONFIG, "target_modules",
                     _edit_json(RECORD, "method", "blocks", value="last:1")),
    "wrong method": (CONFIG, "peft_type", _edit_json(RECORD, "method", value={"name": "adapter"})),
    "unknown method": (RECORD, "did you mean 'lora'",
                       _edit_json(RECORD, "method", "name", value="lorra")),
    "other base": (RECORD, "sha256", _edit_json(RECORD, "base_sha256", value="0" * 64)),
    "image size": (RECORD, "image_size 128", _edit_json(RECORD, "image_size", value=128)),
    "no such entry": (RECORD, "unknown entries", _edit_json(RECORD, "colour", value="red")),
    "size as text": (RECORD, "image_size: expected", _edit_json(RECORD, "image_size", value="x")),
    "no masks": (RECORD, "num_masks: expected at least", _edit_json(RECORD, "num_masks", value=0)),
    "method a list": (RECORD, "method: expected", _edit_json(RECORD, "method", value=["lora"])),
    "classes as text": (RECORD, "classes: expected", _edit_json(RECORD, "classes", value="cell")),
    "truncated weights": (WEIGHTS, "truncated",
                          lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-50])),
    "text as weights": (WEIGHTS, "truncated or broken",
                        lambda d: (d / WEIGHTS).write_bytes(b"hello, this is no tensor")),
    "empty weights": (WEIGHTS, "truncated or broken", lambda d: (d / WEIGHTS).write_bytes(b"")),
    "pickle": (WEIGHTS, "a pickle", _pickle),
    "no weights": (WEIGHTS, "missing", lambda d: (d / WEIGHTS).unlink()),
    "no config": (CONFIG, "missing", lambda d: (d / CONFIG).unlink()),
    "no record": (RECORD, "missing", lambda d: (d / RECORD).unlink()),
    "truncated record": (RECORD, "truncated", lambda d: (d / RECORD).write_bytes(b'{"base": "ti')),
    "record a list": (RECORD, "JSON object", lambda d: (d / RECORD).write_bytes(b"[]")),
    "binary record": (RECORD, "expected JSON", lambda d: (d / RECORD).write_bytes(b"\xff\xfe\x00")),
    "no directory": ("adapter", "the folder does not exist", shutil.rmtree),
}  # fmt: skip


@pytest.mark.parametrize("fresh", ["tiny_sam"], indirect=True)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_naming_the_file(saved, fresh, fault):
    file, message, spoil = FAULTS[fault]
    spoil(saved)
    with pytest.raises(AdapterError) as refused:
        load_into(saved, fresh())
    assert f"{file}: " in str(refused.value)
    assert message in str(refused.value)


LOHA_FAULTS = {
    "missing key": (WEIGHTS, "missing keys",
                    _edit_weights(lambda t: t.pop(_first(t, "hada")))),
    "extra key": FAULTS["extra key"],
    "wrong shape": (WEIGHTS, "expected shape",
                    _edit_weights(lambda t: t.update({_first(t, "hada"): torch.zeros(2, 2)}))),
    "NaN": (WEIGHTS, "NaN", _edit_weights(lambda t: t[_first(t, "hada")].fill_(float("nan")))),
    "edited alpha": (CONFIG, "alpha was changed", _edit_json(CONFIG, "alpha", value=64)),
    "alpha gone": (CONFIG, "alpha was changed", _edit_json(CONFIG, "alpha", value=None)),
    "other base": FAULTS["other base"],
    "truncated file": FAULTS["truncated weights"],
    "wrong method": (CONFIG, "peft_type was changed",
                     _edit_json(RECORD, "method", value={"name": "lora"})),
    "wrong kind": (CONFIG, "peft_type was changed", _edit_json(CONFIG, "peft_type", value="LOKR")),
    "no fit": (RECORD, "peft.rank", _edit_json(RECORD, "method", "rank", value=0)),
    "fewer blocks": FAULTS["fewer blocks"],
    "pickle": FAULTS["pickle"],
    "text file": FAULTS["text as weights"],
}  # fmt: skip


HOULSBY_FAULTS = {
    "missing key": (WEIGHTS, "missing keys",
                    _edit_weights(lambda t: t.pop(_first(t, "mask_decoder")))),
    "extra key": FAULTS["extra key"],
    "wrong shape": (WEIGHTS, "expected shape",
                    _edit_weights(lambda t: t.update({_first(t, "bottleneck"): torch.zeros(2)}))),
    "NaN": (WEIGHTS, "NaN", _edit_weights(lambda t: t[_first(t, "bottleneck")].fill_(torch.nan))),
    "edited width": (CONFIG, "method was changed", _edit_json(CONFIG, "method", "hidden", value=8)),
    "width in the record": (CONFIG, "method was changed",
                            _edit_json(RECORD, "method", "hidden", value=8)),
    "other base": FAULTS["other base"],
    "truncated file": FAULTS["truncated weights"],
    "wrong method": (CONFIG, "peft_type was changed",
                     _edit_json(RECORD, "method", value={"name": "ssf", "decoder": "own"})),
    "wrong kind": (CONFIG, "peft_type was changed", _edit_json(CONFIG, "peft_type", value="LORA")),
    "kind gone": (CONFIG, "peft_type was changed", _edit_json(CONFIG, "peft_type", value=None)),
    "no fit": (RECORD, "peft.hidden", _edit_json(RECORD, "method", "hidden", value=0)),
    "fewer blocks": (CONFIG, "method was changed",
                     _edit_json(RECORD, "method", "blocks", value="last:1")),
    "another decoder": (CONFIG, "method was changed",
                        _edit_json(RECORD, "method", "decoder", value="frozen")),
    "pickle": FAULTS["pickle"],
    "text file": FAULTS["text as weights"],
}  # fmt: skip


OF_OTHERS = {"saved_loha": LOHA_FAULTS, "saved_houlsby": HOULSBY_FAULTS}


@pytest.mark.parametrize("fresh", ["tiny_sam"], indirect=True)
@pytest.mark.parametrize(
    ("directory", "fault"),
    [(name, fault) for name, faults in OF_OTHERS.items() for fault in faults],
)
def test_a_fault_of_another_method_is_refused_naming_the_file(directory, fault, request, fresh):
    saved = request.getfixturevalue(directory)
    file, message, spoil = OF_OTHERS[directory][fault]
    load_into(saved, fresh())
    spoil(saved)
    with pytest.raises(AdapterError) as refused:
        load_into(saved, fresh())
    assert f"{file}: " in str(refused.value)
    assert message in str(refused.value)


@pytest.mark.parametrize("directory", ["saved_loha", "saved_houlsby"])
def test_another_build_is_refused_for_another_kind(directory, request, fresh):
    saved = request.getfixturevalue(directory)
    name = "tiny" if fresh().build.name == "tiny_t" else "tiny_t"
    with pytest.raises(AdapterError, match=rf"{RECORD}: .*the model given is {name} "):
        load_into(saved, build_sam(name))


def test_the_file_of_lora_r4_on_vit_b_is_small(tmp_path):
    """q and v of all blocks, without the decoder, in fp32: at most 1.3 MB."""
    sam = build_sam("vit_b")
    injection = inject(sam, METHODS["lora"](rank=4, decoder="frozen"))
    record = AdapterRecord(base="vit_b", base_sha256="", image_size=1024)
    save_adapter(tmp_path / "adapter", sam, injection, record)
    assert (tmp_path / "adapter" / WEIGHTS).stat().st_size <= 1.3e6


def test_another_base_is_refused(saved, fresh):
    other = fresh()
    with torch.no_grad():
        other.mask_decoder.iou_token.weight[0, 0] += 1e-6
    with pytest.raises(AdapterError, match=r"samadapt\.json: trained on base tiny.* sha256"):
        load_into(saved, other)


def test_another_build_is_refused(saved, fresh):
    name = "tiny" if fresh().build.name == "tiny_t" else "tiny_t"
    with pytest.raises(AdapterError, match=f"the model given is {name} "):
        load_into(saved, build_sam(name))


def test_saving_replaces_the_whole_directory(saved, fresh):
    (saved / "stale").write_text("", encoding="utf-8")
    sam = fresh()
    injection = inject(sam, METHODS["none"](decoder="full"))
    save_adapter(saved, sam, injection, read_record(saved))
    names = ["README.md", CONFIG, WEIGHTS, RECORD]
    assert sorted(p.name for p in saved.iterdir()) == sorted(names)
    assert [p.name for p in saved.parent.iterdir()] == ["adapter"]
    assert load_into(saved, fresh()).method.name == "none"


def test_a_failed_save_leaves_the_old_one(saved, fresh, monkeypatch):
    sam = fresh()
    injection = inject(sam, METHODS["adapter"]())
    before = (saved / RECORD).read_text(encoding="utf-8")

    def fail(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_adapter(saved, sam, injection, read_record(saved))
    assert (saved / RECORD).read_text(encoding="utf-8") == before
    assert [p.name for p in saved.parent.iterdir()] == ["adapter"]


def test_nan_is_not_saved(fresh, tmp_path):
    sam = fresh()
    injection = inject(sam, METHODS["lora"]())
    with torch.no_grad():
        next(iter(injection.parameters.values())).fill_(float("nan"))
    record = AdapterRecord(base="tiny", base_sha256="", image_size=64)
    with pytest.raises(AdapterError, match="NaN"):
        save_adapter(tmp_path / "adapter", sam, injection, record)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("decoder", ["full", "lora", "frozen"])
def test_more_mask_tokens_come_back(fresh, perturb, predict, tmp_path, decoder):
    sam = fresh()
    digest = base_hash(sam)
    sam.resize_mask_tokens(5)
    injection = inject(sam, METHODS["lora"](decoder=decoder))
    perturb(injection)
    record = AdapterRecord(
        base=sam.build.name, base_sha256=digest, image_size=sam.image_size, num_masks=5
    )
    save_adapter(tmp_path / "adapter", sam, injection, record)
    loaded = fresh()
    load_into(tmp_path / "adapter", loaded)
    assert torch.equal(predict(loaded), predict(sam))
    assert "PeftModel" not in (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("decoder", ["full", "lora", "frozen"])
def test_class_tokens_come_back(fresh, perturb, predict, tmp_path, decoder, background):
    sam = fresh()
    digest = base_hash(sam)
    sam.add_class_tokens(5, background=background)
    injection = inject(sam, METHODS["lora"](decoder=decoder))
    assert any(name.startswith("class_tokens.") for name in injection.groups["decoder"])
    perturb(injection)
    record = AdapterRecord(base=sam.build.name, base_sha256=digest, image_size=sam.image_size)
    with pytest.raises(AdapterError, match="class_tokens: the model has 5; got 0"):
        save_adapter(tmp_path / "adapter", sam, injection, record)
    prompt = {"kind": "semantic", "background_token": background}
    record = replace(record, class_tokens=5, prompt=prompt)
    save_adapter(tmp_path / "adapter", sam, injection, record)
    loaded = fresh()
    load_into(tmp_path / "adapter", loaded)
    assert torch.equal(predict(loaded), predict(sam))
    embeddings = torch.randn(1, sam.embedding_channels, sam.embedding_size, sam.embedding_size)
    with torch.no_grad():
        found, expected = (m.decode_classes(embeddings).logits for m in (loaded, sam))
    assert torch.equal(found, expected)
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "PeftModel" not in card
    assert ("| Background | a token of its own" in card) is background


@torch.no_grad()
def carried(sam):
    """Logits of an object that is prompted on one slice and found on the next two by memory."""
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    embeddings, tracker = sam.encode(images), Tracker(sam, len(images))
    box = Prompts(boxes=torch.tensor([[[4.0, 6.0, 40.0, 50.0]]]))
    found = [tracker.prompted(embeddings[:1], box, multimask=False)]
    bank = MemoryBank({0: found[0].memory})
    found += [tracker.tracked(embeddings[i][None], bank, i, 1) for i in (1, 2)]
    return torch.stack([one.masks.logits[:, 0, 0] for one in found])


@pytest.fixture
def with_memory(perturb, tmp_path):
    """(model, injection, directory) of an adapter that trained nothing but the memory of SAM 2."""
    sam = load_sam("tiny_h")
    record = AdapterRecord(base="tiny_h", base_sha256=base_hash(sam), image_size=sam.image_size)
    injection = inject(sam, METHODS["none"](memory="full"))
    perturb(injection)
    save_adapter(tmp_path / "adapter", sam, injection, record)
    return sam, injection, tmp_path / "adapter"


def test_a_trained_memory_comes_back(with_memory, predict):
    sam, injection, directory = with_memory
    base, fresh = load_sam("tiny_h"), load_sam("tiny_h")
    assert set(injection.groups) == {"memory"}
    assert injection.first_trainable_block == len(sam.attention_blocks()) + 1
    count = sum(value.numel() for value in injection.parameters.values())
    assert f"memory   {count:,} trained parameters" in injection.report()
    assert f"trained  {count:,} of" in injection.report()
    record = read_record(directory)
    assert record.method["memory"] == "full"
    assert record.trains_memory
    card = (directory / "README.md").read_text(encoding="utf-8")
    assert "The memory was trained too" in card
    assert "it trains the memory of SAM 2" in card
    loaded = load_into(directory, fresh)
    assert loaded.groups == injection.groups
    expected = carried(sam)
    assert torch.equal(carried(fresh), expected)
    assert not torch.allclose(expected[1:], carried(base)[1:], atol=1e-3)
    # A picture, and the prompted slice, know nothing of the memory.
    assert torch.equal(expected[0], carried(base)[0])
    assert torch.equal(predict(fresh), predict(base))


def test_a_merged_model_has_the_trained_memory_as_its_own(with_memory):
    sam, injection, _ = with_memory
    expected, names = carried(sam), load_sam("tiny_h").memory.keys()
    merge_adapter(sam, injection)
    assert sam.video_memory is None
    assert sam.state_dict().keys() == load_sam("tiny_h").state_dict().keys()
    assert sam.memory.keys() == names
    assert torch.equal(carried(sam), expected)


def test_models_that_share_a_base_have_memories_of_their_own(with_memory):
    sam, _, directory = with_memory
    base = load_sam("tiny_h")
    before, twin = {name: value.clone() for name, value in base.memory.items()}, share(base)
    load_into(directory, twin)
    assert torch.equal(carried(twin), carried(sam))
    assert all(torch.equal(base.memory[name], value) for name, value in before.items())
    assert all(twin.memory[name] is value for name, value in base.memory.items())
    assert torch.equal(carried(base), carried(share(base)))


def test_a_base_without_a_memory_cannot_take_a_trained_one(with_memory, tiny_sam):
    base = load_sam("tiny_h")
    base.memory = {}
    with pytest.raises(AdapterError, match=r"samadapt.json: peft\.memory=full .* without it"):
        load_into(with_memory[2], base)
    with pytest.raises(ConfigError, match=r"peft\.memory=full .* only SAM 2 has"):
        inject(tiny_sam, METHODS["none"](memory="full"))
    assert tiny_sam.adapter_names == ()


def test_records_of_a_frozen_memory_are_those_of_earlier_versions():
    assert "memory" not in METHODS["lora"]().to_dict()
    assert method_from_dict(METHODS["lora"](memory="full").to_dict()).memory == "full"


def test_the_number_of_masks_must_be_the_models(fresh, tmp_path):
    sam = fresh()
    record = AdapterRecord(base="tiny", base_sha256="", image_size=64, num_masks=4)
    with pytest.raises(AdapterError, match="num_masks: the model has 3; got 4"):
        save_adapter(tmp_path / "a", sam, inject(sam, METHODS["lora"]()), record)


def test_the_record_and_the_card_say_what_was_given(saved, fresh):
    sam = fresh()
    injection = inject(sam, METHODS["lora"]())
    record = replace(
        read_record(saved),
        classes=["grey", "white"],
        scores={"adapted": {"dice": 0.93}},
        licence="Apache-2.0",
        data="MNI152",
    )
    save_adapter(saved, sam, injection, record)
    read = read_record(saved)
    assert replace(read, weights_sha256="", record_sha256="") == replace(
        record, method=injection.method.to_dict(), weights_sha256="", record_sha256=""
    )
    card = (saved / "README.md").read_text(encoding="utf-8")
    for said in (
        "grey, white",
        "0.93",
        "Apache-2.0",
        "MNI152",
        "samadapt.load_adapter",
        "PeftModel",
    ):
        assert said in card


def test_the_card_states_the_licence_of_the_weights_that_were_used():
    from samadapt.adapters.card import model_card

    record = AdapterRecord(
        base="vit_b", base_sha256="", image_size=1024, method={"name": "lora"}, prompt={}
    )
    assert "\nlicense: apache-2.0\n" in model_card(record, 1)
    card = model_card(replace(record, checkpoint="mine/of_my_own.pth"), 1)
    assert "\nlicense: other\n" in card
    assert "| Licence of the base | that of the weights given (of_my_own.pth) |" in card
    given = model_card(replace(record, checkpoint="mine.pth", licence="MIT"), 1)
    assert "\nlicense: mit\n" in given


def test_trainable_state_of_another_method_is_refused(fresh):
    one, other = fresh(), fresh()
    state = trainable_state(one, inject(one, METHODS["lora"](blocks="last:1")))
    with pytest.raises(AdapterError, match="missing keys"):
        load_trainable_state(other, inject(other, METHODS["lora"]()), state)


def test_no_name_is_html_or_leaves_its_cell_in_the_card():
    from samadapt.adapters.card import model_card

    classes = ["<img src=x onerror=alert(1)>", "a|b"]
    record = AdapterRecord(
        "tiny", "0" * 64, 64, method={"name": "lora"}, classes=classes,
        data="x\n\n<script>", recipe="`<b>`", licence="MIT\nlibrary_name: other",
    )  # fmt: skip
    card = model_card(record, 1)
    outside = re.sub(r"`[^`]*`", "", card.split("```")[0])
    assert "<" not in outside
    assert "| Classes | &lt;img src=x onerror=alert(1)&gt;, a\\|b |" in card
    assert "| Data | x &lt;script&gt; |" in card
    assert "\nlicense: mit-library-name--other\n" in card
