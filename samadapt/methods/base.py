"""Where methods are injected, what stays frozen, and the report of what is trained."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from samadapt.errors import AdapterError, ConfigError, RunError, nearest
from samadapt.typed import knob

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samadapt.sam.model import Sam
    from samadapt.sam.types import BlockSite

METHODS: dict[str, type[Method]] = {}
"""Every method by the name that ``peft=NAME`` takes; filled by ``register``."""

MethodT = TypeVar("MethodT", bound="Method")

LINEARS = frozenset({"linears"})
VECTORS = frozenset({"vectors"})
BOTTLENECKS = frozenset({"bottlenecks"})
EVERYTHING = LINEARS | VECTORS | BOTTLENECKS
"""What methods change; two that change the same cannot be combined."""


@dataclass(frozen=True)
class LowRank:
    """One low-rank layer: the update of a linear is ``alpha / rank * B A``."""

    rank: int
    alpha: float


@dataclass(frozen=True)
class Method:
    """Options that every method has, and what a method must say about itself.

    Attributes:
        blocks: which attention blocks: ``"all"``, ``"last:K"``, ``"first:K"``, ``"global"``,
            ``"window"`` or 0-based indices.
        decoder: how the mask decoder is trained.
        decoder_rank: rank of the decoder's LoRA, with alpha equal to it.

    Raises:
        ConfigError: for a value out of range; the message names the key.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    can_merge: ClassVar[bool] = True
    plain_peft: ClassVar[bool] = False
    """Whether peft itself can load what this method saves."""
    changes: ClassVar[frozenset[str]] = LINEARS

    blocks: str | tuple[int, ...] = knob(
        "all", help="attention blocks: all, last:K, first:K, global, window or [0, 3]"
    )
    decoder: Literal["full", "lora", "frozen"] = knob("full", help="how the mask decoder trains")
    decoder_rank: int = knob(4, help="rank of the decoder's LoRA", low=1)

    def __post_init__(self) -> None:
        """Check the options, here and in ``validate``."""
        require(
            self.decoder in ("full", "lora", "frozen"),
            f"peft.decoder must be full, lora or frozen; got {self.decoder!r}"
            f"{nearest(str(self.decoder), ('full', 'lora', 'frozen'))}",
        )
        require_count("decoder_rank", self.decoder_rank)
        _parse_blocks(self.blocks)
        self.validate()

    def validate(self) -> None:
        """Check this method's own options.

        Raises:
            ConfigError: naming the key as ``peft.<key>``.
        """

    def low_rank(self, sites: Sequence[BlockSite]) -> dict[str, LowRank]:
        """Return the encoder's linears that peft gives a LoRA layer, by module path."""
        del sites
        return {}

    @property
    def low_rank_dropout(self) -> float:
        """Dropout before every LoRA layer."""
        return 0.0

    @property
    def encoders(self) -> tuple[str, ...]:
        """Kinds of encoder (``Build.encoder``) that the method fits."""
        return ("vit", "tiny_vit")

    @property
    def stack(self) -> int:
        """How many neighbouring slices, one behind the other, the encoder needs in every batch."""
        return 1

    def inject(self, sam: Sam, sites: Sequence[BlockSite]) -> None:
        """Add this method's modules to the frozen encoder; runs after peft's injection."""

    def formula(self, sam: Sam, sites: Sequence[BlockSite]) -> int:
        """Return how many encoder parameters the method trains, from the sizes alone."""
        del sam, sites
        return 0

    def merge(self, sam: Sam, sites: Sequence[BlockSite]) -> None:
        """Fold what ``inject`` added into the base weights and remove it; runs after peft's merge.

        Raises:
            AdapterError: when the method cannot be merged.
        """
        del sam, sites
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


def register(name: str) -> Callable[[type[MethodT]], type[MethodT]]:
    """Return a decorator that lists a method's option dataclass under ``name``."""

    def add(cls: type[MethodT]) -> type[MethodT]:
        cls.name = name
        METHODS[name] = cls
        return cls

    return add


