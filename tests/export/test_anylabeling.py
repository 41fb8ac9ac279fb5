"""``to=anylabeling``: given what AnyLabeling gives, the masks are those of samadapt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import yaml
from PIL import Image

from samadapt.adapters.record import read_record
from samadapt.adapters.store import load_into, save_adapter
from samadapt.errors import AdapterError
from samadapt.export import anylabeling, export_adapter
from samadapt.export.anylabeling import AnyLabeling
from samadapt.inference.segmenter import load_adapter
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.weights.loading import load_sam

FRAME = (43, 64)
"""Height and width of the frame, which is 684 x 1024 in the program."""


@pytest.fixture
def small(monkeypatch):
    """Let the sizes be those of the model ``tiny``, since one of 1024 px is slow."""
    monkeypatch.setattr(anylabeling, "SIDE", 64)
    monkeypatch.setattr(anylabeling, "MASK_SIDE", 32)


def mask_of_the_program(folder, picture, points, labels):
    """The mask that the program draws: it knows the frame, names and sizes, and not the model."""
    encoder, decoder = (
        onnxruntime.InferenceSession(folder / name) for name in ("encoder.onnx", "decoder.onnx")
    )
    height, width = picture.shape[:2]
    scale = min(FRAME[1] / width, FRAME[0] / height)
    size = round(width * scale), round(height * scale)
    frame = np.zeros((*FRAME, 3), np.float32)
    small = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)
    frame[: size[1], : size[0]] = small
    (embedding,) = encoder.run(None, {encoder.get_inputs()[0].name: frame})
    coords = np.array([[*(np.asarray(point) * scale for point in points), [0, 0]]], np.float32)
    given = {
        "image_embeddings": embedding,
        "point_coords": coords,
        "point_labels": np.array([[*labels, -1]], np.float32),
        "mask_input": np.zeros((1, 1, 32, 32), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array(FRAME, np.float32),
    }
    masks, _, _ = decoder.run(None, given)
    inside = Image.fromarray(masks[0, 0]).crop((0, 0, *size))
    return np.asarray(inside.resize((width, height), Image.Resampling.BILINEAR)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["box", "point"])
def test_the_program_draws_the_mask_of_samadapt(tiny_sam, save, tmp_path, small, kind):
    directory, _ = save(tiny_sam)
    fresh = load_sam("tiny", tmp_path / "tiny-base.safetensors")
    injection = load_into(directory, fresh)
    changed = replace(read_record(directory), prompt=PromptPolicy(kind).to_dict())
    save_adapter(directory, fresh, injection, changed)
    done = export_adapter(directory, AnyLabeling(), tmp_path / "out")
    assert set(done.files) == {"README.md", "config.yaml", "decoder.onnx", "encoder.onnx"}
    values = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text(encoding="utf-8"))
    assert (values["type"], values["encoder_model_path"]) == ("segment_anything", "encoder.onnx")
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(20, 256, (6, 9, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((192, 128), Image.Resampling.BILINEAR))
    ours = load_adapter(directory)
    if kind == "box":
        wanted = ours.segment(picture, boxes=[[20, 30, 120, 110]])
        found = mask_of_the_program(tmp_path / "out", picture, [[20, 30], [120, 110]], [2, 3])
    else:
        wanted = ours.segment(picture, points=[[70, 60]])
        found = mask_of_the_program(tmp_path / "out", picture, [[70, 60]], [1])
    assert wanted.any()
    assert not wanted.all()
    both = (found & (wanted > 0)).sum() / (found | (wanted > 0)).sum()
    assert both > 0.95  # the frame of 43 x 64 pixels is no exact multiple of the picture


def test_padding_is_zero_after_the_normalisation(tiny_sam, unchecked_shapes):
    import torch

    from samadapt.export.anylabeling_graphs import FrameEncoder

    frame = torch.zeros(43, 64, 3)
    frame[:40, :50] = 20 + 200 * torch.rand(40, 50, 3, generator=torch.Generator().manual_seed(0))
    frame[7, 8] = 0  # a black pixel in the picture is no padding
    with torch.no_grad():
        found = FrameEncoder(tiny_sam)(frame)
        picture = frame[:40, :50].permute(2, 0, 1)
        wanted = tiny_sam.encode(tiny_sam.preprocess([picture]))
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_other_sizes_are_refused(tiny_sam, save, tmp_path):
    directory, _ = save(tiny_sam)
    with pytest.raises(AdapterError, match=r"AnyLabeling scales pictures to 1024 px.*sees 64 px"):
        export_adapter(directory, AnyLabeling(), tmp_path / "out")
