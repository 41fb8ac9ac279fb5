"""The base class of all PEFT methods, their registry, and the choice of attention blocks."""

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
    from torch import Tensor, nn

    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock

Decoder = Literal["full", "lora", "own", "frozen"]
Memory = Literal["full", "frozen"]

METHODS: dict[str, type[Method]] = {}
"""Every method by its name in ``peft=NAME``; ``register`` fills it."""

UNFIT: dict[str, str] = {}
"""Methods of the peft library that do not work on SAM with any option, and the reason."""

LINEARS = frozenset({"linears"})
VECTORS = frozenset({"vectors"})
BOTTLENECKS = frozenset({"bottlenecks"})
EVERYTHING = LINEARS | VECTORS | BOTTLENECKS
"""What a method changes in a block. Methods that change the same things cannot be combined."""


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Rank and alpha of one LoRA layer; the update of its linear is ``alpha / rank * B A``."""

    rank: int
    alpha: float


@dataclasses.dataclass(frozen=True)
class PeftLayers:
    """Layers that the peft library adds in one call: one kind with one configuration.

    Attributes:
        kind: peft's name of the kind, as ``peft_type`` in ``adapter_config.json``.
        names: module paths that peft replaces.
        options: arguments of peft's configuration besides the targets.
        ranks: rank and alpha by module path; for LoRA only.
        fused: run LoRA by ``lora_layer.FusedLoraLinear``, which is faster and equal.
        reads_base: the layers compute with the base weights themselves, as DoRA with their norm.
            These weights then stay in fp32 when frozen weights are rounded to bf16.
        check_start: after injection, check that the output is still that of the base.
    """

    kind: str
    names: tuple[str, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ranks: Mapping[str, LowRank] = dataclasses.field(default_factory=dict)
    fused: bool = False
    reads_base: bool = True
    check_start: bool = False


AUTO_BLOCKS, SMALL_IMAGE = "last:8", 84
"""What ``peft.blocks=auto`` means. On crops of 50 pixels a U-Net that reads frozen features reached
Dice 0.826 and HD95 1.6 mm where one with LoRA reached 0.796 and 2.3 mm in more time (5 volumes of
the hippocampus, one run each; with the mask decoder trained too 0.819 and 1.8 mm): such crops show
little that an encoder must learn, and a frozen one leaves time for five times as many samples. On
pictures of polyps the encoder must learn."""


# Validators take a few milliseconds to build, and a run uses one of fifty methods.
@dataclass(frozen=True, config=ConfigDict(**SETTINGS, defer_build=True))
class Method(Settings):
    """The options that every method has, and the questions that every method answers.

    A new method is one file in this package: a subclass with ``@register("name")``. It overrides
    ``peft_layers`` if the peft library has its layers, or ``inject`` if it brings its own, and
    ``count_parameters``. ``tests/methods/test_contract.py`` then checks it on every build.

    Attributes:
        blocks: which attention blocks: ``"all"``, ``"last:K"``, ``"first:K"``, ``"global"``,
            ``"window"``, 0-based indices, ``"none"`` for a frozen encoder, or ``"auto"``, which
            ``method_for`` turns into one of these.
        decoder: how the mask decoder is trained: ``"full"`` all of it, ``"lora"`` by a LoRA on its
            linears, ``"own"`` by the method's own layers, ``"frozen"`` not at all.
        decoder_rank: rank of the decoder's LoRA; its alpha is equal to it.
        memory: whether the memory of SAM 2 trains, which only ``prompts=propagate`` runs through.

    Raises:
        ConfigError: for a value out of range; the message names the key.
    """

    section: ClassVar[str] = "peft"
    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    """One line for ``samadapt ls peft``."""
    can_merge: ClassVar[bool] = True
    """Whether the trained update can be folded into the weights of SAM."""
    plain_peft: ClassVar[bool] = False
    """Whether the peft library alone can load what this method saves."""
    takes_quantized: ClassVar[bool] = True
    """Whether it can train beside frozen weights in 4 bits: it computes with them only through the
    layers that hold them."""
    takes_decoder: ClassVar[bool] = False
    """Whether the method's own layers also fit the decoder (``decoder=own``)."""
    not_in_decoder: ClassVar[str] = ""
    """The reason if they do not, as the rest of a sentence that begins with the method's name."""
    changes: ClassVar[frozenset[str]] = LINEARS
    """What the method changes in a block; see ``LINEARS``."""
    state_copies: ClassVar[int] = 0
    """Number of tensors in ``state_dict`` for each trained parameter; 0: there is no state."""
    lr: ClassVar[float] = 1e-3
    """Peak learning rate if the user gives none: the best one that ``benchmarks/method_comparison``
    measured on MSD hippocampus, or 1e-3 for methods that it did not cover."""

    blocks: str | Tuple[Whole] = Field(
        default="all",
        description="attention blocks: all, last:K, first:K, global, window, [0, 3] or none; "
        f"auto: {AUTO_BLOCKS}, but none for images of up to {SMALL_IMAGE} pixels",
    )
    decoder: Decoder = Field(
        default="full", description="how the mask decoder trains; own: as the encoder does"
    )
    decoder_rank: Whole = Field(default=4, description="rank of the decoder's LoRA", ge=1)
    memory: Memory = Field(
        default="frozen",
        description="the memory of SAM 2 with prompts=propagate; full: trains at train.decoder_lr",
    )

    def __post_init__(self) -> None:
        """Check what depends on several options; pydantic has checked each option alone."""
        require(
            self.takes_decoder or self.decoder != "own",
            f"peft.decoder=own: {self.name} {self.not_in_decoder}; use full, lora or frozen",
        )
        word, _ = _parse_blocks(self.blocks)
        require(
            (word, self.decoder, self.memory) != ("none", "frozen", "frozen"),
            "peft.blocks=none with peft.decoder=frozen trains nothing; use peft=none for that",
        )
        self.check_options()

    def check_options(self) -> None:
        """Check what depends on several of this method's own options.

        Raises:
            ConfigError: naming the key as ``peft.<key>``.
        """

    def peft_layers(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> tuple[PeftLayers, ...]:
        """Return the layers of the peft library that this method adds to a plain model."""
        del sam, blocks
        return ()

    @property
    def encoders(self) -> tuple[str, ...]:
        """The kinds of encoder (``Build.encoder``) that the method works on."""
        return ("vit", "tiny_vit", "hiera", "rope_vit")

    @property
    def stack(self) -> int:
        """Number of neighbouring slices that the encoder must see together; 1: each slice alone."""
        return 1

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Add this method's own modules to the frozen model, after the peft library added its."""

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return how many encoder parameters the method trains, computed from layer sizes alone."""
        del sam, blocks
        return 0

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return how many decoder parameters ``decoder=own`` trains, from layer sizes alone."""
        del sam
        return 0

    def merge(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Fold what ``inject`` added into the base weights, and remove it, after peft's own merge.

        Raises:
            AdapterError: when the method cannot be merged.
        """
        del sam, blocks
        if not self.can_merge:
            raise AdapterError(
                f"{self.name} adds layers that no weight of SAM can hold, so it cannot be merged; "
                "keep the adapter directory, or train with peft=lora"
            )

    def penalty(self, sam: nn.Module) -> Tensor | float:
        """Return a term, such as a regulariser, that is added to the loss of every batch."""
        del sam
        return 0.0

    def after_step(self, sam: nn.Module, step: int, total: int) -> None:
        """Run after an optimizer step, while the gradients are still there.

        Args:
            sam: the model in training.
            step: number of steps done, from 1 on.
            total: number of steps of the whole run. Where its time is limited, nobody knows them:
                both numbers then count parts of the time (``training.loop.place_in_run``).
        """

    def state_dict(self, sam: nn.Module) -> dict[str, Tensor]:
        """Return what ``after_step`` remembers from step to step; a checkpoint saves it."""
        del sam
        return {}

    def load_state_dict(self, sam: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Restore the result of ``state_dict``. The trained parameters are in the model already.

        Args:
            sam: the model in training.
            state: the saved tensors; empty if an earlier version wrote the checkpoint.

        Raises:
            ValueError: when the tensors are not those of the model's parameters.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return the name and all options as plain values, as ``samadapt.json`` holds them."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        # JSON has no tuples; ``method_from_dict`` turns the lists back.
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
        if self.memory == "frozen":  # left out, so that earlier versions read most records
            del plain["memory"]
        return {"name": self.name, **plain}


def register(name: str) -> Callable[[type[Any]], type[Any]]:
    """Return a decorator that makes a method available as ``peft=name``."""

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


def require_slices(slices: Sequence[object]) -> None:
    """Raise ``ConfigError`` unless ``peft.slices`` names one or more slices, each once."""
    require(
        0 < len(slices) == len(set(slices)),
        f"peft.slices must name one or more of q, k and v, each once; got {slices!r}",
    )


def method_for(method: Method, longest_side: int, *, has_head: bool) -> Method:
    """Return the method that ``peft.blocks=auto`` means for a data set.

    Args:
        method: a method; any other choice of blocks stays.
        longest_side: longest side, in pixels, of the training images as they are read.
        has_head: whether a dense head trains. Beside one the mask decoder of small images stays
            frozen as well, because it doubles the time of a step and adds nothing; a LoRA or the
            method's own layers in the decoder train all the same.

    Raises:
        ConfigError: nothing would train.
    """
    if method.blocks != "auto":
        return method
    if longest_side > SMALL_IMAGE:
        return dataclasses.replace(method, blocks=AUTO_BLOCKS)
    if has_head and method.decoder in ("full", "frozen"):  # another one was asked for
        return METHODS["none"]()
    require(
        method.decoder != "frozen" or method.memory != "frozen",
        f"peft.blocks=auto keeps the encoder frozen for images of up to {SMALL_IMAGE} pixels a "
        "side, and peft.decoder=frozen the decoder: nothing would train. Name peft.blocks",
    )
    return dataclasses.replace(method, blocks="none")


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
    require(word != "auto", "peft.blocks=auto needs a data set, whose images decide; name blocks")
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
    # "none" is no kind of block, so it selects nothing.
    chosen = tuple(block for block in blocks if word in ("all", block.kind))
    require(
        bool(chosen) or word == "none",
        f"peft.blocks={wanted}: this encoder has no {word} attention blocks",
    )
    return chosen


def frozen_blocks(wanted: str | Sequence[int], depth: int) -> int:
    """Return how many of an encoder's first blocks come before all that ``peft.blocks`` names.

    Args:
        wanted: see ``Method.blocks``; global and window blocks count from the first one on.
        depth: number of attention blocks of the encoder.
    """
    word, numbers = _parse_blocks(wanted)
    if word == "none":
        return depth
    if word == "last":
        return max(0, depth - numbers[0])
    return min(numbers) if word == "list" else 0


def _parse_blocks(blocks: object) -> tuple[str, tuple[int, ...]]:
    """Return the kind of selection (a word, or ``"list"``) and its numbers."""
    words = ("all", "last:K", "first:K", "global", "window", "none", "auto")
    if isinstance(blocks, str) and blocks in ("all", "global", "window", "none", "auto"):
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
    # A list may come as text, such as "[0, 3]".
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
