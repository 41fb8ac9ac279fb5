"""Two files that onnxruntime runs, with the names of segment-anything's own export."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from samadapt.errors import ConfigError
from samadapt.export import export_adapter
from samadapt.export.onnx import Onnx
from samadapt.sam.geometry import make_frame
from samadapt.sam.types import Prompts
from samadapt.sam.weights import load_sam


def sessions(folder):
    return [
        onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "decoder")
    ]


@pytest.mark.parametrize("base", ["tiny_sam", "tiny_t_sam"])
@pytest.mark.parametrize(("method", "masks"), [("lora", 5), ("adapter", 3)])
def test_onnxruntime_predicts_the_same(base, method, masks, save, tmp_path, request):
    directory, sam = save(request.getfixturevalue(base), method, masks=masks)
    done = export_adapter(directory, Onnx(), tmp_path / "out")
    assert done.difference.logits < 1e-3 * max(1, done.difference.largest)
    assert done.difference.largest > 0.1
    encoder, decoder = sessions(tmp_path / "out")
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(1, 3, 64, 64, generator=generator)
    (embeddings,) = encoder.run(["image_embeddings"], {"input_image": image.numpy()})
    low_side = 4 * sam.embedding_size
    mask = torch.randn(1, 1, low_side, low_side, generator=generator)
    for count, points, with_mask in ((1, 1, 0), (3, 2, 1), (2, 4, 0)):
        coords = 64 * torch.rand(count, points, 2, generator=generator)
        labels = torch.randint(0, 2, (count, points), generator=generator)
        padded = torch.cat([coords, torch.zeros(count, 1, 2)], 1)
        marks = torch.cat([labels, -torch.ones(count, 1)], 1)
        found = decoder.run(
            None,
            {
                "image_embeddings": embeddings,
                "point_coords": padded.numpy(),
                "point_labels": marks.numpy(),
                "mask_input": mask.numpy(),
                "has_mask_input": np.full(1, with_mask, np.float32),
                "orig_im_size": np.array([30, 45], np.float32),
            },
        )
        prompts = Prompts(
            points=coords[None],
            point_labels=labels[None],
            masks=mask.expand(count, 1, low_side, low_side)[None] if with_mask else None,
        )
        with torch.no_grad():
            outputs = [
                sam.decode(sam.encode(image), prompts, multimask=several)
                for several in (False, True)
            ]
        low = torch.cat([output.logits for output in outputs], 2)
        iou = torch.cat([output.iou for output in outputs], 2)
        full = sam.postprocess(low, make_frame((30, 45), 64, sam.preprocessing.resize))
        assert found[0].shape == (count, masks + 1, 30, 45)
        for ours, theirs in zip((full, iou, low), found, strict=True):
            assert np.abs(ours[0].numpy() - theirs).max() < 1e-3 * max(1, ours.abs().max())


def test_names_and_sizes_are_segment_anythings(tiny_sam, save, tmp_path):
    directory, _ = save(tiny_sam)
    export_adapter(directory, Onnx(), tmp_path / "out")
    encoder, decoder = sessions(tmp_path / "out")
    assert [x.name for x in decoder.get_inputs()] == [
        "image_embeddings",
        "point_coords",
        "point_labels",
        "mask_input",
        "has_mask_input",
        "orig_im_size",
    ]
    assert [x.name for x in decoder.get_outputs()] == ["masks", "iou_predictions", "low_res_masks"]
    assert [x.name for x in encoder.get_outputs()] == ["image_embeddings"]
    assert decoder.get_inputs()[1].shape == ["num_prompts", "num_points", 2]


@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.02), ("int8", 0.5)])
def test_smaller_encoders_say_how_far_off_they_are(tiny_sam, save, tmp_path, precision, share):
    directory, _ = save(tiny_sam)
    whole = export_adapter(directory, Onnx(), tmp_path / "whole")
    small = export_adapter(directory, Onnx(precision), tmp_path / "small")
    assert small.files["encoder.onnx"] < whole.files["encoder.onnx"]
    assert whole.difference.logits < small.difference.logits < share * small.difference.largest
    assert f"{small.difference.logits:.2e}" in (tmp_path / "small" / "README.md").read_text()


def test_another_precision_is_refused():
    with pytest.raises(ConfigError, match="precision must be fp32, fp16, int8"):
        Onnx("fp8")


def nodes(path):
    import onnx

    return len(onnx.load(path).graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_lite_medsam(save, tmp_path, precision):
    directory, _ = save(load_sam("lite_medsam"), scale=0.01)
    done = export_adapter(directory, Onnx(precision), tmp_path / "out")
    if precision == "fp32":
        assert done.difference.logits < 1e-3
        assert nodes(tmp_path / "out" / "encoder.onnx") < 3000
    else:
        assert done.difference.disagreement < 0.05


@pytest.mark.slow
def test_vit_b(randomise, save, tmp_path):
    from samadapt.sam.model import build_sam

    directory, _ = save(randomise(build_sam("vit_b"), 0).eval(), scale=0.01)
    done = export_adapter(directory, Onnx(), tmp_path / "out")
    assert done.difference.logits < 1e-3 * max(1, done.difference.largest)
    # some hundred a block: windows and heads are not unrolled
    assert nodes(tmp_path / "out" / "encoder.onnx") < 5000
