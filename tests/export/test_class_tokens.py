"""What other programs get of an adapter whose classes have tokens of their own."""

from __future__ import annotations

import pytest
import torch

from samadapt.adapters.record import read_record
from samadapt.errors import AdapterError
from samadapt.export import export_adapter
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
    model = OnnxModel(tmp_path / "out", 4 * sam.embedding_size)
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


def test_peft_refuses_with_the_reason(save, tiny_sam, tmp_path):
    directory, _ = save(tiny_sam, "lora", classes=5)
    with pytest.raises(AdapterError, match=r"5 classes have tokens of their own.*sam"):
        export_adapter(directory, Peft(), tmp_path / "out")
    assert "PeftModel" not in (directory / "README.md").read_text(encoding="utf-8")
    assert read_record(directory).class_tokens == 5
