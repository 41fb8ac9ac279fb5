"""Foreign adapters, each with its source's own arithmetic on segment-anything's model."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from samadapt.adapters.base_model import open_adapter
from samadapt.errors import AdapterError, WeightsError
from samadapt.imports import import_adapter
from samadapt.sam.types import Prompts

RANK = 2


class SlicedLora(nn.Module):
    """What SAMed and micro-sam put in the place of ``qkv``: updates of q and v, added behind it."""

    def __init__(self, qkv, generator, alpha=1.0):
        super().__init__()
        self.qkv_proj, self.alpha, width = qkv, alpha, qkv.in_features
        for name in ("q", "v"):
            for part, shape in (("a", (RANK, width)), ("b", (width, RANK))):
                linear = nn.Linear(shape[1], shape[0], bias=False)
                linear.weight.data = 0.2 * torch.randn(shape, generator=generator)
                setattr(self, f"w_{part}_linear_{name}", linear)

    def forward(self, x):
        out = self.qkv_proj(x).clone()
        width = x.shape[-1]
        out[..., :width] += self.alpha * self.w_b_linear_q(self.w_a_linear_q(x))
        out[..., -width:] += self.alpha * self.w_b_linear_v(self.w_a_linear_v(x))
        return out


@pytest.fixture
def base(tiny_sam, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the record holds the bare name of the base's file
    path = tmp_path / "base.safetensors"
    save_file(tiny_sam.state_dict(), path)
    return tiny_sam.requires_grad_(False), {"model": "tiny", "checkpoint": path}


def surgery(peer, alpha=1.0):
    """Do what the sources do to segment-anything's model; return the wrappers in order."""
    generator = torch.Generator().manual_seed(1)
    wrappers = []
    for block in peer.image_encoder.blocks:
        block.attn.qkv = SlicedLora(block.attn.qkv, generator, alpha)
        wrappers.append(block.attn.qkv)
    return wrappers


def numbered(wrappers):
    pairs = [(w, s) for w in wrappers for s in ("q", "v")]
    return {
        f"w_{part}_{i:03d}": getattr(w, f"w_{part}_linear_{s}").weight.detach().clone()
        for i, (w, s) in enumerate(pairs)
        for part in ("a", "b")
    }


def theirs(peer, images, boxes):
    with torch.no_grad():
        embedding = peer.image_encoder(images)
        sparse, dense = peer.prompt_encoder(points=None, boxes=boxes, masks=None)
        return peer.mask_decoder(
            image_embeddings=embedding,
            image_pe=peer.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )[0]


def check(output, peer, boxes=True):
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[4.0, 6.0, 40.0, 50.0]]) if boxes else None
    sam = open_adapter(output).sam
    prompts = Prompts(boxes=None if box is None else box[None])
    with torch.no_grad():
        found = sam.decode(sam.encode(images), prompts, multimask=True).logits[0]
    wanted = theirs(peer, images, box)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-4 * max(1, wanted.abs().max())


@pytest.fixture
def samed(base, as_segment_anything, tmp_path):
    """SAMed's own model of 5 classes, its file, and what it is imported with."""
    plain, given = base
    sam = copy.deepcopy(plain)
    sam.resize_mask_tokens(5)
    peer = as_segment_anything(sam)
    wrappers = surgery(peer)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # SAMed trains all but the encoder's own weights
        for part in (peer.mask_decoder, peer.prompt_encoder):
            for parameter in part.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    whole = {k: v for k, v in peer.state_dict().items() if not k.startswith("image_encoder.")}
    torch.save(numbered(wrappers) | whole, tmp_path / "epoch_9.pth")
    return peer, tmp_path / "epoch_9.pth", given


def test_samed(samed, tmp_path):
    peer, file, given = samed
    done = import_adapter(file, tmp_path / "out", **given)
    assert done.source == "SAMed"
    assert (done.method.rank, done.method.slices) == (RANK, ("q", "v"))
    assert any("prompt_encoder" in note for note in done.notes)
    check(tmp_path / "out", peer, boxes=False)
    check(tmp_path / "out", peer)
    record = json.loads((tmp_path / "out" / "samadapt.json").read_text(encoding="utf-8"))
    assert record["prompt"]["kind"] == "semantic"
    assert len(record["classes"]) == 5
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for said in ("Background | mask token 0", "SAMed's own training gives the network values"):
        assert said in card
    assert any("values from 0 to 1" in note for note in done.notes)


