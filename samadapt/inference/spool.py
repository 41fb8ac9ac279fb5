"""Set tensors aside: in memory up to a limit, in a temporary file beyond it."""

from __future__ import annotations

from collections.abc import Hashable
from math import prod
from tempfile import SpooledTemporaryFile

import torch
from torch import Tensor

LIMIT = 2**28
"""Bytes that are kept in memory: 64 embeddings of ViT-B at 1024 px in fp32."""


class Spool:
    """Tensors by key. It is a context manager, whose end deletes the temporary file.

    Args:
        limit: bytes in memory. Beyond it all tensors lie in an unnamed temporary file.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._file = SpooledTemporaryFile(max_size=limit)  # noqa: SIM115  closed by __exit__
        self._places: dict[Hashable, tuple[int, torch.dtype, tuple[int, ...]]] = {}

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, key: Hashable) -> bool:
        """Whether a tensor has this key."""
        return key in self._places

    def put(self, key: Hashable, value: Tensor) -> None:
        """Set a tensor aside under a key."""
        place = self._file.seek(0, 2)
        self._places[key] = (place, value.dtype, tuple(value.shape))
        # The bytes of the tensor as they are, so that bf16 needs no conversion.
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        self._file.write(raw.numpy().data)

    def get(self, key: Hashable) -> Tensor:
        """Return the tensor of a key, on the CPU."""
        place, dtype, shape = self._places[key]
        self._file.seek(place)
        # A bytearray, because torch.frombuffer warns about bytes, which cannot be written.
        raw = bytearray(self._file.read(prod(shape) * dtype.itemsize))
        return torch.frombuffer(raw, dtype=dtype).reshape(shape)
