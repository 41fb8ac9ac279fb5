"""Which slices an evaluation scores: the held-out ones, those never trained on, or all.

An adapter records the hashes of its training images. Scores of images that it was trained on are no
measure of how it does on new ones, so such images are refused or left out, whatever their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from samadapt.data.channels import MANY, listed_channels, parse_channel
from samadapt.data.checks.training_record import seen
from samadapt.data.tiles import recorded_tiling
from samadapt.errors import ConfigError
from samadapt.runs.run_slices import first_cases

if TYPE_CHECKING:
    from samadapt.adapters.record import AdapterRecord
    from samadapt.config.schema import Config, Data
    from samadapt.data.types import SliceRef
    from samadapt.runs.context import RunContext

Which = Literal["held-out", "unseen", "all"]


@dataclass(frozen=True)
class ScoredSlices:
    """The slices that an evaluation scores.

    Attributes:
        refs: slices or tiles.
        which: ``"held-out"``, ``"unseen"`` (everything that was not trained on) or ``"all"``.
        notes: what the reader of the scores must know about the choice.
    """

    refs: list[SliceRef]
    which: Which
    notes: Sequence[str]


def choose_slices(
    context: RunContext, config: Config, adapter: Path, record: AdapterRecord, which: Which
) -> ScoredSlices:
    """Choose the slices to score.

    Args:
        context: the run of the evaluation.
        config: its configuration.
        adapter: the adapter directory, for messages.
        record: its ``samadapt.json``.
        which: the slices to choose; see ``ScoredSlices``.

    Raises:
        ConfigError: when no slice is left, or the adapter was trained on held-out cases.
    """
    refs = list(context.dataset.slices("val"))
    if which != "held-out":
        # Training may leave out slices (empty ones, data.slice_step); scores include every slice.
        refs = sorted({*refs, *context.dataset.slices("train", empty="keep", step=1)})
    unknown = why_unknown(context, config.data, record)

    def trained(refs: Sequence[SliceRef]) -> set[SliceRef]:
        if unknown or record.trained_on is None:
            return set()
        # Indices of tiles only mean the same places if the pictures are cut in the same way.
        same_tiles = context.dataset.tiling == recorded_tiling(record.data_options)
        return set(seen(context.dataset, refs, record.trained_on, same_slices=same_tiles))

    if which == "unseen":
        if unknown:
            raise ConfigError(f"unseen=true: {adapter} {unknown}; score all with all_cases=true")
        before = trained(refs)
        refs = [ref for ref in refs if ref not in before]
        if not refs:
            raise ConfigError(f"unseen=true: {adapter} was trained on every case of these data")
    if not refs:
        raise ConfigError("data: no case is held out; score every case with all_cases=true")
    refs = first_cases(refs, config.eval.max_cases)
    before = trained(refs)
    if which == "all":
        share = "" if unknown else f": {_cases(before)} of {_cases(refs)} were"
        note = f"cases that the adapter may have been trained on are scored too{share}"
        return ScoredSlices(refs, which, [note])
    if before:
        names = ", ".join(sorted({ref.case for ref in before})[:5])
        raise ConfigError(
            f"data: {adapter} was trained on {_cases(before)} of the {_cases(refs)} cases that are "
            f"held out here: {names}. Divide the data as its training did (data.val_every, "
            "data.fold, data.max_cases, data.patient), or score what it was not trained on with "
            "unseen=true, or everything with all_cases=true"
        )
    notes = [f"the adapter {unknown}: it may have been some of these cases"] if unknown else []
    return ScoredSlices(refs, which, notes)


def why_unknown(context: RunContext, data: Data, record: AdapterRecord) -> str:
    """Return why the training images cannot be recognised in the data; empty if they can be."""
    if record.trained_on is None:
        return "does not say what it was trained on"
    # The recorded hash of a volume is over its slices, so it depends on their axis and channels.
    axis = context.dataset.axis
    if axis != record.axis:
        return f"was trained on slices along {record.axis}, which are not known again along {axis}"
    options = record.data_options
    trained, now = (
        ", ".join(map(str, listed_channels(parse_channel(channel, MANY)))) or "the only one"
        for channel in (options.get("channel"), data.channel)
    )
    if trained == now or data.name != options.get("name", data.name):
        return ""
    return f"was trained on other channels ({trained}; here {now}), so its images are not known"


def _cases(refs: Iterable[SliceRef]) -> int:
    return len({ref.case for ref in refs})
