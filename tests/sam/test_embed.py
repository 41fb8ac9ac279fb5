"""One image to embedding path, whole or in two parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samadapt.sam.embed import embed, embed_features, frame_of, to_pixels
from samadapt.sam.predictor import SamPredictor

SHAPES = [(40, 30), (64, 64), (25, 90)]


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]


def test_images_of_any_size_are_embedded_together(any_sam, images):
    embeddings, frames = embed(any_sam, images)
    assert [frame.original for frame in frames] == SHAPES
    assert frames == [frame_of(any_sam, image) for image in images]
    assert not embeddings.requires_grad
    for index, image in enumerate(images):
        alone, _ = embed(any_sam, [image])
        torch.testing.assert_close(alone[0], embeddings[index], atol=1e-4, rtol=1e-4)


def test_the_prefix_may_end_at_any_block(any_sam, images):
    whole, _ = embed(any_sam, images)
    pixels = to_pixels(any_sam, images)
    with torch.no_grad():
        assert torch.equal(embed_features(any_sam, pixels, -1), whole)
        for first in range(len(any_sam.attention_blocks()) + 2):
            features = any_sam.encode_prefix(pixels, first)
            assert torch.equal(embed_features(any_sam, features, first), whole)


def test_the_predictor_of_segment_anything_embeds_likewise(any_sam, images):
    predictor = SamPredictor(any_sam)
    for image in images:
        predictor.set_image(image)
        assert torch.equal(predictor.get_image_embedding(), embed(any_sam, [image])[0])
