"""(IA)^3 (Liu et al. 2022): learned vectors scale keys, values and the MLP's hidden activations.

"Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning". Unlike in
the paper q is scaled too, because SAM computes q, k and v by one linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import PeftLayers, register
from samadapt.methods.peft_method import LinearMethod, TargetName
from samadapt.system.settings import Tuple

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("ia3")
@dataclass(frozen=True)
class IA3(LinearMethod):
    """``l * (W x + b)``, or ``W (l * x) + b`` at the second linear of the MLP. l starts at ones.

    In ``targets``, ``mlp`` means the second linear only.
    """

    summary: ClassVar[str] = "vectors that scale qkv and the hidden activations of the MLP"
    lr: ClassVar[float] = 3e-2
    kind: ClassVar[str] = "IA3"

    targets: Tuple[TargetName] = Field(
        default=("qkv", "mlp"), description="linears: qkv, proj, mlp (its second)"
    )

    def encoder_names(self, sam: Sam, block: AttentionBlock) -> list[str]:
        """Return the target linears without the first one of the MLP."""
        from samadapt.methods.peft_library import linears

        hidden = linears(sam, block.mlp)[:-1]
        return [name for name in super().encoder_names(sam, block) if name not in hidden]

    def peft_layers(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> tuple[PeftLayers, ...]:
        """Return the layers, naming the linears whose input is scaled."""
        layers = super().peft_layers(sam, blocks)
        return tuple(replace(x, options=_scaled_inputs(x.names)) for x in layers)

    def count(self, sam: Sam, names: Sequence[str]) -> int:
        """Return the sum of the scaled widths: inputs of the MLPs' second linears, else outputs."""
        scaled = _scaled_inputs(names)["feedforward_modules"]
        shapes = {name: sam.get_parameter(f"{name}.weight").shape for name in names}
        # A weight is (outputs, inputs): index 1 where the input is scaled, otherwise 0.
        return sum(shape[name in scaled] for name, shape in shapes.items())


def _scaled_inputs(names: Sequence[str]) -> dict[str, list[str]]:
    """Return peft's option that names the second linears of the MLPs."""
    # ``lin2`` is the name in SAM's ViT and decoder, ``fc2`` in TinyViT.
    return {"feedforward_modules": [n for n in names if n.endswith((".mlp.lin2", ".mlp.fc2"))]}
