"""Start a training from the weights of another adapter: what fits is loaded, the rest starts anew.

The configuration of the new training decides what is trained. A tensor of the first adapter is
loaded where this training has one of the same name and shape. Mask tokens move with their classes.

A stored tensor may have values that no step changes: the zeros between the blocks of LoRA's B, the
frozen half of PiSSA, the random pair of VeRA. They belong to the method and must agree, since a
resumed run computes them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.adapters.combining import find_method
from samadapt.adapters.injection import group_of
from samadapt.adapters.mask_tokens import (
    Sources,
    TokenUse,
    class_sources,
    is_of_token,
    place_tokens,
    token_sources,
    unmoved,
)
from samadapt.adapters.record import AdapterRecord, check_weights
from samadapt.adapters.store import (
    WEIGHTS,
    load_trainable_state,
    restore_tensors,
    stored_tensors,
    trainable_state,
)
from samadapt.adapters.verify import read_weights
from samadapt.errors import AdapterError
from samadapt.methods.peft_library import PREFIX

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.adapters.injection import Injection
    from samadapt.sam.model import Sam

MASK_TOKENS = f"{PREFIX}mask_decoder.mask_tokens.weight"
SHARED = "shared"
"""The part of tensors that belong to all layers of a method at once, such as VeRA's random pair."""

PART_NAMES = {
    "input": "the projection of the input channels",
    "embedding": "the patch embedding",
    "neck": "the neck",
    "decoder": "the mask decoder",
    "head": "the dense head",
    "memory": "the memory of SAM 2",
}
_MOST_LEAVES = 3
"""Names of tensors that a message lists."""


@dataclass
class TakenOver:
    """What a training takes over from another adapter, in words.

    Attributes:
        kept: parts that start with the weights of the adapter.
        new: parts that start as they do without it.
        left_out: parts of the adapter that have no place in this training.
    """

    kept: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return all of it in one line."""
        parts = {"kept": self.kept, "new": self.new, "left out": self.left_out}
        return "; ".join(f"{name}: {', '.join(of)}" for name, of in parts.items() if of)


@dataclass(frozen=True)
class _Part:
    """The tensors of one part of the model: a block, the neck, the decoder.

    Attributes:
        name: as ``Injection.groups`` names it.
        own: names of the tensors that the training has there.
        given: names of those that the first adapter has, at their new places.
        fits: whether those that both have agree in shape, and in the values that no step changes.
    """

    name: str
    own: frozenset[str]
    given: frozenset[str]
    fits: bool

    @property
    def loaded(self) -> frozenset[str]:
        """Names of the tensors that are loaded."""
        return self.own & self.given if self.fits else frozenset()


def take_over(
    directory: Path, record: AdapterRecord, sam: Sam, injection: Injection, now: TokenUse
) -> TakenOver:
    """Load what fits of an adapter into an injected model.

    Args:
        directory: the adapter directory.
        record: its ``samadapt.json``. Its base is that of the model.
        sam: the model, changed in place.
        injection: what ``inject`` returned.
        now: what the mask tokens of the model stand for.

    Raises:
        AdapterError: the weights are broken or were changed, or nothing of them fits.
    """
    tensors = read_weights(directory / WEIGHTS)
    check_weights(directory, directory / WEIGHTS, record)
    start = {
        key: value.detach().cpu().clone() for key, value in stored_tensors(sam, injection).items()
    }
    fixed = _unchanging(sam, injection, start)
    before = TokenUse.of_record(record)
    sources, classes = token_sources(before, now), class_sources(before, now)
    if MASK_TOKENS not in start or MASK_TOKENS not in tensors:
        sources = unmoved(sources, sam)
    placed = place_tokens(tensors, start, sources, classes, (before, now))
    parts = _parts(sam, start, placed, fixed)
    own_parts = [part for part in parts if part.name != SHARED]
    if not any(part.loaded for part in own_parts):
        raise AdapterError(_nothing_fits(directory, record, injection))
    loaded = {key for part in parts for key in part.loaded}
    restore_tensors(sam, injection, start | _values(loaded, start, placed, fixed))
    if now.has_own_tokens:  # what is said about classes is about their own tokens
        sources = classes if before.has_own_tokens else [None] * len(classes)
    return _Report(record, injection, own_parts).taken_over(before, now, sources)


def _unchanging(sam: Sam, injection: Injection, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return for each stored tensor which of its values no step changes, as a mask of its shape."""
    kept = trainable_state(sam, injection)
    # Move every trained parameter: the stored values that stay depend on none of them.
    load_trainable_state(sam, injection, {name: value + 1 for name, value in kept.items()})
    moved = stored_tensors(sam, injection)
    fixed = {key: moved[key].detach().cpu() == value for key, value in start.items()}
    load_trainable_state(sam, injection, kept)
    return fixed


