"""All other kinds of layers in the installed peft library, by peft's names and options.

For example ``peft=hra peft.options={r: 4}``. Kinds of later versions of peft are found by their
folders. At injection the options are checked against peft's configuration, and the output is
compared with the base: a kind that changes the output before training is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import METHODS, UNFIT, PeftLayers, register, require
from samadapt.methods.peft_method import LinearMethod

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock

_TOKENS = "works on the tokens of a language model, and SAM's encoder has none"
_ROUTES = "chooses among several adapters, and here a model is trained with one"
_GRID = "takes tokens as (batch, length, channels), and SAM's lie in a grid"
UNFIT.update(
    {
        "adamss": _GRID,
        "gralora": _GRID,
        "adaption_prompt": _TOKENS,
        "cartridge": _TOKENS,
        "cpt": _TOKENS,
        "multitask_prompt_tuning": _TOKENS,
        "p_tuning": _TOKENS,
        "prefix_tuning": _TOKENS,
        "prompt_tuning": _TOKENS,
        "trainable_tokens": _TOKENS,
        "shadow": "follows the loop of a language model's decoder, and SAM has none",
        "lily": "mixes its parts by what the whole batch holds, so that the masks of an image "
        "depend on the images beside it (in peft 0.21)",
        "osf": "cannot run backward in bf16 (in peft 0.21)",
        "poly": _ROUTES,
        "unilora": "draws both its matrices from one random vector, so that it does not start at "
        "the base model's output (in peft 0.21)",
        "vblora": "does not start at the base model's output (in peft 0.21)",
        "xlora": _ROUTES,
    }
)
SUMMARIES = {
    "beft": "a trained bias behind each linear",
    "boft": "rotations of blocks of the input channels, and a scale a row",
    "c3a": "updates that are circular convolutions, block by block",
    "deft": "a projection of the weight, and what takes its place",
    "delora": "low-rank directions with a strength of their own",
    "fourierft": "updates from a few coefficients of a Fourier transform",
    "frod": "gains and a few rotations in a basis that the blocks share",
    "glora": "low-rank updates of weight and bias, relative and absolute",
    "hira": "LoRA multiplied onto the weight, for updates of high rank",
    "hra": "a chain of Householder reflections of the inputs",
    "miss": "updates from shards that share one matrix",
    "peanut": "a small network of the weights as the update",
    "psoft": "rotations within the weight's principal subspace",
    "pvera": "VeRA with sampled low-rank activations",
    "randlora": "gains of random low-rank matrices that sum to a full rank",
    "road": "rotations of pairs of output channels",
    "shira": "a few weights of each linear, chosen at random",
    "supertuning": "the largest weights of each linear alone",
    "tinylora": "a few numbers that mix random matrices within the weight's main directions",
    "waveft": "updates from a few coefficients of a wavelet transform",
}
"""Summaries of the kinds that the tests cover. Other kinds are offered without a promise."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "c3a": {"block_size": 32, "init_weights": True},
    "fourierft": {"init_weights": True},
    "frod": {"progressbar": False},
    "road": {"group_size": 32},
}
"""Changes of peft's defaults that a kind needs to fit SAM or to start at the base's output."""

ONE_WIDTH = frozenset({"frod"})
"""Kinds that share matrices between blocks, which must then have one token width."""


@dataclass(frozen=True)
class OtherPeft(LinearMethod):
    """A kind of peft layer that has no file of its own here.

    Attributes:
        options: arguments of peft's configuration of this kind, under peft's names.
    """

    reads_base: ClassVar[bool] = True
    takes_quantized: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {}

    options: dict[str, Any] | None = Field(
        default=None, description="options of peft's own configuration"
    )

    def check_options(self) -> None:
        """Check that the options do not contradict other keys; peft checks the rest."""
        for key in ("target_modules", "modules_to_save", "inference_mode", "peft_type"):
            require(
                key not in (self.options or {}),
                f"peft.options: {key} follows from peft.targets, peft.blocks and peft.decoder",
            )

    def arguments(self) -> Mapping[str, Any]:
        """Return the defaults, replaced by the user's options."""
        return {**self.defaults, **(self.options or {})}

    def peft_layers(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> tuple[PeftLayers, ...]:
        """Return the layers, which are checked after injection.

        Raises:
            ConfigError: when the kind needs blocks of one width and the chosen blocks have several.
        """
        widths = sorted({width for block in blocks for width in (block.inputs, block.width)})
        require(
            len(widths) <= 1 or self.name not in ONE_WIDTH,
            f"peft={self.name} shares matrices between blocks, which must have one width; those of "
            f"peft.blocks={self.blocks} have {widths}: choose some of one width, such as last:1",
        )
        return tuple(replace(x, check_start=True) for x in super().peft_layers(sam, blocks))

    def count(self, sam: Sam, names: Sequence[str]) -> int:
        """Return how many parameters peft trains there, counted after injection into a copy."""
        import copy

        from samadapt.methods.peft_library import inject_layers

        if not names:
            return 0
        asked = copy.deepcopy(sam).requires_grad_(False)
        inject_layers(asked, PeftLayers(self.kind, tuple(names), self.arguments()))
        return sum(p.numel() for p in asked.parameters() if p.requires_grad)


def register_others() -> None:
    """Register every kind of the installed peft that has no file here, without importing peft."""
    # Kinds of peft that a file of this package uses, such as LORA and LN_TUNING
    taken = {getattr(method, "kind", "").lower() for method in METHODS.values()}
    spec = find_spec("peft")
    places = spec.submodule_search_locations if spec is not None else None
    for folder in sorted(Path(place) / "tuners" for place in places or ()):
        for config in sorted(folder.glob("*/config.py")):
            name = config.parent.name
            if name not in taken | UNFIT.keys():
                summary = SUMMARIES.get(name, f"peft's {name}, not covered by the tests")
                body: dict[str, Any] = {
                    "kind": name.upper(),  # peft names a type as its folder
                    "summary": summary,
                    "__doc__": OtherPeft.__doc__,
                }
                body["defaults"] = DEFAULTS.get(name, {})
                register(name)(dataclass(frozen=True)(type(name, (OtherPeft,), body)))