def find_method(name: str) -> type[Method]:
    """Return a method's class; ``"lora+bias"`` is both at once.

    Raises:
        ConfigError: for an unknown name, or two that cannot be combined.
    """
    if "+" in name:
        from samadapt.methods.combined import combine

        return combine(tuple(name.split("+")))
    require(
        name in METHODS,
        f"peft must be one of {', '.join(sorted(METHODS))}; got {name!r}{nearest(name, METHODS)}",
    )
    return METHODS[name]


def method_from_dict(values: Mapping[str, Any]) -> Method:
    """Return the method that ``Method.to_dict`` described.

    Raises:
        ConfigError: for an unknown method, option or value.
    """
    given: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in values.items()
    }
    name = str(given.pop("name", ""))
    method = find_method(name)
    known = [item.name for item in fields(method)]
    for key in given:
        require(
            key in known,
            f"peft.{key} is no option of {name} ({', '.join(known)}){nearest(key, known)}",
        )
    try:
        return method(**given)
    except TypeError as error:
        raise ConfigError(f"peft={name}: an option has a wrong type: {error}") from error


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


def select_blocks(blocks: str | Sequence[int], sites: Sequence[BlockSite]) -> tuple[BlockSite, ...]:
    """Return the attention blocks that ``peft.blocks`` names, in the encoder's order.

    Args:
        blocks: see ``Method.blocks``.
        sites: all attention blocks of the encoder.

    Raises:
        ConfigError: for an unknown word, an index out of range, or when nothing is selected.
    """
    word, numbers = _parse_blocks(blocks)
    depth = len(sites)
    if word in ("last", "first"):
        require(
            numbers[0] <= depth,
            f"peft.blocks={blocks}: the encoder has {depth} attention blocks; got {numbers[0]}",
        )
        return tuple(sites[depth - numbers[0] :] if word == "last" else sites[: numbers[0]])
    if word == "list":
        for index in numbers:
            require(
                index < depth,
                f"peft.blocks: expected indices 0 to {depth - 1} "
                f"(the encoder has {depth} attention blocks); got {index}",
            )
        return tuple(site for site in sites if site.index in numbers)
    chosen = tuple(site for site in sites if word in ("all", site.kind))
    require(bool(chosen), f"peft.blocks={blocks}: this encoder has no {word} attention blocks")
    return chosen


def _parse_blocks(blocks: object) -> tuple[str, tuple[int, ...]]:
    """Return the kind of selection (a word, or ``"list"``) and its numbers."""
    words = ("all", "last:K", "first:K", "global", "window")
    if isinstance(blocks, str) and blocks in ("all", "global", "window"):
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


