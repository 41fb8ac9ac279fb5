"""The inputs of a prediction: paths, and lists, patterns and folders of files that are channels.

An adapter of several channels (``data.channel=[flair,t1]``) reads one file with channels like any
other adapter. If the channels are separate files, the input is

- a list of one file for each channel, in the order of the adapter's channels;
- a pattern, ``case1/*_{channel}.nii.gz`` (one case) or ``*/*_{channel}.nii.gz`` (many), in which
  ``{channel}`` stands for each channel's name and the text of the last ``*`` is the case's name;
- a folder of one or many cases, whose files end in the channels' names (``NAME_flair.nii.gz``, or
  ``NAME_0000.nii.gz`` as nnU-Net names them), or a folder of such folders.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from samadapt.data.channels import MANY, Channel, Choice, listed_channels, parse_channel
from samadapt.data.findings import FindingError
from samadapt.data.formats.base import Layout, ReaderOptions, parse_axis, readers
from samadapt.data.formats.dicom.series_choice import general_choice
from samadapt.data.formats.nifti.affine import SpacingSource, check_spacing_source
from samadapt.data.formats.shared.exif import parse_exif
from samadapt.data.formats.shared.volume_layout import channel_beside
from samadapt.data.formats.shared.volume_patterns import CHANNEL, channel_files, stem_of
from samadapt.data.intensity import make_intensity
from samadapt.errors import DataError, PromptError

if TYPE_CHECKING:
    from samadapt.adapters.record import AdapterRecord

Source = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class ChannelCase:
    """One image whose channels are files.

    Attributes:
        name: name of the case.
        files: one file for each channel, in the order of the adapter's channels.
    """

    name: str
    files: tuple[Path, ...]

    def __str__(self) -> str:
        """Return the files as a message names them."""
        return f"{self.files[0].parent}: {', '.join(path.name for path in self.files)}"


@dataclass(frozen=True)
class ChannelCases:
    """The cases of an input whose channels are files.

    Attributes:
        cases: the cases, sorted by name.
        one: the input means one case, not a folder that may hold several.
        others: names of the entries of a folder that belong to no case.
    """

    cases: list[ChannelCase]
    one: bool
    others: tuple[str, ...] = ()


def reader_options(
    record: AdapterRecord,
    *,
    channel: Channel | Sequence[Channel] | None = None,
    spacing: SpacingSource | None = None,
    series: str | None = None,
    exif: str | None = None,
) -> ReaderOptions:
    """Return how an adapter's images are read: as the user says, else as in training.

    Args:
        record: the adapter's record.
        channel: see ``Segmenter.segment``, as are the others.
        spacing: which voxel size is true.
        series: which DICOM series of a folder.
        exif: whether pictures are turned.

    Raises:
        ConfigError: an option has another value than it may have.
        PromptError: another number of channels than the adapter sees.
    """
    check_spacing_source(spacing)
    recorded = record.data_options
    return ReaderOptions(
        axis=parse_axis(record.axis),
        channel=chosen_channels(record, channel),
        spacing=spacing or recorded.get("spacing"),
        # A recorded choice holds in other folders only if it is general, such as a modality.
        series=series or general_choice(recorded.get("series")),
        exif=parse_exif(exif or recorded.get("exif")),
    )


def chosen_channels(record: AdapterRecord, channel: Channel | Sequence[Channel] | None) -> Choice:
    """Return the channels that an adapter reads: those that the user names, else as in training.

    Raises:
        PromptError: the user names another number of channels than the adapter sees.
    """
    wanted = len(make_intensity(record.intensity).inputs) or 1
    kept = parse_channel(record.data_options.get("channel"), MANY)
    choice = kept if channel is None else parse_channel(channel, MANY)
    if max(1, len(listed_channels(choice))) != wanted:
        was = f" ({', '.join(map(str, listed_channels(kept)))})" if kept is not None else ""
        raise PromptError(
            f"channel: this adapter sees {wanted}{was}; got "
            f"{', '.join(map(str, listed_channels(choice))) or 'none'}"
        )
    return choice


def as_path(source: Source) -> Path:
    """Return an input as one path.

    Raises:
        DataError: the input is a list of several.
    """
    if isinstance(source, str | Path):
        return Path(source).expanduser()
    if len(source) != 1:
        raise DataError("input: a list of files is for an adapter of several channels")
    return Path(source[0]).expanduser()


def is_source(image: object) -> TypeGuard[Source]:
    """Whether an image is given by file names and not as an array."""
    if isinstance(image, list | tuple):
        return bool(image) and all(isinstance(part, str | Path) for part in image)
    return isinstance(image, str | Path)


def find_channel_cases(source: Source, choice: Choice) -> ChannelCases | None:
    """Return the cases of an input whose channels are files; None for any other input.

    Args:
        source: what the user names as input.
        choice: the channels that the adapter sees, in their order.

    Raises:
        DataError: a list has another length, or a pattern does not match a file of each channel.
    """
    channels = listed_channels(choice)
    if not isinstance(source, str | Path):
        files = tuple(Path(path).expanduser() for path in source)
        if len(files) != max(1, len(channels)):
            raise DataError(
                "input: a list must have one file for each channel; this adapter sees "
                f"{max(1, len(channels))} ({', '.join(map(str, channels)) or 'one'}); "
                f"got {len(files)}"
            )
        # Without channels the list holds one file, which is read like any other input.
        return ChannelCases([ChannelCase(_stem(files[0]), files)], one=True) if channels else None
    folder = Path(source).expanduser()
    if CHANNEL in str(source):
        # Files may be named after the channels or, second, after their numbers in dataset.json.
        numbers = _numbered(folder.parent, choice)
        try:
            return _of_pattern(str(source), channels)
        except DataError:
            if numbers is None:
                raise
            return _of_pattern(str(source), numbers)
    if len(channels) < 2 or not folder.is_dir():
        return None
    numbers = _numbered(folder, choice)
    return _of_folder(folder, channels) or (_of_folder(folder, numbers) if numbers else None)


def _numbered(folder: Path, choice: Choice) -> tuple[Channel, ...] | None:
    """Return the numbers that ``dataset.json`` gives to named channels; None without such a file.

    An adapter trained on nnU-Net's data knows the channel ``T2``, whose files end in ``_0001``.
    """
    if all(str(one).isdigit() for one in listed_channels(choice)):
        return None
    try:
        return listed_channels(channel_beside(folder, choice))
    except FindingError:
        return None


def _of_pattern(pattern: str, channels: tuple[Channel, ...]) -> ChannelCases:
    if not channels:
        raise DataError(
            f"{pattern}: {CHANNEL} stands for the channels that an adapter was trained on, and "
            "this one was trained on images with one channel; name the file, or add channel=NAME"
        )
    options = ReaderOptions(image=pattern, channel=channels)
    found = channel_files(options, Layout(suffixes=_suffixes()))
    cases = [ChannelCase(name, files) for name, files in found.items()]
    return ChannelCases(cases, one="*" not in pattern or len(cases) == 1)


def _of_folder(folder: Path, channels: tuple[Channel, ...]) -> ChannelCases | None:
    """Return the cases of a folder; None if no file ends in the name of a channel."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    groups = _group(folder, entries, channels)
    used = {path for files in groups.values() for path in files.values()}
    if not groups:
        # No file here belongs to a channel, so the cases may be in folders of their own.
        for inner in (entry for entry in entries if entry.is_dir()):
            inside = _group(inner, sorted(inner.iterdir()), channels)
            for name, files in inside.items():
                groups[inner.name if len(inside) == 1 else f"{inner.name}_{name}"] = files
            used |= {inner} if inside else set()
    if not groups:
        return None
    cases = []
    for name, files in sorted(groups.items()):
        missing = [str(channels[i]) for i in range(len(channels)) if i not in files]
        if missing:
            present = ", ".join(path.name for path in files.values())
            raise DataError(
                f"{next(iter(files.values())).parent}: the case {name} has no file of the channel "
                f"{', '.join(missing)}; it has {present}"
            )
        cases.append(ChannelCase(name, tuple(files[i] for i in range(len(channels)))))
    others = tuple(entry.name for entry in entries if entry not in used)
    return ChannelCases(cases, one=len(cases) == 1, others=others)


