"""What other programs get of an adapter whose classes have tokens of their own."""

from __future__ import annotations

import json

import pytest
import torch

from samadapt.adapters.base_model import open_adapter
from samadapt.adapters.record import read_record
from samadapt.errors import AdapterError
from samadapt.export import export_adapter
from samadapt.export.hf import HuggingFace
from samadapt.export.onnx import CLASS_OUTPUT, DECODER, Onnx, OnnxModel
from samadapt.export.peft import Peft
from samadapt.export.sam import SamFile
from samadapt.sam.types import Prompts
from samadapt.sam.weights.loading import load_sam


@pytest.mark.parametrize("base", ["tiny_sam", "tiny_t_sam"])
def test_onnx_holds_the_classes_as_a_further_output(base, save, tmp_path, request):
    directory, sam = save(request.getfixturevalue(base), "lora", classes=5)
    done = export_adapter(directory, Onnx(), tmp_path / "out")
    assert CLASS_OUTPUT in " ".join(done.notes)
    model = OnnxModel(tmp_path / "out", 4 * sam.embedding_size, sam.prompt_encoder.padding_points)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = sam.decode_classes(sam.encode(image)).logits
        found = model.decode_classes(model.encode(image)).logits
    assert found.shape == (1, 1, 5, 4 * sam.embedding_size, 4 * sam.embedding_size)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)
    assert DECODER in done.files


def test_sam_gets_what_answers_to_prompts_and_says_what_is_left_out(save, tiny_sam, tmp_path):
    directory, sam = save(tiny_sam, "lora", classes=5)
    done = export_adapter(directory, SamFile(), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for text in (" ".join(done.notes), card):
        assert "left out: the classes class 0, class 1, class 2, class 3, class 4" in text
    plain = load_sam("tiny", tmp_path / "out" / "model.pth", sam.image_size)
    assert not plain.has_class_tokens
    boxes = Prompts(boxes=torch.tensor([[[4.0, 5, 40, 50]]]))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = (m.decode(m.encode(image), boxes, multimask=True) for m in (plain, sam))
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_transformers_gets_what_answers_to_prompts(save, tiny_sam, tmp_path):
    from transformers import SamModel

    directory, sam = save(tiny_sam, "lora", classes=5)
    done = export_adapter(directory, HuggingFace(), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for text in (" ".join(done.notes), card):
        assert "left out: the classes class 0, class 1, class 2, class 3, class 4" in text
    model = SamModel.from_pretrained(tmp_path / "out").eval()
    assert not any("class" in name for name in model.state_dict())
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    boxes = torch.tensor([[[4.0, 5, 40, 50], [20.0, 3, 60, 30]]])
    for multimask in (False, True):
        with torch.no_grad():
            theirs = model(image, input_boxes=boxes, multimask_output=multimask)
            ours = sam.decode(sam.encode(image), Prompts(boxes=boxes), multimask=multimask)
        torch.testing.assert_close(theirs.pred_masks, ours.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(theirs.iou_scores, ours.iou, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours.logits[:, 0], ours.logits[:, 1])


@pytest.mark.slow
def test_the_background_is_subtracted_in_the_further_output(save, tiny_sam, tmp_path):
    directory, sam = save(tiny_sam, "lora", classes=5, background=True)
    done = export_adapter(directory, Onnx(), tmp_path / "out")
    assert "mask token 0" not in " ".join(done.notes), "the logits are those of the argmax"
    model = OnnxModel(tmp_path / "out", 4 * sam.embedding_size, sam.prompt_encoder.padding_points)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = sam.decode_classes(sam.encode(image)).logits
        found = model.decode_classes(model.encode(image)).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.slow
def test_five_classes_of_an_earlier_version_are_exported_as_mask_tokens(save, tiny_sam, tmp_path):
    """Before class tokens, more than three classes had a mask token each."""
    directory, sam = save(tiny_sam, "lora", masks=5)
    file = directory / "samadapt.json"
    assert "class_tokens" not in json.loads(file.read_text(encoding="utf-8"))
    adapted = open_adapter(directory)
    assert not adapted.sam.has_class_tokens
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = sam.decode(sam.encode(image), Prompts(), multimask=True).logits
        assert torch.equal(adapted.sam.decode_classes(adapted.sam.encode(image)).logits, expected)
    done = export_adapter(directory, SamFile(), tmp_path / "sam")
    assert "5 mask outputs, one per class" in " ".join(done.notes)
    assert "left out" not in " ".join(done.notes)
    export_adapter(directory, Onnx(), tmp_path / "onnx")
    model = OnnxModel(tmp_path / "onnx", 4 * sam.embedding_size, sam.prompt_encoder.padding_points)
    boxes = Prompts(boxes=torch.tensor([[[4.0, 5, 40, 50]]]))
    with torch.no_grad():
        found, expected = (m.decode(m.encode(image), boxes, multimask=True) for m in (model, sam))
    assert found.logits.shape[2] == 5
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=2e-3)
    with pytest.raises(AdapterError, match="5 mask outputs, one per class"):
        export_adapter(directory, Peft(), tmp_path / "peft")


def test_peft_refuses_with_the_reason(save, tiny_sam, tmp_path):
    directory, _ = save(tiny_sam, "lora", classes=5)
    with pytest.raises(AdapterError, match=r"5 classes have tokens of their own.*sam"):
        export_adapter(directory, Peft(), tmp_path / "out")
    assert "PeftModel" not in (directory / "README.md").read_text(encoding="utf-8")
    assert read_record(directory).class_tokens == 5
