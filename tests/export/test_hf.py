"""A SamModel directory that transformers loads alone, and its mask-generation pipeline runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from samadapt.errors import AdapterError
from samadapt.export import export_adapter
from samadapt.export.hf import HuggingFace
from samadapt.sam.types import Prompts


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


def test_the_pipeline_runs(tiny_sam, save, tmp_path):
    from transformers import pipeline

    directory, _ = save(tiny_sam)
    export_adapter(directory, HuggingFace(), tmp_path / "out")
    generate = pipeline("mask-generation", model=str(tmp_path / "out"), device="cpu")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    found = generate(image, points_per_batch=64, pred_iou_thresh=-10.0, stability_score_thresh=0.0)
    assert len(found["masks"]) > 0
    assert found["masks"][0].shape == (64, 64)


def test_tiny_vit_is_refused(tiny_t_sam, save, tmp_path):
    directory, _ = save(tiny_t_sam)
    with pytest.raises(AdapterError, match=r"SamModel has no TinyViT.*exported to onnx, peft, sam"):
        export_adapter(directory, HuggingFace(), tmp_path / "out")


@pytest.mark.slow
def test_vit_b(randomise, save, tmp_path):
    from samadapt.sam.model import build_sam

    directory, _ = save(randomise(build_sam("vit_b"), 0).eval(), scale=0.01)
    done = export_adapter(directory, HuggingFace(), tmp_path / "out")
    assert done.difference.logits < 1e-4 * max(1, done.difference.largest)
