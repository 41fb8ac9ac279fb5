"""Base classes of the methods whose layers come from the peft library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import Method, PeftLayers, require
from samadapt.system.settings import Tuple

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock

TargetName = Literal["qkv", "proj", "mlp"]


@dataclass(frozen=True)
class PeftMethod(Method):
    """One kind of peft layer in the chosen blocks; subclasses say where and how large."""

    plain_peft: ClassVar[bool] = True
    takes_decoder: ClassVar[bool] = True
    kind: ClassVar[str] = ""
    """peft's name of the kind, as ``peft_type`` in ``adapter_config.json``."""
    reads_base: ClassVar[bool] = False
    """Whether the layers compute with the base weight itself; see ``PeftLayers.reads_base``."""

    def arguments(self) -> Mapping[str, Any]:
        """Return the arguments of peft's configuration except the targets."""
        return {}

    def encoder_names(self, sam: Sam, block: AttentionBlock) -> list[str]:
        """Return the paths of the modules that peft replaces in a block."""
        raise NotImplementedError

    def decoder_names(self, sam: Sam) -> list[str]:
        """Return the paths of the modules that ``decoder=own`` replaces in the decoder."""
        raise NotImplementedError

    def count(self, sam: Sam, names: Sequence[str]) -> int:
        """Return how many parameters are trained at these modules."""
        raise NotImplementedError

    def peft_layers(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> tuple[PeftLayers, ...]:
        """Return the layers of the chosen blocks and, with ``decoder=own``, of the decoder."""
        names = [name for block in blocks for name in self.encoder_names(sam, block)]
        if self.decoder == "own":
            names += self.decoder_names(sam)
        if not names:
            return ()
        return (PeftLayers(self.kind, tuple(names), self.arguments(), reads_base=self.reads_base),)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return how many parameters the layers of the chosen blocks have."""
        return self.count(sam, [n for block in blocks for n in self.encoder_names(sam, block)])

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return how many parameters the layers of the decoder have."""
        return self.count(sam, self.decoder_names(sam))


@dataclass(frozen=True)
class LinearMethod(PeftMethod):
    """A kind of peft layer that replaces linear layers.

    Attributes:
        targets: which linears of a block: ``qkv`` (q, k and v in one), the attention's ``proj``,
            and ``mlp`` for both linears of the MLP. ``decoder=own`` adds all linears of the
            decoder.
    """

    targets: Tuple[TargetName] = Field(
        default=("qkv",), description="linears of a block: qkv, proj, mlp"
    )

    def __post_init__(self) -> None:
        """Check the targets, then what all methods have."""
        require(
            0 < len(self.targets) == len(set(self.targets)),
            f"peft.targets must name one or more of qkv, proj and mlp, each once; "
            f"got {self.targets!r}",
        )
        super().__post_init__()

    def size(self, inputs: int, outputs: int) -> int:
        """Return how many parameters are trained at one linear of this shape."""
        raise NotImplementedError

    def encoder_names(self, sam: Sam, block: AttentionBlock) -> list[str]:
        """Return the paths of a block's target linears."""
        from samadapt.methods.peft_library import linears

        places = {"qkv": block.qkv, "proj": block.proj, "mlp": block.mlp}
        return [name for target in self.targets for name in linears(sam, places[target])]

    def decoder_names(self, sam: Sam) -> list[str]:
        """Return the paths of the decoder's linears."""
        from samadapt.methods.peft_library import decoder_linears

        return decoder_linears(sam)

    def count(self, sam: Sam, names: Sequence[str]) -> int:
        """Return the sum of ``size`` over these linears."""
        shapes = [sam.get_parameter(f"{name}.weight").shape for name in names]
        return sum(self.size(shape[1], shape[0]) for shape in shapes)
