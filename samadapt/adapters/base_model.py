"""Open an adapter directory together with the base model that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from samadapt.adapters import store
from samadapt.adapters.hub import adapter_path
from samadapt.adapters.record import RECORD, AdapterRecord, read_record
from samadapt.errors import WeightsError

if TYPE_CHECKING:
    from samadapt.adapters.injection import Injection
    from samadapt.sam.model import Sam


@dataclass(frozen=True)
class Adapted:
    """An adapter on its base, loaded and checked.

    Attributes:
        directory: the adapter directory.
        record: its ``samadapt.json``.
        sam: the adapted model.
        injection: the injected method and its parameters.
        checkpoint: file of the base weights; None if they were found by name.
    """

    directory: Path
    record: AdapterRecord
    sam: Sam
    injection: Injection
    checkpoint: Path | None


def open_adapter(directory: str | Path, checkpoint: str | Path | None = None) -> Adapted:
    """Load an adapter and its base, which ``open_base`` finds.

    Args:
        directory: an adapter directory, or ``hf:USER/NAME[@REVISION]``.
        checkpoint: file of the base weights; see ``open_base``.

    Raises:
        AdapterError: the directory is broken or does not fit; names the file and the fault.
        WeightsError: the base weights are not found or are of another kind.
        ConfigError: as ``adapter_path``.
        DownloadError: as ``adapter_path``.
    """
    directory = adapter_path(directory)
    record = read_record(directory)
    sam, base = open_base(directory, record, checkpoint)
    return Adapted(directory, record, sam, store.load_into(directory, sam, record), base)


def open_base(
    directory: Path, record: AdapterRecord, checkpoint: str | Path | None = None
) -> tuple[Sam, Path | None]:
    """Load the base of an adapter. ``store.load_into`` then checks that it is the right one.

    The weights come from ``checkpoint`` if it is given, else from a file of the recorded name in
    the adapter's directory or the working folder, else from the published weights of the build.

    Returns:
        The plain model, and the file of its weights; None if they were found by name.

    Raises:
        WeightsError: the weights are not found or are of another kind.
    """
    from samadapt.sam.weights.loading import load_sam

    base = None if checkpoint is None else Path(checkpoint).expanduser()
    if base is None and record.checkpoint:
        # A bare name, because the record names no folder. The adapter's folder comes first, because
        # an import keeps its changed base there.
        places = (directory / record.checkpoint, Path(record.checkpoint))
        base = next((path for path in places if path.exists()), None)
    try:
        return load_sam(record.base, base, record.image_size), base
    except WeightsError as error:
        raise WeightsError(
            f"{directory / RECORD}: its base model cannot be loaded: {error}. It was trained "
            f"with {record.checkpoint or record.base}; give the file as checkpoint=FILE"
        ) from error
