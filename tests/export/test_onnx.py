"""Two files that onnxruntime runs, with the names of segment-anything's own export."""

from __future__ import annotations

import inspect

import numpy as np
import onnxruntime
import pytest
import torch
from segment_anything.utils.onnx import SamOnnxModel

from samadapt.adapters.base_model import open_adapter
from samadapt.errors import AdapterError, ConfigError
from samadapt.export import export_adapter
from samadapt.export.onnx import Onnx, merged_if_possible, trace
from samadapt.export.peft import Peft
from samadapt.export.sam import SamFile
from samadapt.sam.geometry import make_frame
from samadapt.sam.types import Prompts
from samadapt.sam.weights.loading import load_sam


def sessions(folder):
    return [
        onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "decoder")
    ]


@pytest.mark.parametrize(
    "base",
    [
        "tiny_sam",
        "tiny_t_sam",
        pytest.param("tiny_h_sam", marks=pytest.mark.slow),
        pytest.param("tiny_r_sam", marks=pytest.mark.slow),
    ],
)
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


def test_names_sizes_and_answers_are_segment_anythings(
    tiny_sam, save, as_segment_anything, tmp_path
):
    """``SamOnnxModel`` of the same weights, given what the graph is given, name by name."""
    directory, _ = save(tiny_sam, decoder="frozen")
    export_adapter(directory, Onnx(), tmp_path / "out")
    encoder, decoder = sessions(tmp_path / "out")
    theirs = SamOnnxModel(as_segment_anything(tiny_sam), return_single_mask=False)
    names = list(inspect.signature(SamOnnxModel.forward).parameters)[1:]
    assert [x.name for x in decoder.get_inputs()] == names
    # output_names of scripts/export_onnx_model.py, which the package does not hold
    assert [x.name for x in decoder.get_outputs()] == ["masks", "iou_predictions", "low_res_masks"]
    assert [x.name for x in encoder.get_outputs()] == names[:1]
    assert decoder.get_inputs()[1].shape == ["num_prompts", "num_points", 2]
    generator = torch.Generator().manual_seed(4)
    given = {
        "image_embeddings": torch.randn(1, 64, 8, 8, generator=generator),
        "point_coords": 64 * torch.rand(1, 3, 2, generator=generator),
        "point_labels": torch.tensor([[2.0, 3.0, 1.0]]),
        "mask_input": torch.randn(1, 1, 32, 32, generator=generator),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.tensor([30.0, 45.0]),
    }
    ours = decoder.run(None, {name: value.numpy() for name, value in given.items()})
    for expected, found in zip(theirs(**given), ours, strict=True):
        assert found.shape == tuple(expected.shape)
        assert np.abs(expected.numpy() - found).max() < 1e-4 * max(1, expected.abs().max())


@pytest.mark.parametrize("base", ["tiny_sam", pytest.param("tiny_t_sam", marks=pytest.mark.slow)])
def test_conv_lora_chooses_anew_for_each_image(base, save, tmp_path, request):
    options = {"blocks": "last:2", "experts": 3, "decoder": "frozen"}
    _, sam = save(request.getfixturevalue(base), "conv_lora", scale=0.5, **options)
    chosen = []
    gates = [module for name, module in sam.named_modules() if name.endswith("conv_lora.gate")]
    for gate in gates:
        gate.register_forward_hook(lambda _, __, shares: chosen.append(shares.argmax(1)))
    images = [
        (0.2 + seed) * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        for seed in range(5)
    ]
    with torch.no_grad():
        expected = [sam.encode(image) for image in images]
    by_gate = [torch.cat(chosen[i :: len(gates)]).unique() for i in range(len(gates))]
    assert max(len(experts) for experts in by_gate) > 1, "a gate that never changes proves nothing"
    path = tmp_path / "encoder.onnx"
    trace(sam.image_encoder, (torch.zeros_like(images[0]),), path, ("input_image",), ("out",))
    encoder = onnxruntime.InferenceSession(path)
    for image, wanted in zip(images, expected, strict=True):
        (found,) = encoder.run(None, {"input_image": image.numpy()})
        assert np.abs(wanted.numpy() - found).max() < 1e-3 * max(1, wanted.abs().max())


@pytest.fixture
def loha_cannot_merge(monkeypatch):
    from peft.tuners.lycoris_utils import LycorisLayer

    def merge(self, *_, **__):
        raise NotImplementedError("not today")

    monkeypatch.setattr(LycorisLayer, "merge", merge)


@pytest.mark.usefixtures("loha_cannot_merge")
def test_what_peft_cannot_merge_names_its_targets(tiny_sam, save, tmp_path):
    directory, sam = save(tiny_sam, "loha")
    with pytest.raises(AdapterError, match=r"to=sam: .*not today.*exported to onnx, peft, web$"):
        export_adapter(directory, SamFile(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    kept = merged_if_possible(open_adapter(directory))
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (kept.encode(image) - sam.encode(image)).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("loha_cannot_merge")
@pytest.mark.parametrize("method", ["loha", "conv_lora"])
def test_what_cannot_be_merged_stays_in_the_graph(tiny_sam, tiny_t_sam, save, tmp_path, method):
    for base in (tiny_sam, tiny_t_sam):
        directory, _ = save(base, method)
        for target in (Onnx(), Peft()) if method != "conv_lora" else (Onnx(),):
            done = export_adapter(directory, target, tmp_path / base.build.name / target.name)
            assert done.difference.is_small


@pytest.mark.parametrize("method", ["houlsby+layernorm", "adaptformer+lora", "adapter+oft"])
def test_a_combination_with_layers_of_peft_is_exported(tiny_sam, save, tmp_path, method):
    directory, _ = save(tiny_sam, method, decoder="own")
    done = export_adapter(directory, Onnx(), tmp_path / "out")
    assert done.difference.logits < 1e-3 * max(1, done.difference.largest)


@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.02), ("int8", 0.5)])
@pytest.mark.slow
def test_smaller_encoders_say_how_far_off_they_are(tiny_sam, save, tmp_path, precision, share):
    directory, _ = save(tiny_sam)
    whole = export_adapter(directory, Onnx(), tmp_path / "whole")
    small = export_adapter(directory, Onnx(precision), tmp_path / "small")
    assert small.files["encoder.onnx"] < whole.files["encoder.onnx"]
    assert whole.difference.logits < small.difference.logits < share * small.difference.largest
    assert f"{small.difference.logits:.2e}" in (tmp_path / "small" / "README.md").read_text(
        encoding="utf-8"
    )


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
