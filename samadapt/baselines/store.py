"""The folder of a trained U-Net: its weights, and ``unet.json`` with what is needed to use it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

import torch

from samadapt.adapters.card import model_card
from samadapt.adapters.record import (
    RECORD,
    UNET_RECORD,
    AdapterRecord,
    check_weights,
    read_record,
    write_record,
)
from samadapt.adapters.store import CARD, package_versions, read_watershed
from samadapt.adapters.verify import check_finite, check_tensors, read_weights
from samadapt.baselines.build import UNetBuild
from samadapt.baselines.unet import UNet, make_unet
from samadapt.errors import AdapterError, ConfigError
from samadapt.system import atomic
from samadapt.system.settings import check_value

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "unet.safetensors"


def save_unet(directory: Path, model: UNet, record: AdapterRecord) -> None:
    """Write the folder of a U-Net. An existing one is replaced when the new one is complete.

    Args:
        directory: the folder to create, with its parents.
        model: the trained U-Net.
        record: the entries of ``unet.json``; ``method``, ``preprocessing`` and ``versions`` are
            filled in here.

    Raises:
        AdapterError: when a weight is not finite.
        WriteError: when the folder cannot be written; an existing one then stays as it is.
    """
    from safetensors.torch import save_file

    tensors = {
        name: value.detach().cpu().contiguous().clone() for name, value in stored(model).items()
    }
    check_finite(tensors, directory / WEIGHTS)
    record = replace(
        record,
        method={"name": "unet", **model.build.to_dict()},
        preprocessing=asdict(model.preprocessing),
        versions=package_versions(),
    )
    with atomic.folder(directory, sum(value.nbytes for value in tensors.values())) as fresh:
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        # This comes after the weights, because the record holds the sha256 of their file.
        write_record(fresh, record, fresh / WEIGHTS, UNET_RECORD)
        trained = sum(parameter.numel() for parameter in model.parameters())
        atomic.write_text(fresh / CARD, model_card(record, trained))


def load_unet(directory: Path) -> tuple[UNet, AdapterRecord]:
    """Load a U-Net that ``save_unet`` wrote, on the CPU and in evaluation mode.

    Raises:
        AdapterError: naming the file. It is missing, broken or changed.
    """
    record = read_record(directory, UNET_RECORD)
    path = directory / UNET_RECORD
    hints = get_type_hints(UNetBuild)
    try:
        # `maps` is left out where it is 1.
        entries = {key: record.method[key] for key in hints if key != "maps"}
        entries["maps"] = record.method.get("maps", 1)
        pairs = ("mean", "std")  # JSON has lists for tuples
        entries |= {key: tuple(entries[key]) for key in pairs}
        build = UNetBuild(**{key: check_value(v, hints[key]) for key, v in entries.items()})
        model = make_unet(build, read_watershed(path, record), fetch=False)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise AdapterError(f"{path}: method: expected the shape of a U-Net: {error}") from error
    tensors = read_weights(directory / WEIGHTS)
    own = stored(model)
    check_tensors(directory / WEIGHTS, tensors, own)
    check_weights(directory, directory / WEIGHTS, record)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
    return model.eval(), record


def read_trained(directory: Path) -> AdapterRecord:
    """Return the record of an adapter, or of a U-Net.

    Raises:
        AdapterError: as ``read_record``.
    """
    is_unet = (directory / UNET_RECORD).is_file()
    return read_record(directory, UNET_RECORD if is_unet else RECORD)


def stored(model: UNet) -> dict[str, Tensor]:
    """Return the tensors of a U-Net that are kept: its parameters, and the statistics of norms.

    DynUNet holds each block under two names, of which the first counts.
    """
    kept = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in kept}
    return {**dict(model.named_parameters()), **buffers}
