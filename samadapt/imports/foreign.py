"""A foreign adapter under our names, and the registry of foreign formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.sam.model import Sam


@dataclass(frozen=True)
class MlpBottleneck:
    """Two linears beside an MLP: ``mlp(x) + up relu(down x + down_bias) + up_bias``.

    Attributes:
        down: (hidden, width).
        down_bias: (hidden,).
        up: (width, hidden), with every factor of the source.
        up_bias: (width,), with the same factor.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor


@dataclass(frozen=True)
class Foreign:
    """A foreign adapter under our names.

    Attributes:
        source: the project that the format belongs to.
        updates: low-rank updates ``B A`` of linears by module path: A (r, inputs) and B (outputs,
            r). B includes the scale.
        whole: parameters that the file holds completely, by state-dict name.
        notes: notes for the user.
        bottlenecks: bottlenecks beside MLPs by the path of the MLP.
        memory: tensors of SAM 2's memory, by the names of ``Sam.memory``.
    """

    source: str
    updates: Mapping[str, tuple[Tensor, Tensor]]
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    bottlenecks: Mapping[str, MlpBottleneck] = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ForeignFormat:
    """How to recognise and read the adapters of one source.

    Attributes:
        source: the project.
        knows: returns whether a file with these tensors, and this configuration of a PEFT
            directory, has the format.
        read: translates the tensors for the base, given the file, the tensors, the configuration,
            the base and the user's scale.
    """

    source: str
    knows: Callable[[Mapping[str, Tensor], Mapping[str, Any]], bool]
    read: Callable[[Path, dict[str, Tensor], Mapping[str, Any], Sam, float], Foreign]


FOREIGN_FORMATS: list[ForeignFormat] = []
"""All formats; each file of this package adds its own."""


def check_pair(path: Path, name: str, found: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return A (r, inputs) and B (outputs, r) of an update.

    Args:
        path: the file, for the message.
        name: name of the update, for the message.
        found: the tensors under ``"a"`` and ``"b"``.

    Raises:
        AdapterError: one is missing, or their ranks differ.
    """
    if missing := [part for part in "ab" if part not in found]:
        raise AdapterError(f"{path}: {name} has no {missing[0].upper()}")
    a, b = found["a"], found["b"]
    if a.ndim < 2 or a.ndim != b.ndim or a.shape[0] != b.shape[1]:
        raise AdapterError(
            f"{path}: {name}: A (rank, inputs) and B (outputs, rank) do not fit: "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return a, b


def stack_slices(parts: Mapping[str, tuple[Tensor, Tensor]], width: int) -> tuple[Tensor, Tensor]:
    """Combine updates of q, k and v into one update of a fused qkv, ordered (q | k | v).

    Args:
        parts: A (r, width) and B (width, r) of some of ``"q"``, ``"k"`` and ``"v"``.
        width: number of rows of a slice.
    """
    import torch

    a = torch.cat([low for low, _ in parts.values()])
    # B (3 width, n r) has each part in the rows of its slice and in the columns of its own A.
    b = a.new_zeros(3 * width, len(a))
    column = 0
    for name, (low, high) in parts.items():
        row = "qkv".index(name) * width
        b[row : row + width, column : column + len(low)] = high
        column += len(low)
    return a, b
