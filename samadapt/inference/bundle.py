"""An adapter ready to be used: the model with the rules of its record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.adapters import store
from samadapt.adapters.combining import method_from_dict
from samadapt.adapters.record import RECORD, AdapterRecord, read_record
from samadapt.adapters.sharing import share
from samadapt.data.intensity import IntensityRule, make_intensity
from samadapt.data.tiles import Tiling, recorded_tiling
from samadapt.errors import AdapterError, ConfigError, PromptError
from samadapt.prompts.policy import PromptPolicy

if TYPE_CHECKING:
    from samadapt.sam.model import Sam


@dataclass(frozen=True)
class AdapterBundle:
    """An adapter ready to be used.

    Attributes:
        sam: the adapted model, over the base's tensors.
        record: what the adapter was trained for.
        policy: its prompt policy.
        intensity: its intensity rule.
        encoder: the same for all whose encoder is the base's.
        tiling: how pictures are cut; None: they are seen whole.
        stack: slices of a volume that the encoder sees together.
    """

    sam: Sam
    record: AdapterRecord
    policy: PromptPolicy
    intensity: IntensityRule
    encoder: object
    tiling: Tiling | None = None
    stack: int = 1


def load_bundle(directory: Path, base: Sam) -> AdapterBundle:
    """Put an adapter onto a base that stays as it is.

    Raises:
        AdapterError: it is refused; names the file and the fault.
    """
    sam = share(base)
    record = read_record(directory)
    injection = store.load_into(directory, sam)
    try:
        return make_bundle(
            sam.to(base.device), record, injection.first_trainable_block > injection.depth
        )
    except (ConfigError, PromptError, AdapterError) as error:
        raise AdapterError(f"{directory / RECORD}: {error}") from error


def make_bundle(sam: Sam, record: AdapterRecord, keeps_encoder: bool) -> AdapterBundle:
    """Read the rules from the record.

    Raises:
        ConfigError: its intensity rule is none, or its tiles are not.
        PromptError: its prompt policy is none.
        AdapterError: its preprocessing is not the model's.
    """
    expected = asdict(sam.preprocessing)
    found = {name: _plain(value) for name, value in record.preprocessing.items()}
    if found and found != {name: _plain(value) for name, value in expected.items()}:
        raise AdapterError(f"preprocessing must be {expected}, the base model's; got {found}")
    intensity = make_intensity(record.intensity)
    if max(3, len(intensity.inputs)) != sam.input_channels:
        raise AdapterError(
            f"intensity has {len(intensity.inputs)} rules, one a channel; the model takes images "
            f"of {sam.input_channels} channels"
        )
    return AdapterBundle(
        sam=sam.eval(),
        record=record,
        policy=PromptPolicy.from_dict(record.prompt),
        intensity=intensity,
        encoder="base" if keeps_encoder else object(),
        tiling=recorded_tiling(record.data_options),
        stack=method_from_dict(record.method).stack if record.method else 1,
    )


def _plain(value: Any) -> Any:
    """Tuples as JSON brings them back."""
    return list(value) if isinstance(value, tuple | list) else value
