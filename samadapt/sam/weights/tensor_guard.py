"""Checks that a checkpoint does not take more memory than its file has bytes.

A torch file is a zip archive whose members torch never compresses, and torch allocates the memory
that a member declares before it reads the member. A tensor may also be a view that repeats one
number a billion times. No program writes such checkpoints.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from samadapt.errors import WeightsError

_TIED = 4
"""How many names may share the same values, on average over a file."""


def check_archive(path: Path) -> None:
    """Check that the members of a torch file are not larger than the file.

    Raises:
        WeightsError: a member is compressed, or the members declare more bytes than the file has.
    """
    if not zipfile.is_zipfile(path):
        return  # the old format is one stream and is read as far as it goes
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    size = path.stat().st_size
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > size:
        raise WeightsError(
            f"{path} was not written by torch.save: its members are compressed or declare more "
            f"than the {size} bytes of the file; save the model's state_dict() again"
        )


def check_dense(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors are plain arrays of numbers.

    Raises:
        WeightsError: a tensor is sparse, quantised, without values, or a view that is larger than
            its storage; or many names share the same values.
    """
    total, held = 0, {}
    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized or tensor.is_nested:
            raise WeightsError(f"{path}: {name} is no plain tensor; save it dense, on the CPU")
        size, storage = tensor.numel() * tensor.element_size(), tensor.untyped_storage()
        if size > storage.nbytes():
            raise WeightsError(f"{path}: {name} repeats its numbers; save it with .contiguous()")
        total += size
        held[storage.data_ptr()] = storage.nbytes()
    if total > _TIED * sum(held.values()):
        raise WeightsError(f"{path}: most tensors share their numbers with others; save copies")


def check_shard(index: Path, name: object) -> str:
    """Return the name of a file that a weights index lists. The file must lie beside the index.

    Raises:
        WeightsError: the name is not a plain file name.
    """
    if not isinstance(name, str) or not name or name != Path(name).name or "\\" in name:
        raise WeightsError(
            f"{index}: expected names of files beside it, without folders; got {str(name)[:80]!r}"
        )
    return name
