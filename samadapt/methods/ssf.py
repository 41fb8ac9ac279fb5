"""SSF: scale and shift what each layer gives (Lian et al. 2022).

"Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning", section 3.2:
``scale * y + shift`` for each channel behind every linear and norm of a block, folded into its
weights after training. The authors draw the scale around 1 and the shift around 0 with a standard
deviation of 0.02, micro-sam with 0.2, so that their models do not start as they were; here they
start at 1 and 0. TinyViT's convolution between attention and MLP is left alone, and so are those of
the decoder's upscaling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic.dataclasses import dataclass

from samadapt.methods.base import LINEARS, VECTORS, Method, register

if TYPE_CHECKING:
    from torch import nn

    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock

    _Place = tuple[Any, nn.Module, str]
    """A layer, the module on which its scale hangs, and under which name."""


@register("ssf")
@dataclass(frozen=True)
class SSF(Method):
    """A scale and a shift for each channel of every linear and norm of the chosen blocks.

    With ``decoder=own`` of those of the decoder, too.
    """

    summary: ClassVar[str] = "a scale and a shift behind every linear and norm"
    lr: ClassVar[float] = 3e-3
    takes_decoder: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = LINEARS | VECTORS

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Hang ``ssf`` on every layer, and ``ssf_norm`` on the qkv behind TinyViT's norm."""
        from samadapt.methods.attached_layer import attach
        from samadapt.methods.ssf_layer import ScaleShift, scale_input, scale_output

        for layer, host, name in self._places(sam, blocks):
            if layer.weight.requires_grad:  # no layer of the base: a bottleneck beside it
                continue
            child = ScaleShift(len(layer.weight))
            hook: Any = scale_output if layer is host else scale_input
            attach(host, name, child, hook, before=layer is not host)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return two numbers for each output channel."""
        return sum(2 * len(layer.weight) for layer, _, _ in _layers(sam, blocks))

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return two numbers for each output channel of the decoder's layers."""
        return sum(2 * len(layer.weight) for layer, _, _ in _decoder_layers(sam))

    def merge(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Scale weights and biases of the layers."""
        from samadapt.methods.attached_layer import detach
        from samadapt.methods.ssf_layer import fold

        for layer, host, name in self._places(sam, blocks):
            fold(layer, host.get_submodule(name))
            detach(host, name)

    def _places(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> list[_Place]:
        own = _decoder_layers(sam) if self.decoder == "own" else ()
        return [*_layers(sam, blocks), *own]


def _layers(sam: Sam, blocks: Sequence[AttentionBlock]) -> Iterator[_Place]:
    """Yield the places of the blocks.

    TinyViT's attention norm gives a padded cell its bias, so its scale must be at the input of
    ``qkv``, where such cells come by, too. In SAM's ViT a padded cell is zero behind the norm.
    """
    from torch import nn

    for block in blocks:
        norm = f"{block.attn}.norm"
        for inner, layer in sam.get_submodule(block.block).named_modules():
            if f"{block.block}.{inner}" == norm:
                yield layer, sam.get_submodule(block.qkv), "ssf_norm"
            elif isinstance(layer, nn.Linear | nn.LayerNorm):
                yield layer, layer, "ssf"


def _decoder_layers(sam: Sam) -> Iterator[_Place]:
    from torch import nn

    for layer in sam.mask_decoder.modules():
        if isinstance(layer, nn.Linear | nn.LayerNorm):
            yield layer, layer, "ssf"
