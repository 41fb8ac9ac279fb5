"""Which slices an evaluation scores: the held-out ones, those never trained on, or all.

An adapter records the hashes of its training images. Scores of images that it was trained on are no
measure of how it does on new ones, so such images are refused or left out, whatever their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from samadapt.data.channels import MANY, listed_channels, parse_channel
from samadapt.data.checks.training_record import TrainedOn, seen
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
    context: RunContext, config: Config, adapters: Mapping[Path, AdapterRecord], which: Which
) -> ScoredSlices:
    """Choose the slices to score.

    Adapters that are compared are scored on the same slices, so an image that one of them was
    trained on counts as trained on for all.

    Args:
        context: the run of the evaluation.
        config: its configuration.
        adapters: the adapters that are compared, by directory, with their ``samadapt.json``.
        which: the slices to choose; see ``ScoredSlices``.

    Raises:
        ConfigError: when no slice is left, or an adapter was trained on held-out cases.
    """
    refs = list(context.dataset.slices("val"))
    if which != "held-out":
        # Training may leave out slices (empty ones, data.slice_step); scores include every slice.
        refs = sorted({*refs, *context.dataset.slices("train", empty="keep", step=1)})
    images = [_KnownImages.of(context, config.data, *item) for item in adapters.items()]
    if which == "unseen":
        refs = _unseen(context, refs, images)
    if not refs:
        raise ConfigError("data: no case is held out; score every case with all_cases=true")
    if config.eval.max_cases == 0:
        raise ConfigError("eval.max_cases=0 scores nothing; give at least 1, or leave it out")
    refs = first_cases(refs, config.eval.max_cases)
    if which == "all":
        return ScoredSlices(refs, which, [_note_of_all(context, refs, images)])
    _refuse_seen(context, refs, images)
    names = ["the adapter"] if len(images) == 1 else [str(one.adapter) for one in images]
    notes = [
        f"{name} {one.unknown}: it may have been some of these cases"
        for name, one in zip(names, images, strict=True)
        if one.unknown
    ]
    return ScoredSlices(refs, which, notes)


@dataclass(frozen=True)
class _KnownImages:
    """The training images of an adapter, as far as they are recognised in a data set.

    Attributes:
        adapter: its directory, for messages.
        trained: the recorded images; None if they are not recognised here.
        same_tiles: whether pictures are cut into tiles as they were in training.
        unknown: why not every training image is recognised; empty if each is.
    """

    adapter: Path
    trained: TrainedOn | None
    same_tiles: bool
    unknown: str

    @classmethod
    def of(
        cls, context: RunContext, data: Data, adapter: Path, record: AdapterRecord
    ) -> _KnownImages:
        """Return what is known of an adapter's training images."""
        unknown = why_unknown(context, data, record)
        trained = None if unknown else record.trained_on
        if not unknown and record.init.get("trained_on_known", True) is not True:
            unknown = "started from an adapter whose training images are not all known"
        # Indices of tiles only mean the same places if the pictures are cut in the same way.
        same_tiles = context.dataset.tiling == recorded_tiling(record.data_options)
        return cls(adapter, trained, same_tiles, unknown)

    def among(self, context: RunContext, refs: Sequence[SliceRef]) -> list[SliceRef]:
        """Return the slices that the adapter was trained on, as far as that is known."""
        if self.trained is None:
            return []
        return seen(context.dataset, refs, self.trained, same_slices=self.same_tiles)


def _seen_by_any(
    context: RunContext, refs: Sequence[SliceRef], images: Sequence[_KnownImages]
) -> set[SliceRef]:
    return {ref for one in images for ref in one.among(context, refs)}


def _unseen(
    context: RunContext, refs: Sequence[SliceRef], images: Sequence[_KnownImages]
) -> list[SliceRef]:
    """Return the slices that no adapter was trained on.

    Raises:
        ConfigError: when the training images of an adapter are not known, or no slice is left.
    """
    for one in images:
        if one.unknown:
            raise ConfigError(
                f"unseen=true: {one.adapter} {one.unknown}; score all with all_cases=true"
            )
    before = _seen_by_any(context, refs, images)
    left = [ref for ref in refs if ref not in before]
    if not left:
        listed = " and ".join(str(one.adapter) for one in images)
        were = "was" if len(images) == 1 else "together were"
        raise ConfigError(f"unseen=true: {listed} {were} trained on every case of these data")
    return left


def _note_of_all(
    context: RunContext, refs: Sequence[SliceRef], images: Sequence[_KnownImages]
) -> str:
    """Return the note that scored cases may have been trained on, and how many were."""
    counts = f": {_cases(_seen_by_any(context, refs, images))} of {_cases(refs)} were"
    share = "" if any(one.unknown for one in images) else counts
    which = "the adapter" if len(images) == 1 else "an adapter"
    return f"cases that {which} may have been trained on are scored too{share}"


def _refuse_seen(
    context: RunContext, refs: Sequence[SliceRef], images: Sequence[_KnownImages]
) -> None:
    """Refuse slices that an adapter was trained on.

    Raises:
        ConfigError: naming the adapter and the cases.
    """
    for one in images:
        before = one.among(context, refs)
        if not before:
            continue
        names = ", ".join(sorted({ref.case for ref in before})[:5])
        raise ConfigError(
            f"data: {one.adapter} was trained on {_cases(before)} of the {_cases(refs)} cases that "
            f"are held out here: {names}. Divide the data as its training did (data.val_every, "
            "data.fold, data.max_cases, data.patient), or score what it was not trained on with "
            "unseen=true, or everything with all_cases=true"
        )


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
