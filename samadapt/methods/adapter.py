"""Bottleneck adapters at attention and MLP, in the form of Medical-SAM-Adapter (Wu et al. 2023).

Its up-projection starts at zero here, so the model starts as it was; in the public code it does
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from samadapt.methods.base import Method, register, require, require_count
from samadapt.typed import knob

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samadapt.sam.model import Sam
    from samadapt.sam.types import BlockSite


@register("adapter")
@dataclass(frozen=True)
class Adapter(Method):
    """Two bottlenecks ``up(gelu(down(x)))`` a block.

    One follows the attention: ``a + bottleneck(a)``; one is parallel to the MLP:
    ``mlp(x) + scale * bottleneck(x)``.

    Attributes:
        hidden: width of the bottleneck; None is a quarter of the tokens' width.
        scale: of the bottleneck beside the MLP.
    """

    summary: ClassVar[str] = "bottleneck adapters after the attention and beside the MLP"
    can_merge: ClassVar[bool] = False

    hidden: int | None = knob(None, help="bottleneck width; null: a quarter of the tokens'", low=1)
    scale: float = knob(0.5, help="scale of the adapter beside the MLP", above=0)

    def validate(self) -> None:
        """Check hidden and scale."""
        if self.hidden is not None:
            require_count("hidden", self.hidden)
        number = isinstance(self.scale, int | float) and not isinstance(self.scale, bool)
        require(number and self.scale > 0, f"peft.scale must be above 0; got {self.scale!r}")

    def inject(self, sam: Sam, sites: Sequence[BlockSite]) -> None:
        """Add ``bottleneck`` to every attention and MLP, run by forward hooks."""
        for site in sites:
            hidden = self._hidden(site)
            attn, mlp = sam.get_submodule(site.attn), sam.get_submodule(site.mlp)
            attn.add_module("bottleneck", _bottleneck(attn, site.width, hidden))
            attn.register_forward_hook(_after)
            mlp.add_module("bottleneck", _bottleneck(mlp, site.width, hidden))
            mlp.register_forward_hook(partial(_beside, scale=self.scale))

    def formula(self, sam: Sam, sites: Sequence[BlockSite]) -> int:
        """Return two bottlenecks a site, each with two weights and two biases."""
        del sam
        hidden = [(site.width, self._hidden(site)) for site in sites]
        return sum(2 * (2 * width * h + h + width) for width, h in hidden)

    def _hidden(self, site: BlockSite) -> int:
        return self.hidden if self.hidden is not None else max(1, site.width // 4)


def _bottleneck(host: nn.Module, width: int, hidden: int) -> nn.Sequential:
    from torch import nn

    like = next(host.parameters())
    down = nn.Linear(width, hidden, device=like.device, dtype=like.dtype)
    up = nn.Linear(hidden, width, device=like.device, dtype=like.dtype)
    nn.init.zeros_(up.weight)
    nn.init.zeros_(up.bias)
    return nn.Sequential(down, nn.GELU(), up)


# The hooks find the bottleneck on the module they run on, so that a deep copy uses its own.


def _after(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    del inputs
    change: Tensor = module.bottleneck(output)
    return output + change


def _beside(module: Any, inputs: tuple[Tensor, ...], output: Tensor, scale: float) -> Tensor:
    change: Tensor = module.bottleneck(inputs[0])
    return output + scale * change
