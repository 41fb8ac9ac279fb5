"""What a foreign adapter changes in SAM, whatever its file calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.sam.model import Sam


@dataclass(frozen=True)
class Foreign:
    """A foreign adapter under our names.

    Attributes:
        source: the project whose format it is.
        updates: low-rank updates ``B A`` of linears, by module path: A (r, inputs) and B
            (outputs, r), any scale within B.
        whole: parameters given whole, by state-dict name.
        notes: what the user should know.
    """

    source: str
    updates: Mapping[str, tuple[Tensor, Tensor]]
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """How one source's adapters are known and read.

    Attributes:
        source: the project.
        knows: whether a file with these keys is one; the configuration is a PEFT directory's.
        read: translates tensors for the base; with the configuration and the user's scale.
    """

    source: str
    knows: Callable[[Mapping[str, Tensor], Mapping[str, Any]], bool]
    read: Callable[[Path, dict[str, Tensor], Mapping[str, Any], Sam, float], Foreign]


READERS: list[Reader] = []
"""Every source, each adding itself."""


def stack_slices(parts: Mapping[str, tuple[Tensor, Tensor]], width: int) -> tuple[Tensor, Tensor]:
    """Return one update of a fused qkv, ordered (q | k | v), from those of its slices.

    Args:
        parts: A (r, width) and B (width, r) of ``"q"``, ``"k"`` or ``"v"``.
        width: rows of a slice.
    """
    import torch

    a = torch.cat([low for low, _ in parts.values()])
    b = a.new_zeros(3 * width, len(a))
    column = 0
    for name, (low, high) in parts.items():
        row = "qkv".index(name) * width
        b[row : row + width, column : column + len(low)] = high
        column += len(low)
    return a, b