def _parts(
    sam: Sam,
    start: Mapping[str, Tensor],
    placed: Mapping[str, Tensor],
    fixed: Mapping[str, Tensor],
) -> list[_Part]:
    """Return the parts of the model that the training or the first adapter has tensors of."""
    blocks = sam.attention_blocks()

    def part_of(key: str) -> str:
        return group_of(key.removeprefix(PREFIX), blocks) if key.startswith(PREFIX) else SHARED

    own: dict[str, set[str]] = {}
    given: dict[str, set[str]] = {}
    for members, keys in ((own, start), (given, placed)):
        for key in keys:
            members.setdefault(part_of(key), set()).add(key)
    parts = []
    for name in sorted({*own, *given}, key=_order):
        mine, theirs = frozenset(own.get(name, ())), frozenset(given.get(name, ()))
        fits = all(_fits(start[key], placed[key], fixed[key]) for key in mine & theirs)
        parts.append(_Part(name, mine, theirs, fits))
    # Layers that share tensors mean nothing beside others than those that they were trained with.
    if any(part.name == SHARED and not part.fits for part in parts):
        parts = [_Part(part.name, part.own, part.given, fits=False) for part in parts]
    return parts


def _order(name: str) -> tuple[int, str]:
    """Sort parts as the image passes them, and blocks by their number."""
    index = int(name.removeprefix("block ")) if name.startswith("block ") else -1
    last = ("neck", "decoder", "head", "memory", SHARED)
    return (10_000 + last.index(name) if name in last else index, name)


def _fits(start: Tensor, placed: Tensor, fixed: Tensor) -> bool:
    """Whether a tensor agrees in its shape, and in the values that no step changes."""
    import torch

    return start.shape == placed.shape and torch.allclose(
        # The singular vectors of PiSSA differ by rounding between machines.
        placed[fixed].to(start.dtype),
        start[fixed],
        rtol=1e-3,
        atol=1e-5,
    )


