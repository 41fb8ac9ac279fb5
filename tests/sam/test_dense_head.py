"""The dense head: a U-Net on the picture that reads SAM's features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from samadapt.errors import ConfigError
from samadapt.sam.decode import class_frame, class_logits, image_embedding, segment_semantic
from samadapt.sam.dense_features import _reduce
from samadapt.sam.dense_head import HeadSettings, PictureJitter
from samadapt.sam.embed import embed, embed_features, embed_prefix
from samadapt.sam.types import Prompts

CLASSES = 2
SHAPES = [(48, 30), (20, 44)]


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]


@pytest.fixture
def dense_sam(any_sam):
    torch.manual_seed(0)
    any_sam.add_dense_head(CLASSES, HeadSettings(side=48, width=8, scales=3))
    return any_sam.eval()


def test_the_prefix_may_end_at_any_block(dense_sam, images):
    whole, _ = embed(dense_sam, images)
    with torch.no_grad():
        for first in range(-1, len(dense_sam.attention_blocks()) + 2):
            features = embed_prefix(dense_sam, images, first)
            assert features.ndim == 2
            cut = embed_features(dense_sam, features, first)
            assert torch.equal(image_embedding(dense_sam, cut), image_embedding(dense_sam, whole))
            # The order of the sums in a convolution depends on where its input lies in memory.
            torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("any_sam", ["tiny", "tiny_t"], indirect=True)
def test_levels_enter_at_the_scale_nearest_to_their_own(dense_sam):
    head = dense_sam.dense_head
    # A ViT's grids of 8 count as 32, 16, 8 and 8, since the earlier ones are enlarged; TinyViT has
    # grids of 64, 32, 16 and 16. The head has grids of 48, 24 and 12, and the first is its own.
    scales, grids = {
        "tiny": ([1, 2, 2, 2], [6, 6, 8, 8]),
        "tiny_t": ([1, 1, 2, 2], [24, 24, 12, 12]),
    }[dense_sam.build.name]
    assert [head.scale_of(level) for level in head.levels] == scales
    assert [head.grid_of(level) for level in head.levels] == grids
    assert head.levels[-1].after == len(dense_sam.attention_blocks()) + 1


def test_the_logits_lie_on_the_grid_of_the_picture_and_read_all_that_enters(dense_sam, images):
    packed = embed(dense_sam, images)[0].requires_grad_()
    logits = class_logits(dense_sam, packed, CLASSES)
    assert logits.shape == (2, 1, CLASSES, 48, 48)
    assert dense_sam.logits_side == 48
    logits.square().sum().backward()
    # Both parts that are packed change the result: the embedding and the logits of the head.
    embedding = image_embedding(dense_sam, packed.grad)
    assert bool(embedding.abs().sum(dim=(1, 2, 3)).gt(0).all())
    assert float((packed.grad != 0).float().mean()) > 0.9


def test_sams_own_logits_are_added(dense_sam, images):
    packed, _ = embed(dense_sam, images)
    with torch.no_grad():
        both = class_logits(dense_sam, packed, CLASSES)
        own = dense_sam.decode(image_embedding(dense_sam, packed), Prompts(), multimask=True)
        head = dense_sam.dense_head
        head.settings = HeadSettings(**{**vars(head.settings), "sam_logits": False})
        alone = class_logits(dense_sam, packed, CLASSES)
    enlarged = functional.interpolate(own.logits[:, 0, :CLASSES], (48, 48), mode="bilinear")
    torch.testing.assert_close(both, alone + enlarged[:, None])


def test_a_picture_of_the_size_of_the_head_is_labelled_pixel_by_pixel(dense_sam, images):
    packed, frames = embed(dense_sam, images)
    labels = segment_semantic(dense_sam, packed, frames, CLASSES)
    assert [one.shape for one in labels] == SHAPES
    if dense_sam.build.version != "1":  # SAM 2 stretches every picture to the square
        assert class_frame(dense_sam, SHAPES[0]).resized == (48, 48)
        return
    with torch.no_grad():
        logits = class_logits(dense_sam, packed, CLASSES)
    # The first picture is 48 pixels high, as is the head: nothing is resampled.
    assert class_frame(dense_sam, SHAPES[0]).resized == SHAPES[0]
    best, index = logits[0, 0, :, :48, :30].max(dim=0)
    assert np.array_equal(labels[0], torch.where(best > 0, index + 1, 0).numpy())


def test_every_part_of_the_head_gets_a_gradient(dense_sam, images):
    packed = embed_features(dense_sam, embed_prefix(dense_sam, images, 1), 1)
    class_logits(dense_sam, packed, CLASSES).square().sum().backward()
    without = [name for name, p in dense_sam.dense_head.named_parameters() if p.grad is None]
    assert not without


@pytest.mark.parametrize(("side", "text"), [(50, "multiple of 8"), (8, "from 16 to 2048")])
def test_a_side_that_does_not_fit_is_refused(side, text):
    with pytest.raises(ConfigError, match=text):
        HeadSettings(side=side)


@pytest.mark.parametrize(("side", "grid"), [(64, 32), (21, 16), (84, 32)])
def test_levels_are_reduced_as_torch_does_it_with_antialiasing(side, grid):
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = functional.interpolate(x, (grid, grid), mode="bilinear", antialias=True)
    torch.testing.assert_close(_reduce(x, side, grid), expected, rtol=1e-4, atol=1e-5)


def test_a_deep_head_starts_as_a_flat_one_and_then_sees_its_neighbours(any_sam, images):
    flat = {"side": 48, "width": 8, "scales": 3}
    torch.manual_seed(0)
    any_sam.add_dense_head(CLASSES, HeadSettings(**flat))
    pictures = [*images, *images[::-1]]
    alone, _ = embed(any_sam, pictures)
    weights = any_sam.dense_head.state_dict()
    any_sam.add_dense_head(CLASSES, HeadSettings(**flat, depth=2))
    head = any_sam.dense_head
    missing, unexpected = head.load_state_dict(weights, strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {"across"}
    torch.testing.assert_close(embed(any_sam, pictures)[0], alone, rtol=1e-5, atol=1e-6)
    for layer in head.across:
        torch.nn.init.normal_(layer.mix.weight, generator=torch.Generator().manual_seed(0))
    deep, _ = embed(any_sam, pictures)
    changed, _ = embed(any_sam, [*pictures[:3], pictures[1]])
    # The last slice changes its own stack, and nothing else.
    torch.testing.assert_close(deep[:2], changed[:2], rtol=1e-5, atol=1e-6)
    logits = [class_logits(any_sam, packed[2:3], CLASSES) for packed in (deep, changed)]
    assert float((logits[0] - logits[1]).detach().abs().max()) > 0.1


def test_a_head_of_blocks_of_pixels_gives_logits_for_every_pixel(any_sam, images):
    any_sam.add_dense_head(CLASSES, HeadSettings(side=48, width=8, scales=3, patch=2))
    head = any_sam.dense_head
    # The finest scale has 24 cells a side, and features may enter there.
    assert {head.scale_of(level) for level in head.levels} <= {0, 1, 2}
    assert max(head.grid_of(level) * 2**level.enlarged for level in head.levels) <= 24
    packed, _ = embed(any_sam, images)
    assert class_logits(any_sam, packed, CLASSES).shape == (2, 1, CLASSES, 48, 48)
    # Pixels of one block differ: the block is a cell with a channel for each of them.
    dense = class_logits(any_sam, packed, CLASSES)[0, 0, 0]
    assert float((dense[0::2, 0::2] - dense[0::2, 1::2]).detach().abs().mean()) > 1e-3
    with pytest.raises(ConfigError, match=r"a multiple of 8 for head.scales=3 and head.patch=2"):
        HeadSettings(side=52, scales=3, patch=2)


def test_jitter_changes_pictures_in_training_alone_and_a_stack_alike():
    picture = torch.linspace(-2, 2, 64 * 64).reshape(1, 1, 64, 64).repeat(4, 3, 1, 1)
    jitter = PictureJitter(1.0, depth=2)
    assert torch.equal(jitter.eval()(picture), picture)
    torch.manual_seed(0)
    changed = jitter.train()(picture)
    assert changed.shape == picture.shape
    assert float(changed.min()) >= -2
    assert float(changed.max()) <= 2
    means = changed.mean(dim=(1, 2, 3))
    # Two slices of one stack differ by noise alone, and stacks by gamma and brightness as well.
    assert abs(float(means[0] - means[1])) < 0.01
    assert abs(float(means[0] - means[2])) > 0.02
    assert not torch.equal(changed[0], changed[1])
    assert torch.equal(PictureJitter(0.0, depth=1).train()(picture), picture)
