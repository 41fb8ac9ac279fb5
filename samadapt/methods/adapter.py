"""Bottleneck adapters at attention and MLP, in the form of Medical-SAM-Adapter (Wu et al. 2023).

"Medical SAM Adapter: Adapting Segment Anything Model for Medical Image Segmentation", section 3.2,
with its space-depth attention for stacks of slices (``depth``). Here the up-projections start at
zero, so that the adapted model first equals the base. In the public code they do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import (
    BOTTLENECKS,
    Method,
    register,
)
from samadapt.methods.decoder_modules import attentions, mlps
from samadapt.system.settings import Whole

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("adapter")
@dataclass(frozen=True)
class Adapter(Method):
    """Two bottlenecks ``up(gelu(down(x)))`` in each block, and a third one across slices.

    One follows the attention: ``a + bottleneck(a)``. One is parallel to the MLP:
    ``mlp(x) + scale * bottleneck(x)``. ``decoder=own`` also adds them to every attention and MLP of
    the decoder's transformer.

    With ``depth`` n above 1 a batch consists of whole stacks of n neighbouring slices: images
    ``i * n`` to ``i * n + n - 1`` are stack i. Each token then also attends to the tokens at its
    place in the other slices of its stack, with the same qkv and proj, and a bottleneck of the
    result is added to the output of the attention. These scores contain no position, because the
    base knows none along the depth. (The public code folds the stack into a grid and uses the
    positions of the image.) Only SAM's ViT supports this, since TinyViT's attention sees strips of
    the image. A volume is cut into stacks at fixed places (``data/stacks.py``), equal in training,
    evaluation and prediction. Pictures have no neighbours and are refused.

    Attributes:
        hidden: width of the bottlenecks; None means a quarter of the token width at their place.
        scale: factor of the bottleneck beside the MLP.
        depth: number of neighbouring slices that attend to each other; 1: each image by itself.
    """

    summary: ClassVar[str] = "bottleneck adapters after the attention and beside the MLP"
    lr: ClassVar[float] = 1e-3
    can_merge: ClassVar[bool] = False
    takes_decoder: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = BOTTLENECKS

    hidden: Whole | None = Field(
        default=None, description="bottleneck width; null: a quarter of the tokens'", ge=1
    )
    scale: float = Field(default=0.5, description="scale of the adapter beside the MLP", gt=0)
    depth: Whole = Field(
        default=1, description="neighbouring slices that attend to each other (ViT only)", ge=1
    )

    @property
    def encoders(self) -> tuple[str, ...]:
        """All encoders; with ``depth`` above 1 only SAM's ViT."""
        return super().encoders if self.depth == 1 else ("vit",)

    @property
    def stack(self) -> int:
        """Number of slices in a stack."""
        return self.depth

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Attach ``bottleneck`` to every attention and MLP, and ``depth`` to the attentions."""
        from torch import nn

        from samadapt.methods.adapter_layer import add_across
        from samadapt.methods.attached_layer import add_after, add_beside, attach, bottleneck

        beside = partial(add_beside, scale=self.scale)
        # (path of the host, width of its tokens, hook)
        places: list[tuple[str, int, Any]] = []
        for block in blocks:
            places += [(block.attn, block.width, add_after), (block.mlp, block.width, beside)]
        if self.decoder == "own":
            width = sam.build.prompt_width
            places += [(path, width, add_after) for path in attentions(sam)]
            places += [(path, width, beside) for path in mlps(sam)]
        for path, width, hook in places:
            layers = bottleneck(width, self._hidden(width), nn.GELU())
            attach(sam.get_submodule(path), "bottleneck", layers, hook)
        for block in blocks if self.depth > 1 else ():
            layers = bottleneck(block.width, self._hidden(block.width), nn.GELU())
            across = partial(add_across, depth=self.depth)
            attach(sam.get_submodule(block.attn), "depth", layers, across)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return the size of two or three bottlenecks in each block."""
        del sam
        hidden = [(block.width, self._hidden(block.width)) for block in blocks]
        count = 2 if self.depth == 1 else 3
        return sum(count * (2 * width * h + h + width) for width, h in hidden)

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return the size of four bottlenecks in each layer of the decoder, and of the last one."""
        width = sam.build.prompt_width
        hidden = self._hidden(width)
        return (4 * sam.build.decoder_depth + 1) * (2 * width * hidden + hidden + width)

    def _hidden(self, width: int) -> int:
        return self.hidden if self.hidden is not None else max(1, width // 4)
