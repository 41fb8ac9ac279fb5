"""Batching over images and prompts, and the number of mask tokens."""

from __future__ import annotations

import pytest
import torch

from samadapt.sam import mask_decoder_fast
from samadapt.sam.model import Sam
from samadapt.sam.types import Prompts


def random_boxes(b: int, p: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(b, p, 2, 2, generator=generator) * 64).sort(dim=2).values.flatten(2)


@pytest.mark.parametrize("with_masks", [False, True])
def test_a_batch_equals_one_by_one(any_sam: Sam, with_masks: bool) -> None:
    sam = any_sam.double()
    boxes = random_boxes(2, 3).double()
    side = 4 * sam.embedding_size
    masks = torch.randn(2, 3, 1, side, side, dtype=torch.float64) if with_masks else None
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        together = sam(images, Prompts(boxes=boxes, masks=masks), multimask=True)
        for i in range(2):
            embedding = sam.encode(images[i : i + 1])
            for j in range(3):
                mask = None if masks is None else masks[i : i + 1, j : j + 1]
                one = Prompts(boxes=boxes[i : i + 1, j : j + 1], masks=mask)
                alone = sam.decode(embedding, one, multimask=True)
                torch.testing.assert_close(together.logits[i, j], alone.logits[0, 0])
                torch.testing.assert_close(together.iou[i, j], alone.iou[0, 0])


@pytest.mark.parametrize("held", [1, 2**14, 2**15, 2**16, 2**17, 2**24])
@pytest.mark.parametrize("boxes", [False, True])
def test_in_bf16_parts_of_two_types_belong_together(
    any_sam: Sam, monkeypatch: pytest.MonkeyPatch, held: int, boxes: bool
) -> None:
    prompts = Prompts(boxes=random_boxes(4, 3)) if boxes else Prompts()
    embeddings = any_sam.encode(torch.randn(4, 3, 64, 64)).detach()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = any_sam.decode(embeddings, prompts, multimask=True)
        monkeypatch.setattr(mask_decoder_fast, "CACHE_BYTES", held)
        parts = any_sam.decode(embeddings, prompts, multimask=True)
    for found, wanted in ((parts.logits, whole.logits), (parts.iou, whole.iou)):
        assert (found - wanted).norm() <= 0.02 * wanted.norm()  # an object's apart: about 1


def test_shapes(any_sam: Sam) -> None:
    g = any_sam.embedding_size
    with torch.no_grad():
        one = any_sam.encode(torch.zeros(1, 3, any_sam.image_size, any_sam.image_size))
    embeddings = torch.randn(2, *one.shape[1:])
    for multimask, m in ((False, 1), (True, 3)):
        for prompts, p in ((Prompts(), 1), (Prompts(boxes=random_boxes(2, 5)), 5)):
            output = any_sam.decode(embeddings, prompts, multimask=multimask)
            assert output.logits.shape == (2, p, m, 4 * g, 4 * g)
            assert output.iou.shape == (2, p, m)


def test_no_objects_give_empty_masks(tiny_sam: Sam) -> None:
    output = tiny_sam.decode(
        torch.randn(2, 64, 8, 8), Prompts(boxes=torch.zeros(2, 0, 4)), multimask=True
    )
    assert output.logits.shape == (2, 0, 3, 32, 32)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_resizing_copies_the_pretrained_masks_in_turn(tiny_sam: Sam, count: int) -> None:
    images, prompts = torch.randn(1, 3, 64, 64), Prompts(boxes=random_boxes(1, 2))
    decoder = tiny_sam.mask_decoder
    tokens, head = decoder.mask_tokens.weight, decoder.iou_prediction_head.layers[-1].bias
    networks = list(decoder.output_hypernetworks_mlps)
    tokens.requires_grad_(False)
    tiny_sam.resize_mask_tokens(count)
    assert tiny_sam.build.num_multimask == decoder.num_multimask == count
    assert not decoder.mask_tokens.weight.requires_grad
    assert torch.equal(decoder.mask_tokens.weight[0], tokens[0])
    for i in range(count):
        old = 1 + i % 3
        assert torch.equal(decoder.mask_tokens.weight[1 + i], tokens[old])
        assert decoder.iou_prediction_head.layers[-1].bias[1 + i] == head[old]
        for new, was in zip(
            decoder.output_hypernetworks_mlps[1 + i].parameters(),
            networks[old].parameters(),
            strict=True,
        ):
            assert torch.equal(new, was)
    parameters = list(decoder.output_hypernetworks_mlps.parameters())
    assert len({id(p) for p in parameters}) == 6 * (count + 1)  # nothing is shared
    output = tiny_sam(images, prompts, multimask=True)
    assert output.logits.shape[2] == output.iou.shape[2] == count


def test_resizing_to_the_present_number_changes_nothing(tiny_sam: Sam) -> None:
    embeddings, prompts = torch.randn(1, 64, 8, 8), Prompts(boxes=random_boxes(1, 2))
    before = tiny_sam.decode(embeddings, prompts, multimask=True)
    tiny_sam.resize_mask_tokens(3)
    after = tiny_sam.decode(embeddings, prompts, multimask=True)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.iou, after.iou)


def test_no_mask_outputs_are_refused(tiny_sam: Sam) -> None:
    with pytest.raises(ValueError, match="at least 1; got 0"):
        tiny_sam.resize_mask_tokens(0)
