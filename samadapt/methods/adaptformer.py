"""AdaptFormer: a bottleneck parallel to the MLP (Chen et al. 2022).

"AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition", section 3.2, equations
2 and 3: ``mlp(norm(x)) + scale * up(relu(down(norm(x)))) + x``. This file follows the paper. The
authors' code feeds the bottleneck x without the norm. micro-sam's version adds the input of the MLP
once more, so its model does not start at the base. Here only the bottleneck is added, and it starts
at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import (
    BOTTLENECKS,
    Method,
    register,
)
from samadapt.methods.decoder_modules import mlps
from samadapt.system.settings import Whole

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("adaptformer")
@dataclass(frozen=True)
class AdaptFormer(Method):
    """One bottleneck beside each MLP; with ``decoder=own`` also in the layers of the decoder.

    Attributes:
        hidden: width of the bottleneck.
        scale: factor of its output.
    """

    summary: ClassVar[str] = "a bottleneck adapter parallel to the MLP"
    lr: ClassVar[float] = 1e-2
    can_merge: ClassVar[bool] = False
    takes_decoder: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = BOTTLENECKS

    hidden: Whole = Field(default=64, description="bottleneck width", ge=1)
    scale: float = Field(default=0.1, description="scale of what the bottleneck adds", gt=0)

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Attach ``bottleneck`` to every MLP."""
        from torch import nn

        from samadapt.methods.attached_layer import add_beside, attach, bottleneck

        places = [(block.mlp, block.width) for block in blocks]
        if self.decoder == "own":
            places += [(path, sam.build.prompt_width) for path in mlps(sam)]
        for path, width in places:
            layers = bottleneck(width, self.hidden, nn.ReLU())
            # ``add_beside`` reads norm(x), as in equation 2 of the paper.
            hook = partial(add_beside, scale=self.scale)
            attach(sam.get_submodule(path), "bottleneck", layers, hook)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return the size of one bottleneck in each block."""
        del sam
        return sum(2 * s.width * self.hidden + self.hidden + s.width for s in blocks)

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return the size of one bottleneck in each layer of the decoder."""
        width = sam.build.prompt_width
        return sam.build.decoder_depth * (2 * width * self.hidden + self.hidden + width)
