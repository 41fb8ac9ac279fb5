"""Carry mask tokens over from one adapter to another, by the names of their classes.

Without prompts, mask token k predicts class k. Three parts of the mask decoder belong to a token: a
row of ``mask_tokens``, a hypernetwork, and a row of the last layer of the IoU head. They move
together. Token 0 gives the single mask and always stays at its place. A dense head ends in a layer
with a row for each class, and these move alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samadapt.sam.watershed import MAPS_PER_CLASS

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.adapters.record import AdapterRecord
    from samadapt.sam.model import Sam

_HYPERNETWORK = re.compile(r"(.*mask_decoder\.output_hypernetworks_mlps\.)(\d+)(\..+)")

_CLASS_HYPERNETWORK = re.compile(r"(.*class_tokens\.hypernetworks\.)(\d+)(\..+)")
_CLASS_TOKENS = re.compile(r".*class_tokens\.tokens\.weight")

Sources = Sequence[int | None]
"""For each mask token of a model, the token of the first adapter that it comes from; None: none."""


@dataclass(frozen=True)
class TokenUse:
    """What the mask tokens of a model stand for.

    Attributes:
        classes: the class of token 1, 2 and so on, if tokens predict classes.
        is_semantic: whether they do; otherwise the tokens are the masks of an ambiguous prompt.
        count: the number of tokens without the one of the single mask.
        maps: maps of each class that a dense head predicts: its logit, or distances too.
        has_own_tokens: classes have tokens of their own (``sam/class_tokens.py``), so that the mask
            tokens answer to prompts.
    """

    classes: Sequence[str]
    is_semantic: bool
    count: int
    maps: int = 1
    has_own_tokens: bool = False

    @property
    def by_mask_tokens(self) -> bool:
        """Whether the mask tokens predict classes."""
        return self.is_semantic and not self.has_own_tokens

    @classmethod
    def of_record(cls, record: AdapterRecord) -> TokenUse:
        """Return what the mask tokens of an adapter stand for."""
        own = record.class_tokens > 0
        is_semantic = own or record.prompt.get("kind") == "semantic"
        maps = MAPS_PER_CLASS if record.separates_objects else 1
        return cls(record.classes, is_semantic, record.num_masks, maps, has_own_tokens=own)

    def position(self, name: str) -> int | None:
        """Return the token of a class, or None if no token predicts it."""
        known = self.is_semantic and name in self.classes
        return list(self.classes).index(name) + 1 if known else None


Uses = tuple[TokenUse, TokenUse]
"""What the mask tokens of the first adapter, and those of the model that is trained, stand for."""


def token_sources(before: TokenUse, now: TokenUse) -> list[int | None]:
    """Return the token of the first adapter from which each token of a model comes.

    Classes are matched by name. Tokens of no class keep their place. A token that stood for a class
    says nothing about the masks of an ambiguous prompt, and the reverse, so these start anew.

    Args:
        before: the tokens of the first adapter.
        now: the tokens of the model that is trained.
    """
    sources: list[int | None] = [0]
    for place in range(1, now.count + 1):
        if now.by_mask_tokens and before.by_mask_tokens and place <= len(now.classes):
            sources.append(before.position(now.classes[place - 1]))
            continue
        # In both models this token stands for the same: a mask of a prompt, or nothing.
        free = not before.by_mask_tokens or place > len(before.classes)
        alike = before.by_mask_tokens == now.by_mask_tokens
        sources.append(place if alike and free and place <= before.count else None)
    return sources


def class_sources(before: TokenUse, now: TokenUse) -> list[int | None]:
    """Return for each class of a model, from 1 on, that of the first adapter with its name."""
    if not now.is_semantic:
        return [0]
    return [0, *(before.position(name) for name in now.classes)]


def unmoved(sources: Sources, sam: Sam) -> list[int | None]:
    """Return the sources that also hold where the mask tokens themselves are frozen.

    A class then depends on the frozen token at its place. It may move only between tokens that are
    copies of the same token of the base (``Sam.resize_mask_tokens``).
    """
    import torch

    rows = sam.mask_decoder.mask_tokens.weight[1:]
    # The tokens repeat after those of the base: 1 2 3 1 2 for a base of 3 and a model of 5.
    period = next(
        n for n in range(1, len(rows) + 1) if torch.equal(rows[n:], rows[: len(rows) - n])
    )
    return [
        source if source in (None, 0) or (source - place) % period == 0 else None
        for place, source in enumerate(sources)
    ]


def place_tokens(
    tensors: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    sources: Sources,
    classes: Sources,
    uses: Uses,
) -> dict[str, Tensor]:
    """Return the tensors of the first adapter as the model would name and order them.

    Args:
        tensors: the tensors of the first adapter by name.
        start: those of the model, whose rows stay where a token has no source.
        sources: see ``token_sources``.
        classes: see ``class_sources``; the classes of a dense head, and those with tokens of their
            own, may move where mask tokens may not.
        uses: what the tokens of the first adapter and of the model stand for.
    """
    placed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if match := _HYPERNETWORK.fullmatch(key):
            head, number, tail = match.groups()
            copies = [place for place, source in enumerate(sources) if source == int(number)]
            placed |= {f"{head}{place}{tail}": value for place in copies}
        elif match := _CLASS_HYPERNETWORK.fullmatch(key):
            head, number, tail = match.groups()
            copies = [place for place, source in enumerate(classes) if source == int(number) + 1]
            placed |= {f"{head}{place - 1}{tail}": value for place in copies}
        elif key in start and _CLASS_TOKENS.fullmatch(key) and value.ndim == start[key].ndim:
            rows = [None if source is None else source - 1 for source in classes[1:]]
            placed[key] = _moved(start[key], value, rows)
        elif key in start and has_token_rows(key) and value.shape[1:] == start[key].shape[1:]:
            placed[key] = _moved(start[key], value, sources)
        elif key in start and _HEAD_ROWS.fullmatch(key) and value.shape[1:] == start[key].shape[1:]:
            rows = _head_rows(classes, uses, (len(value), len(start[key])))
            placed[key] = _moved(start[key], value, rows)
        else:
            placed[key] = value
    return placed


def _head_rows(classes: Sources, uses: Uses, rows: tuple[int, int]) -> list[int | None]:
    """Return the row of the first adapter's head from which each row of the model's head comes.

    The rows are ordered by map, then by class, then by cell: a head with ``patch`` above 1 has
    several rows for each map of a class.

    Args:
        classes: for each class of the model, from 1 on, that of the first adapter; see
            ``place_tokens``.
        uses: what the tokens of the first adapter and of the model stand for.
        rows: number of rows of the two heads.
    """
    (old_maps, old), (maps, own) = ((use.maps, len(use.classes)) for use in uses)
    cells = rows[1] // (maps * own)
    found: list[int | None] = []
    for place in range(maps):
        for source in classes[1 : own + 1]:
            known = source and place < old_maps and rows[0] == old_maps * old * cells
            first = (place * old + (source or 1) - 1) * cells
            found += [first + cell if known else None for cell in range(cells)]
    return found


def _moved(start: Tensor, given: Tensor, sources: Sources) -> Tensor:
    """Return the rows of ``start``, where they have a source with those of ``given``."""
    rows = start.clone()
    for place, source in enumerate(sources[: len(rows)]):
        if source is not None and source < len(given):
            rows[place] = given[source]
    return rows


def is_of_token(key: str) -> bool:
    """Return whether a tensor belongs to one mask token, or to one class token, alone."""
    return any(pattern.fullmatch(key) for pattern in (_HYPERNETWORK, _CLASS_HYPERNETWORK))


_TOKEN_ROWS = re.compile(
    r".*mask_decoder\.(mask_tokens|iou_prediction_head\.layers\.2)(\.base_layer)?"
    # Of a LoRA, B and the magnitude have a row for each output; A has none.
    r"\.(weight|bias|lora_B\.weight|lora_magnitude_vector)"
)

_HEAD_ROWS = re.compile(r".*dense_head\.out\.(weight|bias)")


def has_token_rows(key: str) -> bool:
    """Return whether a tensor has a row for each mask token."""
    return _TOKEN_ROWS.fullmatch(key) is not None
