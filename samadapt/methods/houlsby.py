"""Bottleneck adapters in series with attention and MLP (Houlsby et al. 2019).

"Parameter-Efficient Transfer Learning for NLP", section 2: ``y + up(gelu(down(y)))`` after the
attention's projection and after the MLP, each before its residual sum. The paper starts close to
the identity (normal weights of standard deviation 0.01). Here the up-projection starts at zero, so
the start is exact. The paper also trains the layer norms: ``peft=[houlsby,layernorm]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import BOTTLENECKS, Method, register
from samadapt.methods.decoder_modules import attentions, mlps
from samadapt.system.settings import Whole

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("houlsby")
@dataclass(frozen=True)
class Houlsby(Method):
    """Two bottlenecks in series in each block.

    ``decoder=own`` also adds one after every attention and MLP of the decoder's transformer.

    Attributes:
        hidden: width of the bottlenecks.
    """

    summary: ClassVar[str] = "bottleneck adapters after the attention and after the MLP"
    lr: ClassVar[float] = 1e-3
    can_merge: ClassVar[bool] = False
    takes_decoder: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = BOTTLENECKS

    hidden: Whole = Field(default=64, description="bottleneck width", ge=1)

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Attach ``bottleneck`` to every attention and MLP."""
        from torch import nn

        from samadapt.methods.attached_layer import add_after, attach, bottleneck

        places = [(path, block.width) for block in blocks for path in (block.attn, block.mlp)]
        if self.decoder == "own":
            width = sam.build.prompt_width
            places += [(path, width) for path in (*attentions(sam), *mlps(sam))]
        for path, width in places:
            layers = bottleneck(width, self.hidden, nn.GELU())
            attach(sam.get_submodule(path), "bottleneck", layers, add_after)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return the size of two bottlenecks in each block."""
        del sam
        return sum(2 * (2 * s.width * self.hidden + self.hidden + s.width) for s in blocks)

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return the size of four bottlenecks in each layer of the decoder, and of the last one."""
        width = sam.build.prompt_width
        count = 4 * sam.build.decoder_depth + 1
        return count * (2 * width * self.hidden + self.hidden + width)
