"""What a PEFT method is: its options, what it says about itself, and where it is placed."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from samadapt.errors import AdapterError, ConfigError, nearest
from samadapt.system.settings import SETTINGS, Settings, Tuple, Whole

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock

Decoder = Literal["full", "lora", "own", "frozen"]
DECODERS: tuple[Decoder, ...] = ("full", "lora", "own", "frozen")

METHODS: dict[str, type[Method]] = {}
"""Every method by the name that ``peft=NAME`` takes; filled by ``register``."""

UNFIT: dict[str, str] = {}
"""Kinds of peft's that no option makes work on SAM, and why."""

LINEARS = frozenset({"linears"})
VECTORS = frozenset({"vectors"})
BOTTLENECKS = frozenset({"bottlenecks"})
EVERYTHING = LINEARS | VECTORS | BOTTLENECKS
"""What methods change; two that change the same cannot be combined."""


@dataclasses.dataclass(frozen=True)
class LowRank:
    """One low-rank layer: the update of a linear is ``alpha / rank * B A``."""

    rank: int
    alpha: float


@dataclasses.dataclass(frozen=True)
class PeftLayers:
    """Layers that peft adds in one go: one kind with one configuration.

    Attributes:
        kind: peft's name of it, as ``peft_type`` in ``adapter_config.json``.
        names: module paths of what peft replaces.
        options: arguments of peft's configuration besides the targets.
        ranks: for LoRA, rank and alpha by module path.
        fused: LoRA runs in our own arithmetic.
        reads_base: the arithmetic needs the exact values of the base weights, so that they are not
            held in bf16.
        check_start: try that the output is that of the base.
    """

    kind: str
    names: tuple[str, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ranks: Mapping[str, LowRank] = dataclasses.field(default_factory=dict)
    fused: bool = False
    reads_base: bool = True
    check_start: bool = False


# Validators take a few milliseconds to build, and a run uses one of fifty methods.
@dataclass(frozen=True, config=ConfigDict(**SETTINGS, defer_build=True))
class Method(Settings):
    """Options that every method has, and what a method must say about itself.

    Attributes:
        blocks: which attention blocks: ``"all"``, ``"last:K"``, ``"first:K"``, ``"global"``,
            ``"window"``, 0-based indices, or ``"none"`` for a frozen encoder.
        decoder: how the mask decoder is trained: all of it, by a LoRA, by the method's own layers,
            or not at all.
        decoder_rank: rank of the decoder's LoRA, with alpha equal to it.

    Raises:
        ConfigError: for a value out of range; the message names the key.
    """

    section: ClassVar[str] = "peft"
    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    can_merge: ClassVar[bool] = True
    plain_peft: ClassVar[bool] = False
    """Whether peft itself can load what this method saves."""
    takes_decoder: ClassVar[bool] = False
    """Whether the method's own layers can be put into the decoder."""
    not_in_decoder: ClassVar[str] = ""
    """Why not, as a sentence that follows the method's name."""
    changes: ClassVar[frozenset[str]] = LINEARS
    lr: ClassVar[float] = 1e-3
    """Peak learning rate where the user gives none: what ``benchmarks/method_comparison`` found
    on MSD hippocampus, or 1e-3 where it was not searched."""

    blocks: str | Tuple[Whole] = Field(
        default="all",
        description="attention blocks: all, last:K, first:K, global, window, [0, 3] or none",
    )
    decoder: Decoder = Field(
        default="full", description="how the mask decoder trains; own: as the encoder does"
    )
    decoder_rank: Whole = Field(default=4, description="rank of the decoder's LoRA", ge=1)

    def __post_init__(self) -> None:
        """Check the options, here and in ``validate``."""
        require(
            self.decoder in DECODERS,
            f"peft.decoder must be {', '.join(DECODERS)}; got {self.decoder!r}"
            f"{nearest(str(self.decoder), DECODERS)}",
        )
        require(
            self.takes_decoder or self.decoder != "own",
            f"peft.decoder=own: {self.name} {self.not_in_decoder}; use full, lora or frozen",
        )
        require_count("decoder_rank", self.decoder_rank)
        word, _ = _parse_blocks(self.blocks)
        require(
            (word, self.decoder) != ("none", "frozen"),
            "peft.blocks=none with peft.decoder=frozen trains nothing; use peft=none for that",
        )
        self.validate()

    def validate(self) -> None:
        """Check this method's own options.

        Raises:
            ConfigError: naming the key as ``peft.<key>``.
        """

    def peft_layers(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> tuple[PeftLayers, ...]:
        """Return what peft adds to a plain model for this method; nothing twice."""
        del sam, blocks
        return ()

    @property
    def encoders(self) -> tuple[str, ...]:
        """Kinds of encoder (``Build.encoder``) that the method fits."""
        return ("vit", "tiny_vit")

    @property
    def stack(self) -> int:
        """How many neighbouring slices, one behind the other, the encoder needs in every batch."""
        return 1

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Add this method's modules to the frozen model; runs after peft's injection."""

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return how many encoder parameters the method trains, from the sizes alone."""
        del sam, blocks
        return 0

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return how many decoder parameters ``decoder=own`` trains, from the sizes alone."""
        del sam
        return 0

    def merge(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Fold what ``inject`` added into the base weights and remove it; runs after peft's merge.

        Raises:
            AdapterError: when the method cannot be merged.
        """
        del sam, blocks
        if not self.can_merge:
            raise AdapterError(
                f"{self.name} adds layers that no weight of SAM can hold, so it cannot be merged; "
                "keep the adapter directory, or train with peft=lora"
            )

    def penalty(self, sam: Sam) -> Tensor | float:
        """Return what is added to the loss of every batch, such as a regulariser."""
        del sam
        return 0.0

    def after_step(self, sam: Sam, step: int, total: int) -> None:
        """Follow an optimizer step, while the gradients are still there, as a schedule needs it.

        Args:
            sam: the model that is trained.
            step: steps done, from 1.
            total: steps of the whole run.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return the name and every option as plain values."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
        return {"name": self.name, **plain}


def register(name: str) -> Callable[[type[Any]], type[Any]]:
    """Return a decorator that lists a method's option dataclass under ``name``."""

    def add(cls: type[Any]) -> type[Any]:
        cls.name = name
        METHODS[name] = cls
        return cls

    return add


def single_method(name: str) -> type[Method]:
    """Return the class of one method; ``adapters.combining.find_method`` knows combinations too.

    Raises:
        ConfigError: for an unknown name.
    """
    if name in UNFIT:
        raise ConfigError(f"peft={name}: it {UNFIT[name]}; `samadapt ls peft` lists what does fit")
    require(
        name in METHODS,
        f"peft must be one of {', '.join(sorted(METHODS))}; got {name!r}{nearest(name, METHODS)}",
    )
    return METHODS[name]


def require(condition: bool, message: str) -> None:
    """Raise ``ConfigError`` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def require_count(key: str, value: object) -> None:
    """Raise ``ConfigError`` unless the option is an integer of at least 1."""
    valid = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    require(valid, f"peft.{key} must be an integer of at least 1; got {value!r}")


def require_positive(key: str, value: object) -> None:
    """Raise ``ConfigError`` unless the option is a number above 0."""
    valid = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    require(valid, f"peft.{key} must be a number above 0; got {value!r}")


def require_slices(slices: Sequence[object]) -> None:
    """Raise ``ConfigError`` unless the option names one or more of q, k and v, each once."""
    for name in slices:
        hint = nearest(str(name), "qkv")
        require(name in ("q", "k", "v"), f"peft.slices must name q, k or v; got {name!r}{hint}")
    require(
        0 < len(slices) == len(set(slices)),
        f"peft.slices must name one or more of q, k and v, each once; got {slices!r}",
    )


def select_blocks(
    wanted: str | Sequence[int], blocks: Sequence[AttentionBlock]
) -> tuple[AttentionBlock, ...]:
    """Return the attention blocks that ``peft.blocks`` names, in the encoder's order.

    Args:
        wanted: see ``Method.blocks``.
        blocks: all attention blocks of the encoder.

    Raises:
        ConfigError: for an unknown word, an index out of range, or when nothing is selected.
    """
    word, numbers = _parse_blocks(wanted)
    depth = len(blocks)
    if word in ("last", "first"):
        require(
            numbers[0] <= depth,
            f"peft.blocks={wanted}: the encoder has {depth} attention blocks; got {numbers[0]}",
        )
        return tuple(blocks[depth - numbers[0] :] if word == "last" else blocks[: numbers[0]])
    if word == "list":
        for index in numbers:
            require(
                index < depth,
                f"peft.blocks: expected indices 0 to {depth - 1} "
                f"(the encoder has {depth} attention blocks); got {index}",
            )
        return tuple(block for block in blocks if block.index in numbers)
    chosen = tuple(block for block in blocks if word in ("all", block.kind))
    require(
        bool(chosen) or word == "none",
        f"peft.blocks={wanted}: this encoder has no {word} attention blocks",
    )
    return chosen


def _parse_blocks(blocks: object) -> tuple[str, tuple[int, ...]]:
    """Return the kind of selection (a word, or ``"list"``) and its numbers."""
    words = ("all", "last:K", "first:K", "global", "window", "none")
    if isinstance(blocks, str) and blocks in ("all", "global", "window", "none"):
        return blocks, ()
    if isinstance(blocks, str) and not blocks.lstrip().startswith("["):
        word, _, count = blocks.partition(":")
        valid = word in ("last", "first") and count.isdecimal() and int(count) >= 1
        require(
            valid,
            f"peft.blocks must be {', '.join(words)} (K at least 1) or a list such as [0, 3]; "
            f"got {blocks!r}{nearest(blocks, words)}",
        )
        return word, (int(count),)
    try:
        indices = ast.literal_eval(blocks) if isinstance(blocks, str) else blocks
    except (SyntaxError, ValueError):
        indices = None
    if not isinstance(indices, Sequence) or not indices:
        raise ConfigError(f"peft.blocks must be a list of indices such as [0, 3]; got {blocks!r}")
    whole = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in indices)
    require(whole, f"peft.blocks must list indices from 0 on; got {blocks!r}")
    require(len(set(indices)) == len(indices), f"peft.blocks names a block twice: {blocks!r}")
    return "list", tuple(indices)
