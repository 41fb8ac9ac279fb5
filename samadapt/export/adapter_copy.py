"""``to=adapter``: a copy of the adapter directory, to publish it for ``hf:USER/NAME``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from samadapt.adapters.hub import FILES, adapter_path
from samadapt.adapters.record import RECORD, UNET_RECORD, check_weights
from samadapt.adapters.verify import read_json
from samadapt.export.target import CARD, Exported, check_output
from samadapt.system import atomic

if TYPE_CHECKING:
    from samadapt.adapters.record import AdapterRecord

PEFT_CONFIG = "adapter_config.json"
OWN_KIND = "SAMADAPT_"
"""Kinds that peft does not know begin so in ``adapter_config.json``."""


def copy_adapter(directory: str | Path, output: str | Path) -> Exported:
    """Copy the files of an adapter, or of a U-Net, after comparing their digests.

    A base that lies beside an imported adapter is copied too. Cards of earlier versions, which do
    not say how to build the base, are written anew.

    Args:
        directory: the adapter directory, or ``hf:USER/NAME[@REVISION]``.
        output: the folder to create; it may exist if it is empty.

    Raises:
        AdapterError: the adapter is broken or was changed, or the output is not empty.
        ConfigError: as ``adapter_path``.
        DownloadError: as ``adapter_path``.
    """
    from samadapt.baselines.store import read_trained

    source, output = adapter_path(directory), Path(output).expanduser()
    check_output(output)
    record = read_trained(source)
    name = UNET_RECORD if (source / UNET_RECORD).is_file() else RECORD
    check_weights(source, source / FILES[name], record)
    wanted = [name, FILES[name], PEFT_CONFIG, *([record.checkpoint] if record.checkpoint else [])]
    with atomic.folder(output) as scratch:
        for one in wanted:
            if (source / one).is_file():
                shutil.copyfile(source / one, scratch / one)
        atomic.write_text(scratch / CARD, _card(source, record))
    files = {path.name: path.stat().st_size for path in sorted(output.iterdir())}
    return Exported("adapter", output, files, None)


def _card(source: Path, record: AdapterRecord) -> str:
    """Return the card in the directory, which a person may have edited, or a new one."""
    from samadapt.adapters.card import fits_plain_base, model_card

    card = source / CARD
    if card.is_file() and "## Limits" in (text := card.read_text(encoding="utf-8")):
        return text
    config = read_json(source / PEFT_CONFIG) if (source / PEFT_CONFIG).is_file() else {}
    kind = str(config.get("peft_type", OWN_KIND))
    plain_peft = not kind.startswith(OWN_KIND) and fits_plain_base(record)
    return model_card(record, None, plain_peft=plain_peft)
