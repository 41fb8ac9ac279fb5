"""The memory of SAM 2, which carries objects from slice to slice (Ravi et al. 2024).

Each slice on which an object was segmented leaves a memory: a map of the slice with the mask in it,
and a pointer, which is made of the mask's token. The embedding of another slice attends to them,
and the mask decoder then finds the object without a prompt. A slice attends to

- the maps of all prompted slices and of the last six others,
- the pointers of the prompted slices before it and of the last fifteen others.

The tensors have the official state-dict names. ``Sam.memory`` holds them, since only volumes need
them; ``tracking.py`` uses them slice by slice. A memory that trains is a part of the model,
``Sam.video_memory``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.layers import MLP
from samadapt.sam.memory_attention import MemoryAttention, rotary_angles
from samadapt.sam.memory_encoder import MemoryEncoder

if TYPE_CHECKING:
    from samadapt.sam.weights.builds import Build

MAPS = 7
"""Maps that a slice attends to if one slice is prompted."""
POINTERS = 16
"""Pointers that a slice attends to if one slice is prompted."""
MEMORY_WIDTH = 64
"""Channels of a memory in all sizes of SAM 2."""
NO_OBJECT = -1024.0
"""Logit of the pixels of an object that is not on a slice."""
_SCALE, _SHIFT = 20.0, -10.0  # of a mask of 0 to 1 before it is encoded


@dataclass(frozen=True)
class SliceMemory:
    """What one slice leaves of n objects.

    Attributes:
        maps: (n, g * g, k).
        pointers: (n, c).
    """

    maps: Float[Tensor, "n cells k"]
    pointers: Float[Tensor, "n c"]

    def take(self, rows: Sequence[int]) -> SliceMemory:
        """Return the memory of some of the objects."""
        return SliceMemory(self.maps[list(rows)], self.pointers[list(rows)])


@dataclass
class MemoryBank:
    """The memories of n objects that go through a volume together, in one direction.

    Attributes:
        prompted: memories of the slices on which all of them are prompted, by slice.
        tracked: memories of the slices that they have passed, by slice.
    """

    prompted: dict[int, SliceMemory]
    tracked: dict[int, SliceMemory] = field(default_factory=dict)

    def add(self, index: int, memory: SliceMemory) -> None:
        """Keep the memory of a slice, and drop those that are too far away to be used again."""
        self.tracked[index] = memory
        self.tracked = {i: m for i, m in self.tracked.items() if abs(i - index) < POINTERS}

    def take(self, rows: Sequence[int]) -> MemoryBank:
        """Return the memories of some of the objects."""
        parts = (self.prompted, self.tracked)
        return MemoryBank(*({i: m.take(rows) for i, m in part.items()} for part in parts))

    def maps(self, index: int, step: int) -> list[tuple[int, Float[Tensor, "n cells k"]]]:
        """Return the maps that a slice attends to, by their distance; 0 stands for a prompt.

        Args:
            index: the slice.
            step: 1 upwards, -1 downwards.
        """
        found = [(0, memory.maps) for memory in self.prompted.values()]
        for distance in range(1, MAPS):
            if (memory := self.tracked.get(index - step * distance)) is not None:
                found.append((distance, memory.maps))
        return found

    def pointers(self, index: int, step: int, most: int) -> list[tuple[int, Float[Tensor, "n c"]]]:
        """Return the pointers that a slice attends to, by their distance.

        Args:
            index: the slice.
            step: 1 upwards, -1 downwards.
            most: their number if one slice is prompted.
        """
        distances = ((step * (index - i), memory) for i, memory in self.prompted.items())
        found = [(distance, memory.pointers) for distance, memory in distances if distance >= 0]
        for distance in range(1, most):
            if (memory := self.tracked.get(index - step * distance)) is not None:
                found.append((distance, memory.pointers))
        return found


class VideoMemory(nn.Module):
    """The networks that make memories and attend to them.

    Args:
        build: a SAM 2. Version 2.1 also says when a pointer was made, and marks the maps of slices
            without the object.
    """

    def __init__(self, build: Build) -> None:
        super().__init__()
        width = build.prompt_width
        self.memory_attention = MemoryAttention(width, MEMORY_WIDTH, build.decoder_mlp)
        self.memory_encoder = MemoryEncoder(width, MEMORY_WIDTH)
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(MAPS, 1, 1, MEMORY_WIDTH))
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, width))
        self.obj_ptr_proj = MLP(width, width, width)
        self.register_parameter("no_obj_embed_spatial", None)
        self.register_module("obj_ptr_tpos_proj", None)
        if build.version == "2.1":
            self.no_obj_embed_spatial = nn.Parameter(torch.zeros(1, MEMORY_WIDTH))
            self.obj_ptr_tpos_proj = nn.Linear(width, MEMORY_WIDTH)

    no_obj_embed_spatial: nn.Parameter | None
    obj_ptr_tpos_proj: nn.Linear | None

    def encode(
        self,
        embeddings: Float[Tensor, "n c g g"],
        logits: Float[Tensor, "n 1 s s"],
        scores: Float[Tensor, "n 1"],
        *,
        binary: bool,
    ) -> Float[Tensor, "n cells k"]:
        """Make maps (n, g * g, k) of a slice and the masks of n objects in it.

        Args:
            embeddings: (n, c, g, g), the embedding of the slice without a condition.
            logits: (n, 1, 4g, 4g) of the masks.
            scores: (n, 1), above 0 if the object is there.
            binary: encode the masks instead of their probabilities, as for prompted slices.
        """
        side = 4 * logits.shape[-1]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        large = functional.interpolate(wide, (side, side), mode="bilinear")
        masks = (large > 0).to(large.dtype) if binary else large.sigmoid()
        maps = self.memory_encoder(embeddings, (_SCALE * masks + _SHIFT).to(logits.dtype))
        if self.no_obj_embed_spatial is not None:
            absent = (scores <= 0).to(maps.dtype)[..., None, None]
            maps = maps + absent * self.no_obj_embed_spatial[..., None, None]
        cells: Tensor = maps.flatten(2).transpose(1, 2)
        return cells

    def point(
        self, tokens: Float[Tensor, "n c"], scores: Float[Tensor, "n 1"]
    ) -> Float[Tensor, "n c"]:
        """Make pointers (n, c) of the decoded tokens of n masks; ``scores`` as in ``encode``."""
        pointers: Tensor = self.obj_ptr_proj(tokens)
        return torch.where(scores > 0, pointers, self.no_obj_ptr.to(pointers.dtype))

    def condition(
        self,
        embeddings: Float[Tensor, "n c g g"],
        bank: MemoryBank,
        index: int,
        step: int,
        slices: int,
    ) -> Float[Tensor, "n c g g"]:
        """Condition the embedding of a slice on the memories of n objects.

        Args:
            embeddings: (n, c, g, g), without a condition.
            bank: the memories.
            index: the slice.
            step: 1 upwards, -1 downwards.
            slices: number of slices of the volume. Fewer than ``POINTERS`` make the code of a
                pointer's distance coarser, as in sam2.
        """
        width, side = embeddings.shape[1], embeddings.shape[-1]
        x = embeddings.flatten(2).transpose(1, 2)
        x = x + 0.1 * sine_grid(side, width).to(x)
        most = min(slices, POINTERS)
        maps, pointers = bank.maps(index, step), bank.pointers(index, step, most)
        # A pointer has as many channels as several cells of a map, and becomes that many tokens.
        tokens = torch.stack([pointer for _, pointer in pointers], dim=1)  # (n, pointers, c)
        tokens = tokens.unflatten(-1, (-1, MEMORY_WIDTH)).flatten(1, 2)
        cells = sine_grid(side, MEMORY_WIDTH).to(x)
        codes = [cells + self.maskmem_tpos_enc[distance - 1].view(1, -1) for distance, _ in maps]
        codes.append(self._pointer_codes([distance for distance, _ in pointers], most, x))
        memories = torch.cat([*(cells.to(x.dtype) for _, cells in maps), tokens.to(x.dtype)], dim=1)
        code = torch.cat(codes).expand(len(x), -1, -1)
        angles = rotary_angles(side, width).to(x.device)
        out = self.memory_attention(x, memories, code, angles, tokens.shape[1])
        conditioned: Tensor = out.transpose(1, 2).unflatten(-1, (side, side))
        return conditioned

    def _pointer_codes(self, distances: Sequence[int], most: int, like: Tensor) -> Tensor:
        """Return the codes (tokens, k) of pointers."""
        width = self.no_obj_ptr.shape[1]
        parts = width // MEMORY_WIDTH
        if self.obj_ptr_tpos_proj is None:
            return like.new_zeros(parts * len(distances), MEMORY_WIDTH)
        places = torch.tensor(distances, dtype=torch.float32) / (most - 1)
        phases = places[:, None] / _periods(width // 2)
        sines = torch.cat([phases.sin(), phases.cos()], dim=-1)
        codes: Tensor = self.obj_ptr_tpos_proj(sines.to(like))
        return codes.repeat_interleave(parts, dim=0)


def make_memory(build: Build, tensors: Mapping[str, Tensor]) -> VideoMemory:
    """Return the networks of a memory, which share the tensors given.

    Args:
        build: a SAM 2.
        tensors: the tensors of its memory by their published names; further ones are left out.
    """
    with torch.device("meta"):
        memory = VideoMemory(build)
    memory.load_state_dict({name: tensors[name] for name in memory.state_dict()}, assign=True)
    return memory


def memory_tensors(build: Build) -> dict[str, Tensor]:
    """Return tensors without values, of the shapes that the file of a build has.

    Three of them are not in ``VideoMemory``, because nothing needs them: one is for videos without
    a memory, and two are for masks that replace the answer of the model. Here a mask is a prompt.
    """
    with torch.device("meta"):
        return VideoMemory(build).state_dict() | {
            "mask_downsample.weight": torch.empty(1, 1, 4, 4),
            "mask_downsample.bias": torch.empty(1),
            "no_mem_pos_enc": torch.empty(1, 1, build.prompt_width),
        }


@cache
def sine_grid(side: int, width: int) -> Float[Tensor, "cells width"]:
    """Return the code (side * side, width) of each cell: of its row, then of its column."""
    places = torch.arange(1, side + 1, dtype=torch.float32) / (side + 1e-6) * (2 * math.pi)
    phases = places[:, None] / _periods(width // 2)  # (side, width / 2)
    # Sines of the even channels and cosines of the odd ones take turns.
    codes = torch.stack([phases[:, 0::2].sin(), phases[:, 1::2].cos()], dim=-1).flatten(1)
    rows = codes[:, None].expand(-1, side, -1)
    columns = codes[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def _periods(count: int) -> Tensor:
    """Return the periods (count,) of sines and cosines, of which two each are equal."""
    pairs = torch.arange(count, dtype=torch.float32).div(2, rounding_mode="floor")
    return 10_000.0 ** (2 * pairs / count)