def _group(
    folder: Path, entries: Sequence[Path], channels: tuple[Channel, ...]
) -> dict[str, dict[int, Path]]:
    """Return the files of each case, by the index of their channel."""
    texts = [(text, index) for index, one in enumerate(channels) for text in _texts(one)]
    texts.sort(key=lambda pair: -len(pair[0]))  # longest first: NAME_t1ce does not end in ce
    groups: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in entries:
        if not path.is_file() or not path.name.lower().endswith(_suffixes()):
            continue
        stem = _stem(path)
        for text, index in texts:
            # NAME_text and NAME-text belong to the case NAME, text alone to that of the folder.
            before = stem[: -len(text) - 1]
            if stem == text or (stem[-len(text) - 1 :] in (f"_{text}", f"-{text}") and before):
                name = folder.name if stem == text else before
                if index in groups[name]:
                    first = groups[name][index].name
                    raise DataError(f"{path}: {first} is the same channel of the case {name}")
                groups[name][index] = path
                break
    return dict(groups)


def _texts(channel: Channel) -> list[str]:
    """Return the texts by which the end of a file name may name a channel."""
    text = str(channel)
    return [text, f"{int(text):04d}"] if text.isdigit() else [text]


def _suffixes() -> tuple[str, ...]:
    """Return the endings of the formats whose channels may be files, the longest first."""
    takers = {reader for reader in readers().values() if reader.takes_channels}
    return tuple(sorted({end for one in takers for end in one.suffixes}, key=len, reverse=True))


def _stem(path: Path) -> str:
    return stem_of(path, _suffixes())
