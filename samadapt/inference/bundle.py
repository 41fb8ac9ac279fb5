"""An adapter that is ready to be used: the model together with the rules of its record."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.adapters import store
from samadapt.adapters.combining import recorded_stack
from samadapt.adapters.record import RECORD, AdapterRecord
from samadapt.adapters.sharing import share
from samadapt.data.intensity import IntensityRule, make_intensity
from samadapt.data.tiles import Tiling, recorded_tiling
from samadapt.errors import AdapterError, ConfigError, PromptError
from samadapt.evaluation.confidence import ConfidenceCurve, read_curve
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.model import Sam

if TYPE_CHECKING:
    from samadapt.sam.segmentation_model import SegmentationModel


@dataclass(frozen=True)
class AdapterBundle:
    """An adapter that is ready to be used.

    Attributes:
        sam: the adapted model, which shares the tensors of the base model that stay as they are; or
            a U-Net.
        record: what the adapter was trained for.
        policy: its prompt policy.
        intensity: its intensity rule.
        curve: the calibrated confidence of its objects, or the reason why there is none.
        encoder: key of the image encoder. It is ``encoder_of_base`` for all adapters that leave the
            base's encoder unchanged, so that they share embeddings.
        tiling: how pictures are cut into tiles; None: they are seen whole.
        stack: number of slices of a volume that the encoder sees together.
        first_trainable_block: the encoder before it is that of the base; see ``Sam.encode_prefix``.
            -1: nothing of it is known to be.
        base: the model without the adapter; None: there is none, or it is not known.
    """

    sam: SegmentationModel
    record: AdapterRecord
    policy: PromptPolicy
    intensity: IntensityRule
    curve: ConfidenceCurve | str
    encoder: object
    tiling: Tiling | None = None
    stack: int = 1
    first_trainable_block: int = -1
    base: Sam | None = None


def load_bundle(directory: Path, record: AdapterRecord, base: Sam) -> AdapterBundle:
    """Load an adapter onto a base model, which stays unchanged.

    Args:
        directory: the adapter directory.
        record: its ``samadapt.json``.
        base: the base model.

    Raises:
        AdapterError: the adapter is refused; names the file and the fault.
    """
    sam = share(base)
    injection = store.load_into(directory, sam, record)
    try:
        # The neck, the encoder's last unit, has the number `depth`. If the first trained unit comes
        # after it, only the decoder is trained and the encoder is that of the base.
        first = injection.first_trainable_block
        if record.quantize:  # no part of the encoder is that of the base
            first = -1
        bundle = make_bundle(sam.to(base.device), record, first > injection.depth)
    except (ConfigError, PromptError, AdapterError) as error:
        raise AdapterError(f"{directory / RECORD}: {error}") from error
    return replace(bundle, first_trainable_block=first, base=base)


def make_bundle(
    sam: SegmentationModel, record: AdapterRecord, keeps_encoder: bool
) -> AdapterBundle:
    """Read the rules from the record of an adapter.

    Args:
        sam: the adapted model.
        record: the record.
        keeps_encoder: the adapter leaves the base's image encoder unchanged.

    Raises:
        ConfigError: the intensity rule or the tiling of the record is not valid.
        PromptError: the prompt policy of the record is not valid.
        AdapterError: the preprocessing of the record is not that of the model, or its confidence
            is no calibration.
    """
    # A record without preprocessing leaves it to the base model.
    expected = asdict(sam.preprocessing)
    found = {name: _plain(value) for name, value in record.preprocessing.items()}
    if found and found != {name: _plain(value) for name, value in expected.items()}:
        raise AdapterError(f"preprocessing must be {expected}, the base model's; got {found}")
    intensity = make_intensity(record.intensity)
    # Up to three channels are shown to the model as red, green and blue.
    if max(3, len(intensity.inputs)) != sam.input_channels:
        raise AdapterError(
            f"intensity has {len(intensity.inputs)} rules, one for each channel; the model takes "
            f"images of {sam.input_channels} channels"
        )
    return AdapterBundle(
        sam=sam.eval(),
        record=record,
        policy=PromptPolicy.from_dict(record.prompt),
        intensity=intensity,
        curve=read_curve(record.confidence),
        # A new object equals no other, so an adapter that changes the encoder shares no embeddings.
        # So does a dense head, which reads more than the embedding of the base.
        encoder=encoder_of_base(record) if keeps_encoder and sam.dense_head is None else object(),
        tiling=recorded_tiling(record.data_options),
        stack=recorded_stack(record) if isinstance(sam, Sam) else 1,
    )


def encoder_of_base(record: AdapterRecord) -> Hashable:
    """Return the key of the unchanged image encoder of an adapter's base, at its image size."""
    # The hash alone says neither the size, but for ViT, nor the preprocessing.
    return record.base, record.base_sha256, record.image_size


def _plain(value: Any) -> Any:
    """Return tuples as lists, as JSON reads them back."""
    return list(value) if isinstance(value, tuple | list) else value
