"""A SamModel directory that transformers loads alone, and its mask-generation pipeline runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from samadapt.errors import AdapterError
from samadapt.export import export_adapter
from samadapt.export.hf import HuggingFace
from samadapt.export.sam import SamFile
from samadapt.sam.geometry import make_frame, resize_image
from samadapt.sam.model import build_sam
from samadapt.sam.types import Preprocessing, Prompts
from samadapt.sam.weights.builds import BUILDS
from samadapt.sam.weights.loading import load_sam


@pytest.mark.parametrize("masks", [3, 5])
def test_sam_model_predicts_the_same(tiny_sam, save, tmp_path, masks):
    from transformers import SamModel, SamProcessor

    directory, sam = save(tiny_sam, masks=masks)
    done = export_adapter(directory, HuggingFace(), tmp_path / "out")
    assert done.difference.logits < 1e-4
    model = SamModel.from_pretrained(tmp_path / "out").eval()
    processor = SamProcessor.from_pretrained(tmp_path / "out")
    image = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    inputs = processor(Image.fromarray(image), input_boxes=[[[4, 6, 40, 50]]], return_tensors="pt")
    ours = sam.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert (ours - inputs["pixel_values"]).abs().max() < 1e-4
    with torch.no_grad():
        theirs = model(**{k: v for k, v in inputs.items() if k in ("pixel_values", "input_boxes")})
        boxes = torch.tensor([[[4.0, 6.0, 40.0, 50.0]]])
        expected = sam.decode(sam.encode(ours), Prompts(boxes=boxes), multimask=True)
    assert theirs.pred_masks.shape == (1, 1, masks, 32, 32)
    assert (theirs.pred_masks - expected.logits).abs().max() < 1e-3  # pixels differ by 1e-6


def test_the_pipeline_finds_our_masks(tiny_sam, save, tmp_path):
    """The pipeline's masks equal those of our model at the same points."""
    from transformers import pipeline

    directory, sam = save(tiny_sam)
    export_adapter(directory, HuggingFace(), tmp_path / "out")
    generate = pipeline("mask-generation", model=str(tmp_path / "out"), device="cpu")
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    found = generate(
        Image.fromarray(image),
        points_per_crop=4,
        pred_iou_thresh=-10.0,
        stability_score_thresh=0.0,
        crops_nms_thresh=1.0,  # a random model's masks have nearly the same boxes
    )
    masks = np.stack([np.asarray(mask) for mask in found["masks"]])
    grid = 64 * (torch.arange(4) + 0.5) / 4
    points = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1).reshape(1, -1, 1, 2)
    prompts = Prompts(points=points, point_labels=torch.ones(1, 16, 1))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.no_grad():
        output = sam.decode(sam.encode(sam.preprocess(pixels)), prompts, multimask=True)
        full = sam.postprocess(output.logits, make_frame((64, 64), 64, "longest"))
    ours = (full[0] > 0).flatten(0, 1).flatten(1).numpy()
    assert len(masks) > 40  # of 48; those without a stable pixel are dropped
    assert len({mask.tobytes() for mask in masks}) > 20
    apart = (ours[None] != masks.reshape(len(masks), 1, -1)).sum(-1)
    assert apart.min(1).max() <= 4  # of 4096 pixels, by rounding


@pytest.mark.slow
def test_the_tracker_of_sam_3_predicts_the_same(tiny_r_sam, save, tmp_path):
    directory, sam = save(tiny_r_sam)
    done = export_adapter(directory, HuggingFace(), tmp_path / "out")
    assert done.difference.logits < 1e-4 * max(1, done.difference.largest)
    loaded = load_sam("tiny_r", tmp_path / "out")
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[4.0, 6.0, 40.0, 50.0]]])
    with torch.no_grad():
        found, wanted = (
            model(image, Prompts(boxes=boxes), multimask=True).logits for model in (loaded, sam)
        )
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_metas_file_of_sam_3_is_not_written(tiny_r_sam, save, tmp_path):
    directory, _ = save(tiny_r_sam)
    with pytest.raises(AdapterError, match="also holds its detector and memory"):
        export_adapter(directory, SamFile(), tmp_path / "out")


@pytest.mark.parametrize("normalization", ["mean_std", "min_max"])
def test_the_processor_is_compared_with_our_pixels(
    randomise, save, tmp_path, monkeypatch, normalization
):
    """transformers' processor cannot do MedSAM's preprocessing."""
    from transformers import SamModel, SamProcessor

    rule = Preprocessing(normalization, "squash" if normalization == "min_max" else "longest")
    build = replace(BUILDS["tiny"], name="tiny_other", preprocessing=rule)
    monkeypatch.setitem(BUILDS, "tiny_other", build)
    directory, sam = save(randomise(build_sam("tiny_other"), 1).eval())
    done = export_adapter(directory, HuggingFace(), tmp_path / "out")
    (note,) = done.notes
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert note in card
    processor = SamProcessor.from_pretrained(tmp_path / "out")
    image = np.random.default_rng(1).integers(60, 180, (48, 40, 3), dtype=np.uint8)
    frame = make_frame((48, 40), 64, rule.resize)
    resized = torch.from_numpy(resize_image(image, frame).copy()).permute(2, 0, 1)
    ours = sam.preprocess([resized])
    if normalization == "mean_std":
        assert "by at most" in note
        theirs = processor(image, return_tensors="pt")["pixel_values"]
        assert 0 < (theirs - ours).abs().max() < 3 / min(rule.std)
        return
    assert "cannot scale an image to [0, 1]" in note
    code = card.split("```python")[1].split("```")[0]
    Image.fromarray(image).save(tmp_path / "out" / "image.png")
    monkeypatch.chdir(tmp_path / "out")
    space: dict[str, object] = {}
    exec(code, space)
    assert isinstance(space["model"], SamModel)
    assert (space["inputs"]["pixel_values"] - ours).abs().max() < 1e-5
    plain = processor(image, return_tensors="pt")["pixel_values"]
    assert (plain - ours).abs().max() > 0.1
    with torch.no_grad():
        boxes = torch.tensor([[[4.0, 6.0, 40.0, 50.0]]])
        pixels = space["inputs"]["pixel_values"]
        found = space["model"].eval()(pixel_values=pixels, input_boxes=boxes)
        expected = sam.decode(sam.encode(ours), Prompts(boxes=boxes), multimask=True).logits
    assert (found.pred_masks - expected).abs().max() < 1e-3 * max(1, expected.abs().max())


def test_tiny_vit_is_refused(tiny_t_sam, save, tmp_path):
    directory, _ = save(tiny_t_sam)
    with pytest.raises(
        AdapterError, match=r"SamModel has no TinyViT.*exported to onnx, peft, sam, web"
    ):
        export_adapter(directory, HuggingFace(), tmp_path / "out")


@pytest.mark.slow
def test_vit_b(randomise, save, tmp_path):
    from samadapt.sam.model import build_sam

    directory, _ = save(randomise(build_sam("vit_b"), 0).eval(), scale=0.01)
    done = export_adapter(directory, HuggingFace(), tmp_path / "out")
    assert done.difference.logits < 1e-4 * max(1, done.difference.largest)