def _values(
    names: Collection[str],
    start: Mapping[str, Tensor],
    placed: Mapping[str, Tensor],
    fixed: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the tensors to load; the values that no step changes stay those of this run."""
    import torch

    return {
        key: torch.where(fixed[key], start[key], placed[key].to(start[key].dtype)) for key in names
    }


@dataclass(frozen=True)
class _Report:
    """Puts into words what was loaded.

    Attributes:
        record: the record of the first adapter.
        injection: the trained parameters of this run.
        parts: the parts of the model.
    """

    record: AdapterRecord
    injection: Injection
    parts: Sequence[_Part]

    def taken_over(self, before: TokenUse, now: TokenUse, sources: Sources) -> TakenOver:
        """Return what is kept, new and left out; the arguments are those of ``token_sources``."""
        here, there = self.injection.method.name, str(self.record.method.get("name"))
        kept = [part for part in self.parts if part.loaded]
        bare = [part for part in self.parts if part.own and not part.given]
        strange = [part for part in self.parts if part.given and not part.own]
        # Parts that both have, under other names or in other shapes.
        unlike = [part for part in self.parts if part.own and part.given and not part.loaded]
        found = TakenOver(
            _named(kept, here),
            [*_named(bare, here), *_named(unlike, here)],
            [*_named(strange, there), *(f"{x} ({self._why()})" for x in _named(unlike, there))],
        )
        found.new += self._leaves(kept, lambda part: part.own - part.given)
        found.left_out += self._leaves(kept, lambda part: part.given - part.own)
        self._tell_of_tokens(found, before, now, sources)
        return found

    def _tell_of_tokens(
        self, found: TakenOver, before: TokenUse, now: TokenUse, sources: Sources
    ) -> None:
        """Add which classes keep their mask token, which are new and which are dropped."""
        if not now.is_semantic:
            if before.is_semantic:
                found.left_out.append(_tokens_of(before.classes))
            return
        decoders = [part for part in self.parts if part.name == "decoder"]
        # Where both leave the decoder frozen, a class keeps its token as well.
        same_decoder = all(part.loaded for part in decoders)
        stays = [
            name
            for place, name in enumerate(now.classes, start=1)
            if same_decoder and sources[place] is not None
        ]
        moved = {name: before.position(name) for name in now.classes if name not in stays}
        if stays:
            found.kept.append(_tokens_of(stays))
        if fresh := [name for name, place in moved.items() if place is None]:
            found.new.append(_tokens_of(fresh))
        for name, place in moved.items():
            if place is not None:
                reason = f"token {place} there, {now.position(name)} here, and not trained by both"
                same = place == now.position(name)
                found.new.append(_tokens_of([name]) + ("" if same else f" ({reason})"))
        if dropped := [name for name in before.classes if name not in now.classes]:
            found.left_out.append(_tokens_of(dropped))

    def _leaves(
        self, parts: Iterable[_Part], keys_of: Callable[[_Part], frozenset[str]]
    ) -> list[str]:
        """Return names of tensors that only one side has in the kept parts, part by part."""
        by_names: dict[str, list[_Part]] = {}
        for part in parts:
            leaves = sorted({_leaf(key) for key in keys_of(part) if not is_of_token(key)})
            more = f" and {len(leaves) - _MOST_LEAVES} more" if len(leaves) > _MOST_LEAVES else ""
            if leaves:
                by_names.setdefault(", ".join(leaves[:_MOST_LEAVES]) + more, []).append(part)
        return [f"{names} of {place}" for names, own in by_names.items() for place in _named(own)]

    def _why(self) -> str:
        """Return why parts of both do not fit: the options of the methods that differ."""
        return options_that_differ(self.record.method, self.injection.method.to_dict()) or (
            "other shapes or names"
        )


def options_that_differ(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return the options in which two methods differ, as ``peft.rank=8 there, 4 here``."""
    if there.get("name") != here.get("name"):
        return f"peft={there.get('name')} there, {here.get('name')} here" + _decoders(there, here)
    keys = [key for key in here if key in there and key not in ("name", "blocks")]
    return ", ".join(
        f"peft.{key}={_plain(there[key])} there, {_plain(here[key])} here"
        for key in keys
        if there[key] != here[key]
    )


def _decoders(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    first, second = there.get("decoder"), here.get("decoder")
    return "" if first == second else f", peft.decoder={first} there, {second} here"


def _plain(value: Any) -> str:
    """Return an option as people type it."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return "null" if value is None else str(value)


def _named(parts: Sequence[_Part], method: str = "") -> list[str]:
    """Return parts in words; the blocks together."""
    numbers = [int(p.name.removeprefix("block ")) for p in parts if p.name.startswith("block ")]
    others = [PART_NAMES.get(p.name, p.name) for p in parts if not p.name.startswith("block ")]
    if not numbers:
        return others
    blocks = (
        f"block {_ranges(numbers)}"
        if len(numbers) == 1
        else (f"{len(numbers)} blocks ({_ranges(numbers)})")
    )
    return [f"{method} in {blocks}" if method else blocks, *others]


def _ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers as ``0-3, 6``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _leaf(key: str) -> str:
    """Return what a tensor is called in its layer: ``qkv.lora_A`` of ``….qkv.lora_A.weight``."""
    names = [name for name in key.split(".") if name not in ("weight", "bias", "default")]
    return ".".join(names[-2:])


def _tokens_of(classes: Sequence[str]) -> str:
    return f"mask token{'s' if len(classes) > 1 else ''} of {', '.join(classes)}"


def _nothing_fits(directory: Path, record: AdapterRecord, injection: Injection) -> str:
    there, here = record.method, injection.method
    options = " ".join(
        f"peft.{key}={_plain(value)}" for key, value in there.items() if key != "name"
    )
    differences = options_that_differ(there, here.to_dict()) or "other blocks of the encoder"
    name = str(there.get("name"))
    text = (
        f"init={directory}: nothing of this adapter fits: {differences}. Train with its own "
        f"method, peft={name} {options}"
    )
    if not find_method(name).can_merge:
        return text
    return (
        f"{text}; or merge it first (samadapt export adapter={directory} to=sam output=FOLDER) and "
        "adapt the result with model.checkpoint=FOLDER/model.pth"
    )
