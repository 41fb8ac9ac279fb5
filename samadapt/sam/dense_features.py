"""What a dense head reads of an image and what it makes of it, packed into one tensor an image.

The features of the frozen blocks are computed once, kept in a store and read back by a key, and
embeddings are kept, indexed and joined, always as one tensor whose first axis are the images. A
model with a dense head needs more than one map of an image: the features of several levels and the
picture itself. They are packed one after another, so that nothing around the model has to know::

    frozen part  (b, n)   input of the first trainable block | levels before it | picture
    embedding    (b, m)   embedding (c, g, g)                | maps of the head (m, d, d)

The head runs where the embedding is made, because there the slices that it sees together are
together. ``embed.py`` packs, ``decode.py`` unpacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from samadapt.system.arrays import Array

PICTURE_MEAN, PICTURE_STD = 127.5, 63.75
"""A dense head sees the values of 0 to 255 as -2 to 2."""

if TYPE_CHECKING:
    from samadapt.sam.dense_head import DenseHead
    from samadapt.sam.segmentation_model import SegmentationModel


def pack_frozen(
    sam: SegmentationModel,
    head: DenseHead,
    pixels: Float[Tensor, "b 3 s s"],
    pictures: UInt8[Tensor, "b n d d"],
    first_trainable_block: int,
) -> Float[Tensor, "b n"]:
    """Run the frozen part of the encoder and pack its output, its levels and the pictures."""
    seen: list[Tensor] = []
    features = pixels
    if first_trainable_block >= 0:
        features = sam.encode_prefix(pixels, first_trainable_block, seen)
    return _pack([features, *reduce_levels(head, seen), pictures])


def pack_embedding(
    sam: SegmentationModel,
    head: DenseHead,
    packed: Float[Tensor, "b n"],
    first_trainable_block: int,
) -> Float[Tensor, "b m"]:
    """Run the rest of the encoder and the head on what ``pack_frozen`` returned, with gradients."""
    features, *frozen, picture = _unpack(packed, _frozen_shapes(sam, head, first_trainable_block))
    seen: list[Tensor] = []
    if first_trainable_block < 0:
        embedding = sam.encode(features, seen)
    else:
        embedding = sam.encode_suffix(features, first_trainable_block, seen)
    levels = [*frozen, *reduce_levels(head, seen, len(frozen)), embedding]
    logits = head((picture - PICTURE_MEAN) / PICTURE_STD, levels)
    return _pack([embedding, logits])


def unpack_embedding(
    head: DenseHead, packed: Float[Tensor, "b m"]
) -> tuple[Float[Tensor, "b c g g"], Float[Tensor, "b m d d"]]:
    """Return the embedding and the logits of the head."""
    neck, side = head.levels[-1], head.settings.side
    shapes = [(neck.channels, neck.grid, neck.grid), (head.maps, side, side)]
    embedding, logits = _unpack(packed, shapes)
    return embedding, logits


def _frozen_shapes(
    sam: SegmentationModel, head: DenseHead, first_trainable_block: int
) -> list[tuple[int, ...]]:
    """Return the shapes, without the batch, of what ``pack_frozen`` packs."""
    side = head.settings.side
    if first_trainable_block < 0:
        return [(3, sam.image_size, sam.image_size), (head.settings.channels, side, side)]
    *before_neck, _ = head.levels
    levels = [
        (level.channels, head.grid_of(level), head.grid_of(level))
        for level in before_neck
        if level.after <= first_trainable_block
    ]
    first = sam.prefix_shape(first_trainable_block)
    return [first, *levels, (head.settings.channels, side, side)]


def reduce_levels(head: DenseHead, seen: Sequence[Tensor], start: int = 0) -> list[Tensor]:
    """Reduce levels to the grids on which the head reads them; coarser ones stay as they are.

    Args:
        head: the head.
        seen: features (b, c, r, r) of its levels, from level ``start`` on.
        start: how many levels come before these.
    """
    reduced = []
    for level, x in zip(head.levels[start:], seen, strict=False):
        grid = head.grid_of(level)
        reduced.append(_reduce(x, level.grid, grid) if grid < level.grid else x)
    return reduced


def _reduce(x: Tensor, side: int, grid: int) -> Tensor:
    """Resize (b, c, side, side) to a coarser grid, bilinear with antialiasing.

    It is written as two products with one matrix, which every device, number format and export
    can compute; torch's own form has no bf16 kernel on the CPU.
    """
    weights = torch.from_numpy(_weights(side, grid)).to(x)
    return weights @ x @ weights.t()


@lru_cache
def _weights(side: int, grid: int) -> Array:
    """Return the share (grid, side) of each cell in each coarser cell along one axis."""
    scale = side / grid
    centres = (np.arange(grid) + 0.5) * scale
    distances = np.abs(np.arange(side) + 0.5 - centres[:, None])
    shares = np.clip(1 - distances / scale, 0, None)  # a triangle of the coarser cell's width
    weights: Array = (shares / shares.sum(1, keepdims=True)).astype(np.float32)
    return weights


def _pack(parts: Sequence[Tensor]) -> Tensor:
    wide = parts[0].dtype
    return torch.cat([part.flatten(1).to(wide) for part in parts], dim=1)


def _unpack(packed: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    parts = packed.split([prod(shape) for shape in shapes], dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
