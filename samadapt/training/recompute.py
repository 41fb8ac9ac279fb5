"""Less memory for more time: activations of a block computed again in backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from samadapt.sam.model import Sam


@contextmanager
def recomputed(sam: Sam, first_trainable_block: int) -> Iterator[None]:
    """Keep only the input of every live attention block, and run it again in backward.

    Gradients are bit-equal, dropout included.

    Args:
        sam: the model; its blocks are as before on leaving.
        first_trainable_block: its first live unit; -1: all are.
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
