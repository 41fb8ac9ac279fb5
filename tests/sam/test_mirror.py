"""Mirrored images, their prompts, and logits turned back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from samadapt.sam.decode import object_logits
from samadapt.sam.embed import embed, frame_of
from samadapt.sam.geometry import make_frame
from samadapt.sam.mean_prediction import DecodedObjects, object_means
from samadapt.sam.mirror import mirrored, mirrored_prompts, turned_back
from samadapt.sam.types import ImagePrompts


@pytest.mark.parametrize("mirror", [(), (1,), (0,), (0, 1)])
def test_prompts_move_with_the_pixels(mirror):
    image = np.zeros((10, 14, 3), np.uint8)
    image[2:5, 1:9] = 200
    prompts = ImagePrompts(
        np.ones(1, int),
        boxes=np.array([[1, 2, 9, 5]], np.float32),
        points=np.array([[[1.5, 2.5]]], np.float32),
        point_labels=np.ones((1, 1), int),
        masks=image[None, ..., 0] > 0,
    )
    copy = mirrored(image, mirror)
    moved = mirrored_prompts(prompts, mirror, make_frame((10, 14), 64))
    x0, y0, x1, y1 = moved.boxes[0].astype(int)
    assert copy[y0:y1, x0:x1].min() == 200
    assert (x1 - x0, y1 - y0) == (8, 3)
    x, y = np.floor(moved.points[0, 0]).astype(int)
    assert copy[y, x, 0] == 200
    assert np.array_equal(moved.masks[0], copy[..., 0] > 0)
    assert np.array_equal(prompts.boxes, [[1, 2, 9, 5]]), "the prompts that were given have changed"
    back = turned_back(torch.from_numpy(copy.copy()).permute(2, 0, 1), mirror)
    assert np.array_equal(back.permute(1, 2, 0), image)


def masked(shape, seed=0):
    """One object with a mask prompt."""
    logits = np.random.default_rng(seed).normal(0, 4, (1, 1, *shape)).astype(np.float32)
    return ImagePrompts(np.ones(1, int), mask_logits=logits)


def test_a_mask_prompt_is_reversed_where_the_picture_lies():
    # (24, 48) in a square of 64 covers 32 rows of 64, so 8 of 16 cells, and every column.
    frame, prompts = make_frame((24, 48), 64), masked((16, 16))
    given = prompts.mask_logits
    across = mirrored_prompts(prompts, (1,), frame).mask_logits
    assert np.array_equal(across, given[..., ::-1])
    down = mirrored_prompts(prompts, (0,), frame).mask_logits
    assert np.array_equal(down[..., :8, :], given[..., 7::-1, :])
    assert np.array_equal(down[..., 8:, :], given[..., 8:, :]), "the padding has moved"
    both = mirrored_prompts(prompts, (0, 1), frame)
    again = mirrored_prompts(both, (0, 1), frame).mask_logits
    assert np.array_equal(again, given)
    assert np.array_equal(prompts.mask_logits, given), "the prompts that were given have changed"


def test_a_mask_prompt_moves_by_parts_of_a_cell():
    # 21 of 32 rows become 42 of 64 pixels: ten and a half cells of 4 pixels.
    frame = make_frame((21, 32), 64)
    centres = np.arange(16, dtype=np.float32)[:, None] + 0.5
    ramp = ImagePrompts(np.ones(1, int), mask_logits=np.tile(centres, (1, 1, 1, 16)))
    moved = mirrored_prompts(ramp, (0,), frame).mask_logits[0, 0, :, 0]
    # The mirror image of the place x is 10.5 - x; the last cell has half a cell beside it.
    np.testing.assert_allclose(moved[:10], 10.5 - centres[:10, 0], atol=1e-6)
    np.testing.assert_array_equal(moved[11:], centres[11:, 0])


@torch.no_grad()
@pytest.mark.parametrize("mirror", [(1,), (0,)])
def test_the_mean_over_mirrored_copies_is_that_of_the_mirrored_image(any_sam, mirror):
    """An image and its mirror image are averaged over the same two passes."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    prompts = replace(
        masked((4 * any_sam.embedding_size,) * 2),
        points=np.array([[[5.5, 20.5], [9.0, 3.0]]], np.float32),
        point_labels=np.array([[1, 0]]),
    )
    frame = frame_of(any_sam, image)

    def mean_of(image, prompts):
        passes = []
        for axes in ((), mirror):
            embeddings, frames = embed(any_sam, [mirrored(image, axes)])
            seen = mirrored_prompts(prompts, axes, frame)
            ((logits, _),) = object_logits(any_sam, embeddings, frames, [seen])
            passes.append(DecodedObjects(any_sam, logits, frames[0], axes))
        ((_, mean),) = object_means(passes, np.arange(1))
        return mean.logits, any_sam.postprocess(passes[0].logits[None], frame)[0, :, 0]

    mean, alone = mean_of(image, prompts)
    other, other_alone = mean_of(mirrored(image, mirror), mirrored_prompts(prompts, mirror, frame))
    torch.testing.assert_close(turned_back(other, mirror), mean, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(turned_back(other_alone, mirror), alone, atol=1e-2), "one pass does"
