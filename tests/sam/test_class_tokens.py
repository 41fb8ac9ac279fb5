"""Class tokens: they predict classes and change nothing that is prompted."""

from __future__ import annotations

import pytest
import torch

from samadapt.export.onnx_decoder import PromptAndMaskDecoder
from samadapt.sam.decode import semantic_labels
from samadapt.sam.types import Prompts


@pytest.fixture
def pictures(any_sam):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return any_sam.encode(
            torch.randn(2, 3, any_sam.image_size, any_sam.image_size, generator=generator)
        )


@torch.no_grad()
def test_prompts_are_answered_as_without_them(any_sam, pictures):
    boxes = Prompts(boxes=torch.tensor([[[4.0, 5, 40, 50]], [[2.0, 3, 30, 20]]]))
    before = [any_sam.decode(pictures, boxes, multimask=several) for several in (False, True)]
    names = set(any_sam.state_dict())
    any_sam.add_class_tokens(7)
    after = [any_sam.decode(pictures, boxes, multimask=several) for several in (False, True)]
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first.logits, second.logits)
        assert torch.equal(first.iou, second.iou)
    added = set(any_sam.state_dict()) - names
    assert added
    assert all(name.startswith("class_tokens.") for name in added)


@torch.no_grad()
def test_classes_are_decoded_as_by_the_plain_layers(any_sam, pictures):
    any_sam.add_class_tokens(5)
    generator = torch.Generator().manual_seed(1)
    for parameter in any_sam.class_tokens.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    found = any_sam.decode_classes(pictures).logits
    side = 4 * any_sam.embedding_size
    assert found.shape == (2, 1, 5, side, side)
    assert not torch.allclose(found[:, :, 0], found[:, :, 3])  # copies of one token, moved apart
    assert not torch.allclose(found[0], found[1])  # they depend on the picture
    plain = PromptAndMaskDecoder(any_sam)
    for row in range(2):
        expected = plain.class_logits(pictures[row : row + 1])
        torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_background_is_subtracted(any_sam, pictures):
    """The logits are those of the classes minus that of one more token."""
    any_sam.add_class_tokens(3, background=True)
    tokens = any_sam.class_tokens
    generator = torch.Generator().manual_seed(1)
    for parameter in tokens.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    found = any_sam.decode_classes(pictures).logits
    # The same four tokens as four classes.
    any_sam.add_class_tokens(4)
    plain = any_sam.class_tokens
    plain.tokens.weight.copy_(torch.cat([tokens.tokens.weight, tokens.background.weight]))
    networks = [*tokens.hypernetworks, tokens.background_hypernetwork]
    for mine, its in zip(plain.hypernetworks, networks, strict=True):
        mine.load_state_dict(its.state_dict())
    four = any_sam.decode_classes(pictures).logits
    torch.testing.assert_close(found, four[:, :, :3] - four[:, :, 3:], rtol=1e-4, atol=1e-4)
    labels = semantic_labels(found, 3)
    assert torch.equal(labels, (four[:, 0].argmax(1) + 1).remainder(4).to(torch.uint8))
    assert labels.unique().numel() > 1


@torch.no_grad()
def test_without_them_the_multimask_tokens_predict_the_classes(any_sam, pictures):
    expected = any_sam.decode(pictures, Prompts(), multimask=True).logits
    assert torch.equal(any_sam.decode_classes(pictures).logits, expected)
    with pytest.raises(ValueError, match="at least 1"):
        any_sam.add_class_tokens(0)
