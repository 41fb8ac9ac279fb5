"""Embeddings of points, boxes and masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.errors import PromptError
from samadapt.sam.model import Sam
from samadapt.sam.prompt_encoder import PromptEncoder
from samadapt.sam.types import Prompts


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.booleans())
def test_number_of_tokens(b: int, p: int, k: int, points: bool, boxes: bool) -> None:
    encoder = PromptEncoder(16, 4, 32, 8)
    prompts = Prompts(
        points=torch.zeros(b, p, k, 2) if points else None,
        point_labels=torch.ones(b, p, k) if points else None,
        boxes=torch.zeros(b, p, 4) if boxes else None,
    )
    sparse, dense = encoder(prompts, b)
    padding = int(points and not boxes)
    count = p if points or boxes else 1
    assert sparse.shape == (b, count, k * points + 2 * boxes + padding, 16)
    assert dense.expand(b, count, 16, 4, 4).shape == (b, count, 16, 4, 4)


def test_a_padding_point_is_the_same_wherever_it_lies(tiny_sam: Sam) -> None:
    encoder = tiny_sam.prompt_encoder
    points = torch.tensor([[[[3.0, 4.0], [50.0, 60.0]]]])
    sparse, _ = encoder(Prompts(points=points, point_labels=torch.full((1, 1, 2), -1)), 1)
    assert torch.equal(sparse[0, 0], encoder.not_a_point_embed.weight.expand(3, -1))


def test_integer_pixels_and_labels_are_welcome(tiny_sam: Sam) -> None:
    points = torch.tensor([[[[3, 4], [50, 60]]]])
    labels = torch.tensor([[[1, 0]]])
    whole, _ = tiny_sam.prompt_encoder(Prompts(points=points, point_labels=labels), 1)
    real, _ = tiny_sam.prompt_encoder(
        Prompts(points=points.float(), point_labels=labels.float()), 1
    )
    assert torch.equal(whole, real)


def test_x_and_y_are_not_swapped(tiny_sam: Sam) -> None:
    """The embedding of a cell's centre is the dense embedding at [y, x]."""
    encoder = tiny_sam.prompt_encoder
    cell = 64 / 8
    pixel = torch.tensor([5.5 * cell, 2.5 * cell]) - 0.5
    embedded = encoder._embed_places(pixel)
    torch.testing.assert_close(embedded, encoder.dense_position()[:, 2, 5])


def test_positions_stay_fp32_under_autocast(tiny_sam: Sam) -> None:
    prompts = Prompts(boxes=torch.tensor([[[3.0, 4.0, 50.0, 60.0]]]))
    exact, _ = tiny_sam.prompt_encoder(prompts, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, _ = tiny_sam.prompt_encoder(prompts, 1)
    assert torch.equal(low, exact)


def test_masks_of_another_side_are_refused(tiny_sam: Sam) -> None:
    embeddings = torch.zeros(1, 64, 8, 8)
    with pytest.raises(PromptError, match=r"masks must be \(b, p, 1, 32, 32\) logits.*64, 64"):
        tiny_sam.decode(embeddings, Prompts(masks=torch.zeros(1, 1, 1, 64, 64)), multimask=False)


def test_prompts_for_another_number_of_images_are_refused(tiny_sam: Sam) -> None:
    embeddings = torch.zeros(2, 64, 8, 8)
    with pytest.raises(PromptError, match=r"boxes must be for the b = 2 images.*\(1, 3, 4\)"):
        tiny_sam.decode(embeddings, Prompts(boxes=torch.zeros(1, 3, 4)), multimask=False)
