"""The U-Net sees pictures at their own resolution and takes SAM's place in embed and decode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samadapt.baselines.build import UNetBuild
from samadapt.baselines.unet import UNet
from samadapt.errors import PromptError
from samadapt.sam.decode import class_logits, segment_semantic
from samadapt.sam.embed import embed, frame_of, to_pixels
from samadapt.sam.types import Prompts


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    mean, std = (60.0, 80.0, 100.0), (20.0, 30.0, 40.0)
    return UNet(UNetBuild(32, channels=3, classes=2, filters=4, mean=mean, std=std)).eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_small_pictures_keep_their_pixels(unet: UNet) -> None:
    image = picture(20, 28)
    assert frame_of(unet, image).resized == (20, 28)
    pixels = to_pixels(unet, [image])
    expected = (image.transpose(2, 0, 1) - np.array([60, 80, 100])[:, None, None]) / np.array(
        [20, 30, 40]
    )[:, None, None]
    np.testing.assert_allclose(pixels[0, :, :20, :28], expected, rtol=1e-5, atol=1e-5)
    assert not pixels[0, :, 20:].any()
    assert not pixels[0, :, :, 28:].any()
    assert frame_of(unet, picture(64, 48)).resized == (32, 24)


def test_predictions_return_to_the_grid_of_the_picture(unet: UNet) -> None:
    images = [picture(20, 28), picture(64, 48, 1)]
    embeddings, frames = embed(unet, images)
    logits = class_logits(unet, embeddings, 2)
    assert logits.shape == (2, 1, 2, 32, 32)
    # Nothing is resampled where the picture kept its pixels.
    assert torch.equal(unet.postprocess(logits[:1], frames[0]), logits[:1, ..., :20, :28])
    labels = segment_semantic(unet, embeddings, frames, 2)
    assert [found.shape for found in labels] == [(20, 28), (64, 48)]
    maps = segment_semantic(unet, embeddings, frames, 2, overlapping=True)
    assert [found.shape for found in maps] == [(2, 20, 28), (2, 64, 48)]


def test_the_output_depends_on_the_picture(unet: UNet) -> None:
    embeddings, _ = embed(unet, [picture(32, 32), picture(32, 32, 1)])
    with torch.no_grad():
        one, other = class_logits(unet, embeddings, 2)
    assert float((one - other).abs().mean()) > 0.1 * float(one.std())


def test_it_takes_no_prompts(unet: UNet) -> None:
    boxes = Prompts(boxes=torch.zeros(1, 1, 4))
    with pytest.raises(PromptError, match="takes none"):
        unet.decode(torch.zeros(1, 3, 32, 32), boxes, multimask=True)
