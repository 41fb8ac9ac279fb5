"""Keep the predicted labels of a volume compressed until they are drawn."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from samadapt.system.arrays import Array


@dataclass(frozen=True)
class LabelStack:
    """Slices of labels 0..255, each compressed by itself, usually to a hundredth of its size.

    Attributes:
        shape: (h, w) of a slice.
        slices: the compressed bytes of each slice, in order.
    """

    shape: tuple[int, int]
    slices: tuple[bytes, ...]

    @classmethod
    def of(cls, labels: Iterable[Array]) -> LabelStack:
        """Compress slices (h, w) of one shape."""
        maps = [np.ascontiguousarray(one, dtype=np.uint8) for one in labels]
        height, width = maps[0].shape
        return cls((height, width), tuple(zlib.compress(one.data, 1) for one in maps))  # 1: fastest

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.slices)

    def __getitem__(self, index: int) -> Array:
        """Return a slice (h, w) uint8."""
        flat = np.frombuffer(zlib.decompress(self.slices[index]), dtype=np.uint8)
        return flat.reshape(self.shape)


def choose_slice(truth: Array) -> int:
    """Return the index of the slice with the most ground truth, or the middle one without any.

    Args:
        truth: (h, w, d) class ids.
    """
    counts = np.count_nonzero(truth > 0, axis=(0, 1))
    return int(counts.argmax()) if counts.any() else len(counts) // 2