@dataclass
class Injection:
    """What was injected, and what of the model is trained.

    Attributes:
        method: the options.
        base_name: name of the model's build.
        sites: the attention blocks that were selected.
        depth: number n of attention blocks in the encoder.
        boundary: first unit of the encoder that is trained, for ``Sam.encode_prefix``: 0 to n - 1
            a block, n the neck, n + 1 nothing in the encoder; -1: the patch embedding is trained
            too, so there is no frozen prefix.
        groups: names of the trained parameters by group: ``"embedding"``, ``"block 3"``,
            ``"neck"``, ``"decoder"``.
        total: parameters of the model, with what was injected.
        low_rank: peft's LoRA layers, encoder and decoder, by module path.
        parameters: the trained parameters by their name in the model.
    """

    method: Method
    base_name: str
    sites: tuple[BlockSite, ...]
    depth: int
    boundary: int
    groups: dict[str, list[str]]
    total: int
    low_rank: dict[str, LowRank] = field(repr=False)
    parameters: dict[str, nn.Parameter] = field(repr=False)

    @property
    def trainable(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def share(self) -> float:
        """Trained parameters over all parameters, 0 to 1."""
        return self.trainable / self.total

    @property
    def has_frozen_prefix(self) -> bool:
        """Whether ``Sam.encode_prefix(images, boundary)`` is constant during training."""
        return self.boundary >= 0

    def count(self, group: str) -> int:
        """Return the number of trained parameters in a group."""
        return sum(self.parameters[name].numel() for name in self.groups[group])

    def report(self) -> str:
        """Return the sites, the trained and total parameters and their share, as lines of text."""
        encoder = sum(self.count(group) for group in self.groups if group != "decoder")
        decoder = self.trainable - encoder
        indices = ", ".join(str(site.index) for site in self.sites) if encoder else "none"
        units = {-1: "nothing", 0: "the patch embedding", self.depth: "all attention blocks"}
        units[self.depth + 1] = "the whole image encoder"
        frozen = units.get(self.boundary, f"everything before block {self.boundary}")
        rows = {
            "method": f"{self.method.name} on {self.base_name}: {self.method.summary}",
            "blocks": f"{indices} (of {self.depth})",
            "encoder": f"{encoder:,} trained parameters",
            "decoder": f"{decoder:,} trained parameters ({self.method.decoder})",
            "trained": f"{self.trainable:,} of {self.total:,} parameters ({self.share:.2%})",
            "frozen": f"{frozen}; the prompt encoder",
        }
        return "\n".join(f"{key:<8} {text}" for key, text in rows.items())

    def check_gradients(self) -> None:
        """Check after the first backward pass that every group got a gradient.

        Raises:
            RunError: naming the groups whose gradients are all missing or zero.
        """
        dead = [
            name
            for name, members in self.groups.items()
            if not any(_has_gradient(self.parameters[member]) for member in members)
        ]
        if dead:
            raise RunError(
                f"no gradient reached {', '.join(dead)} after the first backward pass "
                f"(method {self.method.name}); expected one in every trained group. Was the frozen "
                f"prefix cut at block {self.boundary}, and does the loss use the model's output?"
            )

    def set_training(self, sam: Sam, enabled: bool = True) -> None:
        """Switch the injected dropout on or off; everything frozen stays in evaluation mode."""
        sam.eval()
        for name, module in sam.named_modules():
            if ".lora_dropout." in name:
                module.train(enabled)


def _has_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool((parameter.grad != 0).any())


def inject(sam: Sam, method: Method) -> Injection:
    """Freeze the model, add the method's modules, and mark what is trained.

    The prompt encoder stays frozen; the decoder follows ``method.decoder``. The output is the same
    as before until a step is taken.

    Args:
        sam: a model without an adapter; changed in place.
        method: the options.

    Raises:
        ConfigError: when ``peft.blocks`` does not fit the encoder.
        AdapterError: when the model already carries an adapter.
    """
    from samadapt.methods import low_rank

    if sam.adapter_names:
        raise AdapterError("this model already carries an adapter; load a fresh one to inject into")
    require(
        sam.build.encoder in method.encoders,
        f"peft={method.name} with these options needs an encoder of kind "
        f"{' or '.join(method.encoders)}; {sam.build.name} has a {sam.build.encoder}",
    )
    every = sam.sites()
    sites = select_blocks(method.blocks, every)
    sam.adapter_names = (method.name,)
    sam.requires_grad_(False)
    plan = low_rank.plan(sam, method, sites)
    if plan:
        low_rank.inject(sam, plan, method.low_rank_dropout)
    method.inject(sam, sites)
    if method.decoder == "full":
        sam.mask_decoder.requires_grad_(True)
    trained = {name: p for name, p in sam.named_parameters() if p.requires_grad}
    groups: dict[str, list[str]] = {}
    for name in trained:
        groups.setdefault(_group(name, every), []).append(name)
    return Injection(
        method=method,
        base_name=sam.build.name,
        sites=sites,
        depth=len(every),
        boundary=_boundary(groups, len(every)),
        groups=groups,
        total=sum(p.numel() for p in sam.parameters()),
        low_rank=plan,
        parameters=trained,
    )


def _group(name: str, sites: Sequence[BlockSite]) -> str:
    """Return the group of a trained parameter, by where it sits."""
    if not name.startswith("image_encoder."):
        return "decoder"
    for site in sites:
        if name.startswith(f"{site.block}."):
            return f"block {site.index}"
    return "neck" if name.startswith("image_encoder.neck.") else "embedding"


def _boundary(groups: Mapping[str, object], depth: int) -> int:
    """Return the first trained unit of the encoder; see ``Injection.boundary``."""
    units = {"embedding": -1, "neck": depth, "decoder": depth + 1}
    blocks = {f"block {index}": index for index in range(depth)}
    return min(((units | blocks)[group] for group in groups), default=depth + 1)
