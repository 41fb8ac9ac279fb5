"""Find a method by its name; combine several methods, as in ``peft=[lora,bias]``.

A combination has a name such as ``lora+bias`` and the options of all its methods. An option that
two methods share has the method's name as prefix, as in ``fact_scale``. ``blocks`` and the options
of the decoder apply to all methods.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic.dataclasses import dataclass

from samadapt.errors import ConfigError, nearest
from samadapt.methods import Method
from samadapt.methods.base import PeftLayers, require, single_method
from samadapt.system.settings import annotation_of, settings_fields

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samadapt.adapters.record import AdapterRecord
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock

_SHARED = {item.name for item in fields(Method)}


@dataclass(frozen=True)
class Combined(Method):
    """Several methods in one; ``combine`` creates a subclass with all their options."""

    parts: ClassVar[tuple[type[Method], ...]] = ()
    keys: ClassVar[dict[tuple[str, str], str]] = {}
    """Name of an option in the combination, by method and the option's name there."""

    @property
    def members(self) -> tuple[Method, ...]:
        """The combined methods with their options."""
        return tuple(
            part(
                **{
                    item.name: getattr(self, self.keys.get((part.name, item.name), item.name))
                    for item in fields(part)
                }
            )
            for part in self.parts
        )

    def check_options(self) -> None:
        """Let each method check its options."""
        _ = self.members

    @property
    def encoders(self) -> tuple[str, ...]:
        """The kinds of encoder that all methods work on."""
        return tuple(e for e in super().encoders if all(e in m.encoders for m in self.members))

    @property
    def stack(self) -> int:
        """The number of slices that one of the methods needs."""
        return max(member.stack for member in self.members)

    def peft_layers(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> tuple[PeftLayers, ...]:
        """Return the layers of all methods."""
        return tuple(layers for m in self.members for layers in m.peft_layers(sam, blocks))

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Inject each method in turn."""
        for member in self.members:
            member.inject(sam, blocks)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return the sum over the methods, which train different parameters."""
        return sum(member.count_parameters(sam, blocks) for member in self.members)

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return the sum over the methods."""
        return sum(member.count_own_decoder_parameters(sam) for member in self.members)

    def merge(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Merge each method, the last one first.

        Raises:
            AdapterError: when a method cannot be merged.
        """
        if not self.can_merge:
            super().merge(sam, blocks)
        for member in reversed(self.members):
            member.merge(sam, blocks)

    def penalty(self, sam: nn.Module) -> Tensor | float:
        """Return the sum over the methods."""
        return sum((member.penalty(sam) for member in self.members), start=0.0)

    def after_step(self, sam: nn.Module, step: int, total: int) -> None:
        """Let each method run after the step."""
        for member in self.members:
            member.after_step(sam, step, total)

    def state_dict(self, sam: nn.Module) -> dict[str, Tensor]:
        """Return the state of each method, under names that begin with the method's."""
        return {f"{m.name}.{key}": x for m in self.members for key, x in m.state_dict(sam).items()}

    def load_state_dict(self, sam: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Restore the state of each method.

        Raises:
            ValueError: when tensors are not those of the model's parameters.
        """
        for member in self.members:
            start = f"{member.name}."
            own = {k.removeprefix(start): x for k, x in state.items() if k.startswith(start)}
            member.load_state_dict(sam, own)


@cache
def combine(names: tuple[str, ...]) -> type[Combined]:
    """Return the combination of several methods.

    Raises:
        ConfigError: for an unknown name, or two methods that change the same modules.
    """
    parts = tuple(single_method(name) for name in names)
    shown = ",".join(names)
    for first, second in combinations(parts, 2):
        both = sorted(first.changes & second.changes)
        reason = f"both change the {' and '.join(both)} of the encoder"
        if "none" in (first.name, second.name):
            reason = "none leaves the encoder as it is"
        require(
            not both,
            f"peft=[{shown}]: {first.name} and {second.name} cannot be combined: {reason}",
        )
    own = [(part, item) for part in parts for item in fields(part) if item.name not in _SHARED]
    count = [item.name for _, item in own]
    # An option gets a prefix only if two methods have one of this name.
    keys = {
        (part.name, item.name): f"{part.name}_{item.name}"
        for part, item in own
        if count.count(item.name) > 1
    }
    options = {
        keys.get((part.name, item.name), item.name): settings_fields(part)[item.name]
        for part, item in own
    }
    namespace = {
        "name": "+".join(names),
        "summary": "; ".join(part.summary for part in parts),
        "can_merge": all(part.can_merge for part in parts),
        "state_copies": max(part.state_copies for part in parts),
        "lr": min(part.lr for part in parts),
        "takes_decoder": all(part.takes_decoder for part in parts),
        "not_in_decoder": "; ".join(
            f"cannot: {part.name} {part.not_in_decoder}" for part in parts if not part.takes_decoder
        ),
        "changes": frozenset().union(*(part.changes for part in parts)),
        "parts": parts,
        "keys": keys,
        "__doc__": Combined.__doc__,
        # pydantic's dataclass takes its fields from the annotations, as if they were written out.
        "__annotations__": {key: annotation_of(option) for key, option in options.items()},
        **{key: copy.copy(option) for key, option in options.items()},
    }
    return cast("type[Combined]", dataclass(frozen=True)(type("Combined", (Combined,), namespace)))


def find_method(name: str) -> type[Method]:
    """Return the class of a method or of a combination such as ``"lora+bias"``.

    Raises:
        ConfigError: for an unknown name, or two methods that cannot be combined.
    """
    return combine(tuple(name.split("+"))) if "+" in name else single_method(name)


def recorded_stack(record: AdapterRecord) -> int:
    """Return how many neighbouring slices a recorded adapter sees together.

    Raises:
        ConfigError: the record's method is not valid.
    """
    of_method = method_from_dict(record.method).stack if record.method else 1
    return max(of_method, int(record.head.get("depth", 1)))


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
