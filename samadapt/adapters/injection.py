"""Methods into models: what stays frozen, and the report of what is trained."""

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
"""Prefix of the parameters that bring more than three channels to SAM's three."""


@dataclass
class Injection:
    """What was injected, and what of the model is trained.

    Attributes:
        method: the options.
        base_name: name of the model's build.
        attention_blocks: the attention blocks that were selected.
        depth: number n of attention blocks in the encoder.
        first_trainable_block: first unit of the encoder that is trained, for
            ``Sam.encode_prefix``: 0 to n - 1 a block, n the neck, n + 1 nothing in the encoder; -1:
            the patch embedding, or what stands before it, is trained too, so there is no frozen
            prefix.
        groups: names of the trained parameters by group: ``"input"`` (the projection of more than
            three channels), ``"embedding"``, ``"block 3"``, ``"neck"``, ``"decoder"``.
        total: parameters of the model, with what was injected.
        peft: what peft added, with its tuner.
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
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def share(self) -> float:
        """Trained parameters over all parameters, 0 to 1."""
        return self.trainable / self.total

    @property
    def has_frozen_prefix(self) -> bool:
        """Whether ``Sam.encode_prefix(images, boundary)`` is constant during training."""
        return self.first_trainable_block >= 0

    @property
    def plain_peft(self) -> bool:
        """Whether peft alone can load what is saved: it is one kind of peft's."""
        return self.method.plain_peft and len(self.peft) <= 1 and "input" not in self.groups

    @property
    def exact(self) -> tuple[str, ...]:
        """Paths of the frozen linears whose exact values the arithmetic needs."""
        return tuple(
            f"{name}.base_layer"
            for layers, _ in self.peft
            if layers.reads_base
            for name in layers.names
        )

    def count(self, group: str) -> int:
        """Return the number of trained parameters in a group."""
        return sum(self.parameters[name].numel() for name in self.groups[group])

    def report(self) -> str:
        """Return the sites, the trained and total parameters and their share, as lines of text."""
        encoder = sum(self.count(group) for group in self.groups if group != "decoder")
        decoder = self.trainable - encoder
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
                f"prefix cut at block {self.first_trainable_block}, and does the loss use the "
                "model's output?"
            )

    def set_training(self, sam: Sam, enabled: bool = True) -> None:
        """Switch the injected dropout on or off; everything frozen stays in evaluation mode."""
        sam.eval()
        for name, module in sam.named_modules():
            if "_dropout." in name:
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
    from samadapt.methods import peft_library

    if sam.adapter_names:
        raise AdapterError("this model already carries an adapter; load a fresh one to inject into")
    options = "these options" if method.stack == 1 else f"peft.depth={method.stack}"
    require(
        sam.build.encoder in method.encoders,
        f"peft={method.name} with {options} needs an encoder of kind "
        f"{' or '.join(method.encoders)}; {sam.build.name} has a {sam.build.encoder}",
    )
    every = sam.attention_blocks()
    attention_blocks = select_blocks(method.blocks, every)
    sam.requires_grad_(False)
    plan = peft_library.plan_layers(sam, method, attention_blocks)
    sam.adapter_names = (method.name,)
    added = tuple((layers, peft_library.inject_layers(sam, layers)) for layers in plan)
    method.inject(sam, attention_blocks)
    if method.decoder == "full":
        sam.mask_decoder.requires_grad_(True)
    if sam.input_projection is not None:
        sam.input_projection.requires_grad_(True)
    trained = {name: p for name, p in sam.named_parameters() if p.requires_grad}
    groups: dict[str, list[str]] = {}
    for name in trained:
        groups.setdefault(_group(name, every), []).append(name)
    return Injection(
        method=method,
        base_name=sam.build.name,
        attention_blocks=attention_blocks,
        depth=len(every),
        first_trainable_block=_boundary(groups, len(every)),
        groups=groups,
        total=sum(p.numel() for p in sam.parameters()),
        peft=added,
        parameters=trained,
    )


def _group(name: str, attention_blocks: Sequence[AttentionBlock]) -> str:
    """Return the group of a trained parameter, by where it sits."""
    if name.startswith(PROJECTION):
        return "input"
    if not name.startswith("image_encoder."):
        return "decoder"
    for block in attention_blocks:
        if name.startswith(f"{block.block}."):
            return f"block {block.index}"
    return "neck" if name.startswith("image_encoder.neck.") else "embedding"


def _boundary(groups: Mapping[str, object], depth: int) -> int:
    """Return the first trained unit of the encoder; see ``Injection.boundary``."""
    units = {"input": -1, "embedding": -1, "neck": depth, "decoder": depth + 1}
    blocks = {f"block {index}": index for index in range(depth)}
    return min(((units | blocks)[group] for group in groups), default=depth + 1)
