"""Inject a method into a model: freeze the model, add layers, and report what is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from samadapt.errors import AdapterError, RunError
from samadapt.methods.base import Method, PeftLayers, require, select_blocks

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTuner
    from torch import nn

    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


PROJECTION = "input_projection."
"""Prefix of the parameters that map images of more than three channels to SAM's three."""

CLASSES = "class_tokens."
"""Prefix of the parameters of class tokens, which belong to the decoder."""

GENERATOR = "prompt_generator."
"""Prefix of the parameters of the network that makes prompts."""

HEAD = "dense_head."
"""Prefix of the parameters of the dense head."""

MEMORY = "video_memory."
"""Prefix of the parameters of SAM 2's memory of a video."""


@dataclass
class Injection:
    """The injected method, and the parameters that are trained.

    Attributes:
        method: the method with its options.
        base_name: name of the model's build.
        attention_blocks: the attention blocks that ``peft.blocks`` selected.
        depth: number n of attention blocks in the encoder.
        first_trainable_block: index of the first trained unit of the encoder, for
            ``Sam.encode_prefix``. 0 to n - 1 are blocks, n is the neck, and n + 1 means that
            nothing in the encoder is trained. -1 means that the patch embedding, or a projection
            before it, is trained, so that no part of the encoder is frozen.
        groups: names of the trained parameters by group: ``"input"`` (the projection of more than
            three channels), ``"embedding"``, ``"block 3"``, ``"neck"``, ``"decoder"``,
            ``"head"`` (the dense head, or the prompt generator), ``"memory"`` (that of SAM 2).
        total: number of parameters of the model, including the injected ones.
        peft: the layers that the peft library added, with its tuners.
        parameters: the trained parameters by their name in the model.
    """

    method: Method
    base_name: str
    attention_blocks: tuple[AttentionBlock, ...]
    depth: int
    first_trainable_block: int
    groups: dict[str, list[str]]
    total: int
    peft: tuple[tuple[PeftLayers, BaseTuner], ...] = field(repr=False)
    parameters: dict[str, nn.Parameter] = field(repr=False)

    @property
    def trainable(self) -> int:
        """The number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def has_frozen_prefix(self) -> bool:
        """Whether a first part of the encoder is frozen, so that its output can be kept."""
        return self.first_trainable_block >= 0

    @property
    def plain_peft(self) -> bool:
        """Whether the peft library alone can load the saved adapter: it has one kind of layer."""
        own = {"input", "head", "memory"} & self.groups.keys()
        has_tokens = any(name.startswith(CLASSES) for name in self.parameters)
        return self.method.plain_peft and len(self.peft) <= 1 and not own and not has_tokens

    @property
    def exact(self) -> tuple[str, ...]:
        """Paths of the frozen linears that must keep their exact values; see ``PeftLayers``."""
        return tuple(
            f"{name}.base_layer"  # where peft keeps the linear that it replaced
            for layers, _ in self.peft
            if layers.reads_base
            for name in layers.names
        )

    def count(self, group: str) -> int:
        """Return the number of trained parameters in a group."""
        return sum(self.parameters[name].numel() for name in self.groups[group])

    def report(self) -> str:
        """Return blocks, trained parameters and frozen parts as lines of text."""
        head, decoder, memory = (
            self.count(group) if group in self.groups else 0
            for group in ("head", "decoder", "memory")
        )
        trained = self.trainable
        encoder = trained - decoder - head - memory
        indices = (
            ", ".join(str(block.index) for block in self.attention_blocks) if encoder else "none"
        )
        units = {-1: "nothing", 0: "the patch embedding", self.depth: "all attention blocks"}
        units[self.depth + 1] = "the whole image encoder"
        frozen = units.get(
            self.first_trainable_block, f"everything before block {self.first_trainable_block}"
        )
        rows = {
            "method": f"{self.method.name} on {self.base_name}: {self.method.summary}",
            "blocks": f"{indices} (of {self.depth})",
            "encoder": f"{encoder:,} trained parameters",
            "decoder": f"{decoder:,} trained parameters ({self.method.decoder})",
            **({"head": f"{head:,} trained parameters ({self._head_kind})"} if head else {}),
            **({"memory": f"{memory:,} trained parameters"} if memory else {}),
            "trained": f"{trained:,} of {self.total:,} parameters ({trained / self.total:.2%})",
            "frozen": f"{frozen}; the prompt encoder",
        }
        return "\n".join(f"{key:<8} {text}" for key, text in rows.items())

    @property
    def _head_kind(self) -> str:
        is_generator = self.groups["head"][0].startswith(GENERATOR)
        return "prompt generator" if is_generator else "dense head"

    def check_gradients(self) -> None:
        """Check after the first backward pass that every group has a gradient.

        Raises:
            RunError: naming the groups in which every gradient is missing or zero.
        """
        # One gradient in a group is enough: in the first step that of a LoRA's A is zero, because
        # its B is zero.
        dead = [
            name
            for name, members in self.groups.items()
            if not any(_has_gradient(self.parameters[member]) for member in members)
        ]
        if dead:
            raise RunError(
                f"no gradient reached {', '.join(dead)} after the first backward pass "
                f"(method {self.method.name}); expected one in every trained group. Was the frozen "
                f"prefix cut at block {self.first_trainable_block}, and does the loss use the "
                "model's output?"
            )

    def set_training(self, sam: nn.Module, enabled: bool = True) -> None:
        """Switch training on or off for what needs it; all else stays in evaluation mode.

        That is dropout, and modules with an attribute ``follows_training``, such as the jitter of
        the dense head and the choice of SAM 2's single mask.
        """
        sam.eval()
        # peft names its dropout modules lora_dropout, vera_dropout and so on.
        for name, module in sam.named_modules():
            if "_dropout." in name or getattr(module, "follows_training", False):
                module.train(enabled)


def _has_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool((parameter.grad != 0).any())


def inject(sam: Sam, method: Method) -> Injection:
    """Freeze the model, add the method's modules, and choose the trained parameters.

    The prompt encoder stays frozen. ``method.decoder`` decides about the decoder. The output of
    the model does not change until the first training step.

    Args:
        sam: a model without an adapter; changed in place.
        method: the method with its options.

    Raises:
        ConfigError: when the method or ``peft.blocks`` does not fit the encoder, or a memory shall
            train that the model does not have.
        AdapterError: when the model already carries an adapter.
    """
    from samadapt.methods import peft_library
    from samadapt.sam.tracking import why_no_memory  # it imports torch

    if sam.adapter_names:
        raise AdapterError("this model already carries an adapter; load a fresh one to inject into")
    options = "these options" if method.stack == 1 else f"peft.depth={method.stack}"
    require(
        sam.build.encoder in method.encoders,
        f"peft={method.name} with {options} needs an encoder of kind "
        f"{' or '.join(method.encoders)}; {sam.build.name} has a {sam.build.encoder}",
    )
    if method.memory == "full":
        reason = why_no_memory(sam)
        require(not reason, f"peft.memory=full trains the memory of SAM 2: {reason}")
    every = sam.attention_blocks()
    attention_blocks = select_blocks(method.blocks, every)
    sam.requires_grad_(False)
    plan = peft_library.plan_layers(sam, method, attention_blocks)
    sam.adapter_names = (method.name,)
    # peft's layers come first, because a method may change them, as LoRA replaces their B.
    added = tuple((layers, peft_library.inject_layers(sam, layers)) for layers in plan)
    method.inject(sam, attention_blocks)
    if method.decoder == "full":
        sam.mask_decoder.requires_grad_(True)
    if sam.input_projection is not None:
        sam.input_projection.requires_grad_(True)
    if method.memory == "full":
        sam.add_memory()
    for added_to in (sam.class_tokens, sam.prompt_generator, sam.dense_head, sam.video_memory):
        if added_to is not None:
            added_to.requires_grad_(True)
    trained = {name: p for name, p in sam.named_parameters() if p.requires_grad}
    groups: dict[str, list[str]] = {}
    for name in trained:
        groups.setdefault(group_of(name, every), []).append(name)
    return Injection(
        method=method,
        base_name=sam.build.name,
        attention_blocks=attention_blocks,
        depth=len(every),
        first_trainable_block=_first_trainable_block(groups, len(every)),
        groups=groups,
        total=sum(p.numel() for p in sam.parameters()),
        peft=added,
        parameters=trained,
    )


def group_of(name: str, attention_blocks: Sequence[AttentionBlock]) -> str:
    """Return the group of a trained parameter, which follows from its place in the model."""
    if name.startswith(PROJECTION):
        return "input"
    if name.startswith((HEAD, GENERATOR)):
        return "head"
    if name.startswith(MEMORY):
        return "memory"
    if not name.startswith("image_encoder."):
        return "decoder"
    for block in attention_blocks:
        if name.startswith(f"{block.block}."):
            return f"block {block.index}"
    return "neck" if name.startswith("image_encoder.neck.") else "embedding"


def _first_trainable_block(groups: Mapping[str, object], depth: int) -> int:
    """Return the first trained unit of the encoder; see ``Injection.first_trainable_block``."""
    after = dict.fromkeys(("decoder", "head", "memory"), depth + 1)
    units = {"input": -1, "embedding": -1, "neck": depth, **after}
    blocks = {f"block {index}": index for index in range(depth)}
    # If nothing is trained, the whole encoder is frozen, as when the decoder alone is trained.
    return min(((units | blocks)[group] for group in groups), default=depth + 1)
