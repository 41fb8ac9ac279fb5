"""SSF: scale and shift the output of each layer (Lian et al. 2022).

"Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning", section 3.2:
``scale * y + shift`` for each channel after every linear and norm of a block. After training it is
folded into the layer's weights. The authors draw the scale around 1 and the shift around 0 with a
standard deviation of 0.02, and micro-sam with 0.2, so their models do not start at the base. Here
they start at exactly 1 and 0. TinyViT's convolution between attention and MLP stays as it is, and
so do the convolutions of the decoder's upscaling.
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
    """A layer, the module to which its scale is attached, and the name there."""


@register("ssf")
@dataclass(frozen=True)
class SSF(Method):
    """A scale and a shift for each channel of every linear and norm of the chosen blocks.

    ``decoder=own`` adds them to the linears and norms of the decoder as well.
    """

    summary: ClassVar[str] = "a scale and a shift after every linear and norm"
    lr: ClassVar[float] = 3e-3
    takes_decoder: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = LINEARS | VECTORS

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Attach ``ssf`` to every layer; for TinyViT's attention norm ``ssf_norm`` to its qkv."""
        from samadapt.methods.attached_layer import attach
        from samadapt.methods.ssf_layer import ScaleShift, scale_input, scale_output

        for layer, host, name in self._places(sam, blocks):
            if layer.weight.requires_grad:  # not of the base: it belongs to another method
                continue
            child = ScaleShift(len(layer.weight))
            hook: Any = scale_output if layer is host else scale_input
            attach(host, name, child, hook, before=layer is not host)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return two numbers for each output channel of the layers."""
        return sum(2 * len(layer.weight) for layer, _, _ in _layers(sam, blocks))

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return two numbers for each output channel of the decoder's layers."""
        return sum(2 * len(layer.weight) for layer, _, _ in _decoder_layers(sam))

    def merge(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Fold every scale and shift into the weights and biases of its layer."""
        from samadapt.methods.attached_layer import detach
        from samadapt.methods.ssf_layer import fold

        for layer, host, name in self._places(sam, blocks):
            fold(layer, host.get_submodule(name))
            detach(host, name)

    def _places(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> list[_Place]:
        own = _decoder_layers(sam) if self.decoder == "own" else ()
        return [*_layers(sam, blocks), *own]


def _layers(sam: Sam, blocks: Sequence[AttentionBlock]) -> Iterator[_Place]:
    """Yield the places in the blocks.

    Both encoders pad windows with zeros. SAM's ViT pads after the norm, so a padded token must stay
    zero. TinyViT normalises padded tokens too, which gives them the bias of the norm. Its scale is
    therefore applied at the input of ``qkv``, which padded tokens pass as well.
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