@torch.no_grad()
def samed_labels(peer, image):
    """SAMed's label map: the largest of a softmax over all mask tokens, of which 0 is background.

    Its mask decoder returns every token, and its preprocessing is the given model's.
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    sparse, dense = peer.prompt_encoder(points=None, boxes=None, masks=None)
    low, _ = peer.mask_decoder.predict_masks(
        image_embeddings=peer.image_encoder(peer.preprocess(pixels.float())),
        image_pe=peer.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )
    side = peer.image_encoder.img_size
    masks = peer.postprocess_masks(low, (side, side), (side, side))
    return masks.softmax(dim=1).argmax(dim=1)[0].numpy()


def test_samed_keeps_its_background_class(samed, tmp_path):
    import samadapt
    from samadapt.sam.decode import segment_semantic
    from samadapt.sam.embed import embed

    peer, file, given = samed
    import_adapter(file, tmp_path / "out", **given)
    segmenter = samadapt.load_adapter(tmp_path / "out", device="cpu")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
    wanted = np.stack([samed_labels(peer, image) for image in images])
    assert 0.02 < (wanted == 0).mean() < 0.98
    found = np.stack([segmenter.segment(image) for image in images])
    assert (found != wanted).mean() < 1e-3  # rounding, where two tokens are as large
    at_zero = np.stack(segment_semantic(segmenter.sam, *embed(segmenter.sam, images), 5))
    assert (at_zero != wanted).mean() > 0.05  # what a background of logit 0 would change


SAMED_FAULTS = {
    "another decoder": (lambda t: t.update({"mask_decoder.more.weight": torch.ones(2)}), "no such"),
    "wrong shape": (
        lambda t: t.update({"mask_decoder.iou_token.weight": torch.ones(1, 7)}),
        r"iou_token.weight: expected \(1, 64\)",
    ),
    "part of the decoder": (lambda t: t.pop("mask_decoder.iou_token.weight"), "is missing"),
    "extra pair": (lambda t: t.update({"w_b_008": torch.ones(32, 2)}), "8 of each; got 8 and 9"),
    "ranks": (lambda t: t.update({"w_b_003": torch.ones(32, 3)}), "w_b_003: .* do not fit"),
    "axes": (lambda t: t.update({"w_a_000": torch.ones(1, 2, 32)}), "w_a_000, .* do not fit"),
}


@pytest.mark.parametrize("fault", SAMED_FAULTS)
def test_a_broken_samed_file_is_refused(samed, tmp_path, fault):
    _, file, given = samed
    change, message = SAMED_FAULTS[fault]
    tensors = torch.load(file)
    change(tensors)
    torch.save(tensors, file)
    with pytest.raises(AdapterError, match=rf"epoch_9\.pth: .*{message}"):
        import_adapter(file, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_as_many_names_as_classes(samed, tmp_path):
    _, file, given = samed
    with pytest.raises(AdapterError, match="it has 5 classes; got 1 names"):
        import_adapter(file, tmp_path / "out", classes=["liver"], **given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_in_half_precision(base, as_segment_anything, tmp_path, dtype):
    plain, given = base
    peer = as_segment_anything(plain)
    wrappers = surgery(peer)
    for linear in (m for w in wrappers for n, m in w.named_children() if n != "qkv_proj"):
        linear.weight.data = linear.weight.data.to(dtype).float()
    half = {name: value.to(dtype) for name, value in numbered(wrappers).items()}
    save_file(half, tmp_path / "half.safetensors")
    import_adapter(tmp_path / "half.safetensors", tmp_path / "out", **given)
    check(tmp_path / "out", peer)


def test_a_small_lora_project(base, as_segment_anything, tmp_path):
    plain, given = base
    peer = as_segment_anything(plain)
    save_file(numbered(surgery(peer)), tmp_path / "lora_rank2.safetensors")
    done = import_adapter(tmp_path / "lora_rank2.safetensors", tmp_path / "out", **given)
    assert "SAM-LoRA" in done.source
    assert done.method.decoder == "frozen"
    assert not (tmp_path / "out" / "base.safetensors").exists()
    check(tmp_path / "out", peer)


@pytest.mark.parametrize("prefix", ["", "sam."])
def test_micro_sam(base, as_segment_anything, tmp_path, prefix):
    plain, given = base
    peer = as_segment_anything(plain)
    wrappers = surgery(peer, alpha=0.5)
    with torch.no_grad():
        peer.mask_decoder.iou_token.weight.add_(0.3)
    state = {f"{prefix}{k}": v for k, v in peer.state_dict().items()}
    if prefix:
        again = nn.ModuleList(wrappers).state_dict()
        state |= {f"peft_blocks.{k}": v for k, v in again.items()}
    torch.save({"model_state": state}, tmp_path / "best.pt")
    done = import_adapter(tmp_path / "best.pt", tmp_path / "out", scale=0.5, **given)
    assert (done.source, done.method.decoder) == ("micro-sam", "full")
    check(tmp_path / "out", peer)


def test_a_broken_micro_sam_state_is_refused(base, as_segment_anything, tmp_path):
    plain, given = base
    peer = as_segment_anything(plain)
    surgery(peer)
    state = peer.state_dict()
    torch.save(state, tmp_path / "best.pt")
    with pytest.raises(AdapterError, match=r"best.pt: .*pos_embed: expected .* at 128 px"):
        import_adapter(tmp_path / "best.pt", tmp_path / "out", image_size=128, **given)
    del state["image_encoder.blocks.1.attn.qkv.w_b_linear_q.weight"]
    torch.save(state, tmp_path / "best.pt")
    with pytest.raises(AdapterError, match=r"best.pt: .*blocks.1.attn.qkv, q has no B"):
        import_adapter(tmp_path / "best.pt", tmp_path / "out", **given)


@pytest.mark.parametrize("naming", ["sam", "transformers"])
@pytest.mark.parametrize("targets", [["qkv"], ["qkv", "proj"], ["proj"]])
def test_a_peft_directory(base, as_segment_anything, tmp_path, naming, targets):
    from peft import LoraConfig, get_peft_model

    from samadapt.export.peft import base_in_transformers

    plain, given = base
    peer = as_segment_anything(plain)
    model = peer if naming == "sam" else base_in_transformers(plain)
    encoder = "image_encoder.blocks" if naming == "sam" else "vision_encoder.layers"
    names = [f"{encoder}.{i}.attn.{t}" for i in range(4) for t in targets]
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=names, use_rslora=True, modules_to_save=["mask_decoder"]
    )
    adapted = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(tmp_path / "peft")
    done = import_adapter(tmp_path / "peft", tmp_path / "out", **given)
    assert done.source == ("peft" if naming == "sam" else "peft, transformers' names")
    method = "lora" if "qkv" in targets else "decoder"
    assert (done.method.name, done.method.decoder) == (method, "full")
    assert (tmp_path / "out" / "base.safetensors").exists() is ("proj" in targets)
    if naming == "sam":
        check(tmp_path / "out", adapted.base_model.model)
        return
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[4.0, 6.0, 40.0, 50.0]]])
    sam = open_adapter(tmp_path / "out").sam
    with torch.no_grad():
        wanted = adapted(pixel_values=images, input_boxes=boxes).pred_masks
        found = sam.decode(sam.encode(images), Prompts(boxes=boxes), multimask=True).logits
    assert (found - wanted).abs().max() < 1e-4 * max(1, wanted.abs().max())


STARTS = ["orthogonal", "pissa_niter_4"]
MORE_STARTS = [False, "gaussian", "mica", "pissa", "olora"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "start", [*STARTS, *(pytest.param(start, marks=pytest.mark.slow) for start in MORE_STARTS)]
)
def test_a_start_that_changes_the_base_is_refused(base, as_segment_anything, tmp_path, start):
    """What changes it is read off peft itself, as it loads the directory onto a fresh base."""
    from peft import LoraConfig, PeftModel, get_peft_model

    plain, given = base
    name = "image_encoder.blocks.1.attn.qkv"
    config = LoraConfig(r=2, target_modules=[name], init_lora_weights=start)
    adapted = get_peft_model(as_segment_anything(plain), config)
    adapted.save_pretrained(tmp_path / "peft")
    fresh = PeftModel.from_pretrained(as_segment_anything(plain), str(tmp_path / "peft")).eval()
    kept = fresh.base_model.model.get_submodule(name).base_layer.weight
    if torch.equal(kept, plain.get_parameter(f"{name}.weight")):
        import_adapter(tmp_path / "peft", tmp_path / "out", **given)
        check(tmp_path / "out", fresh.base_model.model)
        return
    assert start in ("pissa", "pissa_niter_4", "olora")
    with pytest.raises(AdapterError, match=rf"adapter_config.json: init_lora_weights '{start}'"):
        import_adapter(tmp_path / "peft", tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("start", ["corda", "loftq", "what_comes_next"])
def test_a_start_that_is_not_known_is_refused(base, tmp_path, start):
    peft_directory(tmp_path / "peft", init_lora_weights=start)
    with pytest.raises(AdapterError, match=f"init_lora_weights '{start}'"):
        import_adapter(tmp_path / "peft", tmp_path / "out", **base[1])


def peft_directory(folder, **options):
    """Write a PEFT directory for one linear of ``tiny``; return its tensors."""
    name = "base_model.model.image_encoder.blocks.1.attn.qkv"
    tensors = {
        f"{name}.lora_{part}.weight": torch.randn(shape, generator=torch.Generator().manual_seed(i))
        for i, (part, shape) in enumerate((("A", (2, 32)), ("B", (96, 2))))
    }
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **options}
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


@pytest.mark.parametrize(
    ("options", "scale", "message"),
    [
        ({"r": 16}, 1, "expected r 2 .* got 16"),
        ({"lora_alpha": None}, 1, ".* as lora_alpha; got 2 and None"),
        ({}, 2, "scale=2: this file says its own"),
    ],
)
def test_a_peft_directory_that_contradicts_itself(base, tmp_path, options, scale, message):
    peft_directory(tmp_path / "peft", **options)
    with pytest.raises(AdapterError, match=f"adapter_config.json: {message}"):
        import_adapter(tmp_path / "peft", tmp_path / "out", scale=scale, **base[1])


def test_a_peft_directory_of_the_older_kind(base, tmp_path):
    _, given = base
    tensors = peft_directory(tmp_path / "peft")
    import_adapter(tmp_path / "peft", tmp_path / "new", **given)
    (tmp_path / "peft" / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors or adapter_model\.bin"):
        import_adapter(tmp_path / "peft", tmp_path / "old", **given)
    torch.save(tensors, tmp_path / "peft" / "adapter_model.bin")
    import_adapter(tmp_path / "peft", tmp_path / "old", **given)
    first, second = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("new", "old")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.save({"code": print}, tmp_path / "peft" / "adapter_model.bin")
    with pytest.raises(WeightsError, match="more than tensors and plain values"):
        import_adapter(tmp_path / "peft", tmp_path / "code", **given)


def test_our_own_directory_comes_back(base, tmp_path):
    from samadapt.adapters.injection import inject
    from samadapt.adapters.store import AdapterRecord, save_adapter
    from samadapt.methods import METHODS
    from samadapt.sam.weights.loading import base_hash

    plain, given = base
    sam = copy.deepcopy(plain)
    record = AdapterRecord(base="tiny", base_sha256=base_hash(sam), image_size=64)
    injection = inject(sam, METHODS["lora"](rank=3, slices=("q", "k"), blocks="last:2"))
    with torch.no_grad():
        for parameter in injection.parameters.values():
            parameter.add_(0.1)
    save_adapter(tmp_path / "ours", sam, injection, record)
    done = import_adapter(tmp_path / "ours", tmp_path / "out", **given)
    assert (done.method.rank, done.method.slices, done.method.blocks) == (3, ("q", "k"), (2, 3))
    first, second = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("ours", "out"))
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[key], second[key]) for key in first)


def test_what_is_refused(base, tmp_path):
    _, given = base
    lora = {f"w_{p}_{i:03d}": torch.ones(2, 32) for i in range(8) for p in "a"}
    lora |= {f"w_b_{i:03d}": torch.ones(32, 2) for i in range(8)}
    cases = {
        "none.safetensors": (
            {"x": torch.ones(1)},
            "expected an adapter in a known format .*begin with x",
        ),
        "fewer.safetensors": ({"w_a_000": torch.ones(2, 32)}, "of all 4 blocks of tiny, 8 of each"),
        "nan.safetensors": (lora | {"w_a_001": torch.full((2, 32), torch.nan)}, "NaN"),
        "wide.safetensors": (
            {k: torch.ones(2, 64) if "a_" in k else torch.ones(32, 2) for k in lora},
            r"must be for \(96, 32\)",
        ),
    }
    for name, (tensors, message) in cases.items():
        save_file(tensors, tmp_path / name)
        with pytest.raises(AdapterError, match=rf"{name}: .*{message}"):
            import_adapter(tmp_path / name, tmp_path / "out", **given)
        assert not (tmp_path / "out").exists()
    torch.save({"model": print}, tmp_path / "code.pth")
    with pytest.raises(WeightsError, match="more than tensors and plain values"):
        import_adapter(tmp_path / "code.pth", tmp_path / "out", **given)
