"""The network that makes a prompt for each class of a frozen model."""

from __future__ import annotations

import pytest
import torch

from samadapt.sam.types import Prompts


@pytest.mark.parametrize("any_sam", ["tiny", "tiny_t", "tiny_h"], indirect=True)
def test_at_first_each_class_is_what_the_model_finds_without_a_prompt(any_sam):
    side = any_sam.image_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embeddings = any_sam.encode(images.to(any_sam.dtype))
        expected = any_sam.decode(embeddings, Prompts(), multimask=False).logits
        boxes = Prompts(boxes=torch.tensor([[[4.0, 6.0, 30.0, 40.0]]]).expand(2, -1, -1))
        prompted = any_sam.decode(embeddings, boxes, multimask=True).logits
        any_sam.add_prompt_generator(3)
        assert any_sam.has_class_tokens
        found = any_sam.decode_classes(embeddings).logits
        again = any_sam.decode(embeddings, boxes, multimask=True).logits
    assert found.shape == (2, 1, 3, *expected.shape[-2:])
    for k in range(3):
        torch.testing.assert_close(found[:, :, k], expected[:, :, 0], atol=1e-4, rtol=1e-4)
    assert torch.equal(again, prompted)  # prompts of a user are answered as before


def test_gradients_reach_the_generator_alone(tiny_sam):
    tiny_sam.requires_grad_(False)
    tiny_sam.add_prompt_generator(2)
    side = tiny_sam.image_size
    embeddings = tiny_sam.encode(torch.randn(1, 3, side, side))
    logits = tiny_sam.decode_classes(embeddings).logits
    logits[:, :, 1].square().mean().backward()
    gradient = tiny_sam.prompt_generator.prompts.weight.grad
    width = tiny_sam.build.prompt_width
    assert gradient[width:].abs().max() > 0
    assert not gradient[:width].any()  # the prompt of the other class
    trained = [name for name, p in tiny_sam.named_parameters() if p.grad is not None]
    assert all(name.startswith("prompt_generator.") for name in trained)


def test_a_generator_has_a_class(tiny_sam):
    with pytest.raises(ValueError, match="at least 1; got 0"):
        tiny_sam.add_prompt_generator(0)
