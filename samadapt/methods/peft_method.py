"""What the methods that peft supplies have in common: their linears and their size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.errors import nearest
from samadapt.methods.base import Method, PeftLayers, require, require_positive
from samadapt.system.settings import Tuple

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock

TargetName = Literal["qkv", "proj", "mlp"]
TARGET_NAMES: tuple[TargetName, ...] = ("qkv", "proj", "mlp")


@dataclass(frozen=True)
class PeftMethod(Method):
    """One kind of peft's in the chosen blocks; subclasses say where, with what, and how large."""

    plain_peft: ClassVar[bool] = True
    takes_decoder: ClassVar[bool] = True
    kind: ClassVar[str] = ""
    """peft's name of it, as ``peft_type`` in ``adapter_config.json``."""
    reads_base: ClassVar[bool] = False
    """Whether its arithmetic needs the base weight itself, and so its exact values."""

    def arguments(self) -> Mapping[str, Any]:
        """Return the arguments of peft's configuration, targets left out."""
        return {}

    def encoder_names(self, sam: Sam, block: AttentionBlock) -> list[str]:
        """Return the paths of what is replaced in a block of a plain model."""
        raise NotImplementedError

    def decoder_names(self, sam: Sam) -> list[str]:
        """Return the paths of what ``decoder=own`` replaces in the decoder of a plain model."""
        raise NotImplementedError

    def count(self, sam: Sam, names: Sequence[str]) -> int:
        """Return how many parameters are trained in the place of these modules."""
        raise NotImplementedError

    def peft_layers(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> tuple[PeftLayers, ...]:
        """Return the layers of the chosen blocks, and of the decoder with ``decoder=own``."""
        names = [name for block in blocks for name in self.encoder_names(sam, block)]
        if self.decoder == "own":
            names += self.decoder_names(sam)
        if not names:
            return ()
        return (PeftLayers(self.kind, tuple(names), self.arguments(), reads_base=self.reads_base),)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return the parameters of the chosen blocks' layers."""
        return self.count(sam, [n for block in blocks for n in self.encoder_names(sam, block)])

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return the parameters of the decoder's layers."""
        return self.count(sam, self.decoder_names(sam))


@dataclass(frozen=True)
class LinearMethod(PeftMethod):
    """A kind of peft's that works on linears.

    Attributes:
        targets: which linears of a block: the fused ``qkv``, the attention's ``proj``, the two of
            the ``mlp``. With ``decoder=own`` every linear of the decoder is added.
    """

    targets: Tuple[TargetName] = Field(
        default=("qkv",), description="linears of a block: qkv, proj, mlp"
    )

    def __post_init__(self) -> None:
        """Check the targets and what all methods have."""
        for name in self.targets:
            require(
                name in TARGET_NAMES,
                f"peft.targets must name qkv, proj or mlp; got {name!r}"
                f"{nearest(str(name), TARGET_NAMES)}",
            )
        require(
            0 < len(self.targets) == len(set(self.targets)),
            f"peft.targets must name one or more of qkv, proj and mlp, each once; "
            f"got {self.targets!r}",
        )
        super().__post_init__()

    def size(self, inputs: int, outputs: int) -> int:
        """Return how many parameters are trained at a linear of this shape."""
        raise NotImplementedError

    def encoder_names(self, sam: Sam, block: AttentionBlock) -> list[str]:
        """Return the paths of a block's target linears."""
        from samadapt.methods.peft_library import linears

        places = {"qkv": block.qkv, "proj": block.proj, "mlp": block.mlp}
        return [name for target in self.targets for name in linears(sam, places[target])]

    def decoder_names(self, sam: Sam) -> list[str]:
        """Return the paths of the decoder's linears."""
        from samadapt.methods.peft_library import linears

        return linears(sam, "mask_decoder")

    def count(self, sam: Sam, names: Sequence[str]) -> int:
        """Return the sum of ``size`` over these linears."""
        shapes = [sam.get_parameter(f"{name}.weight").shape for name in names]
        return sum(self.size(shape[1], shape[0]) for shape in shapes)


def require_alpha(alpha: object) -> None:
    """Raise ``ConfigError`` unless ``peft.alpha`` is a number above 0 or None."""
    if alpha is not None:
        require_positive("alpha", alpha)
