"""Save memory at the cost of time: compute a block's activations again in backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from samadapt.sam.segmentation_model import SegmentationModel


@contextmanager
def recomputed(sam: SegmentationModel, first_trainable_block: int) -> Iterator[None]:
    """Keep only the input of every trainable attention block, and run it again in backward.

    The gradients are bit-equal, also with dropout. The blocks are restored on leaving.

    Args:
        sam: the model.
        first_trainable_block: see ``Sam.encode_suffix``; -1: all blocks.
    """
    blocks = [
        sam.get_submodule(block.block)
        for block in sam.attention_blocks()
        if block.index >= first_trainable_block
    ]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
