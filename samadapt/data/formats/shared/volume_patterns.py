"""Find the files that ``data.image`` and ``data.label`` mean: names, or patterns with ``*``.

A ``*`` stands for a part of one folder or file name. The text of the last ``*`` names the case.
Where that text is not unique (``patient*/frame*.nii.gz``), the texts of all ``*`` together name it.
``{channel}`` in ``data.image`` stands for each name in ``data.channel``. Patterns are relative to
``data.root`` or, without it, to the working folder. Absolute patterns need no root.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from samadapt.data.channels import Channel, listed_channels
from samadapt.data.findings import FindingError, fault
from samadapt.data.formats.base import Layout, ReaderOptions
from samadapt.data.types import Case

CHANNEL = "{channel}"
FilesByWildcards = dict[tuple[str, ...], Path]
"""Files by the texts that the ``*`` of a pattern stand for, in their order."""


def pair_patterns(options: ReaderOptions, layout: Layout) -> bool:
    """Add the cases of ``data.image`` and ``data.label`` to a layout.

    Args:
        options: root, patterns and channels.
        layout: the cases are added to it.

    Returns:
        Whether each channel of a case is a file of its own.

    Raises:
        FindingError: a pattern cannot be used, or nothing matches.
    """
    root, image = options.root or Path(), str(options.image)
    if not options.label:
        raise fault(
            "missing_label", root, "data.image is set, but data.label is not", "set data.label"
        )
    if CHANNEL in options.label:
        message = f"data.label has {CHANNEL}, but a mask has no channels"
        raise fault("bad_pattern", root, message, "name the mask by one pattern")
    channels = _channels(root, image, options)
    masks = files_matching(root, options.label)
    taken = set(masks.values())
    if channels:
        found = [_of_channel(root, image, channel, taken) for channel in channels]
    else:
        found = [_without(files_matching(root, image), taken)]
    keys = sorted({key for files in found for key in files})
    if not keys:
        raise fault("no_cases", root, f"no file matches {image!r}", "check the pattern")
    image_names, mask_names = _case_names(root, keys, list(masks), (image, options.label))
    masks_by_name = {mask_names[key]: path for key, path in masks.items()}
    keys_by_name = {name: key for key, name in image_names.items()}
    for name in sorted({*masks_by_name, *keys_by_name}):
        files = [
            _image_path(root, image, keys_by_name.get(name), name, files, channel)
            for files, channel in zip(found, channels or ("",), strict=True)
        ]
        layout.cases.append(
            Case(
                name or stem_of(files[0], layout.suffixes),
                files[0],
                masks_by_name.get(name),
                files=tuple(files) if len(files) > 1 else (),
            )
        )
    return bool(channels)


def channel_files(options: ReaderOptions, layout: Layout) -> dict[str, tuple[Path, ...]]:
    """Return the files of each case of ``options.image``, which has ``{channel}``, by case name.

    Raises:
        FindingError: the pattern cannot be used, nothing matches, or a channel of a case is
            missing.
    """
    root, image, channels = (
        options.root or Path(),
        str(options.image),
        listed_channels(options.channel),
    )
    found = [_of_channel(root, image, channel, set()) for channel in channels]
    keys = sorted({key for files in found for key in files})
    names, _ = _case_names(root, keys, [], (image, ""))
    cases = {}
    for key in keys:
        files = [
            _image_path(root, image, key, names[key], files, channel)
            for files, channel in zip(found, channels, strict=True)
        ]
        for path in files:
            if not path.is_file():
                message = "there is no such file; it should hold a channel of this case"
                raise fault("missing_image", path, message, "add it, or check the pattern")
        cases[names[key] or stem_of(files[0], layout.suffixes)] = tuple(files)
    return cases


def files_by_name(root: Path, pattern: str) -> dict[str, Path]:
    """Return the files that match a pattern, by the text of its last ``*``.

    Raises:
        FindingError: the pattern cannot be used, nothing matches, or two files have the same text.
    """
    found = files_matching(root, pattern)
    texts = Counter(key[-1:] for key in found)
    twice = [text for text, count in texts.items() if count > 1]
    if twice:
        message = f"{texts[twice[0]]} files of {pattern!r} have the same text {twice[0][0]!r} for *"
        raise fault("bad_pattern", root, message, "write more of the names into the pattern")
    return {"".join(key[-1:]): path for key, path in found.items()}


def files_matching(root: Path, pattern: str) -> FilesByWildcards:
    """Return the files that match a pattern, sorted.

    A name without ``*`` gives one file, whether it exists or not.

    Raises:
        FindingError: the pattern has ``**``, or nothing matches.
    """
    pattern = Path(pattern).expanduser().as_posix()
    if "**" in pattern:
        message = f"{pattern!r} has **, which is not supported"
        raise fault("bad_pattern", root, message, "write a * for each folder: */*_ct.nii.gz")
    if "*" not in pattern:
        return {(): root / pattern}
    whole = Path(pattern)
    parts = whole.parts
    fixed = next(i for i, part in enumerate(parts) if "*" in part)
    folder = root.joinpath(*parts[:fixed])  # an absolute pattern replaces the root
    rest = "/".join(parts[fixed:])
    # `glob` finds the files; the regular expression tells what each * stands for.
    wanted = re.compile("([^/]+)".join(map(re.escape, rest.split("*"))))
    found: FilesByWildcards = {}
    for path in sorted(folder.glob("*".join(map(glob.escape, rest.split("*"))))):
        held = wanted.fullmatch(path.relative_to(folder).as_posix())
        if held and not path.name.startswith("."):
            found[held.groups()] = path
    if not found:
        only = "; * is the only wildcard, and ? means itself" if "?" in pattern else ""
        raise fault("no_cases", root, f"no file matches {pattern!r}{only}", "check the pattern")
    return found


def _channels(root: Path, image: str, options: ReaderOptions) -> tuple[Channel, ...]:
    """Return the channels that are files of their own; none if the pattern has no {channel}."""
    if CHANNEL not in image:
        return ()
    channels = listed_channels(options.channel)
    if channels:
        return channels
    message = f"data.image has {CHANNEL}, but data.channel names no channel"
    known = _known_channels(root, image, set(files_matching(root, str(options.label)).values()))
    raise fault("channel_choice", root, message + known, "name them: data.channel=[flair,t1]")


def _known_channels(root: Path, image: str, taken: set[Path]) -> str:
    """Return, as the end of a message, the texts that existing files have for {channel}."""
    try:
        found = _without(files_matching(root, image.replace(CHANNEL, "*")), taken)
    except FindingError:
        return ""
    place = image[: image.index(CHANNEL)].count("*")
    texts = sorted({key[place] for key in found if len(key) > place})
    return f"; the files have: {', '.join(texts[:8])}" if texts else ""


def _of_channel(root: Path, image: str, channel: Channel, taken: set[Path]) -> FilesByWildcards:
    """Return the files of one channel. An index may have leading zeros in the names (``_0001``)."""
    # Channel 1 may be written as 1, 01, 001 or 0001; the first spelling that matches files counts.
    texts = [str(channel)]
    if str(channel).isdigit():
        texts += [f"{int(channel):0{width}d}" for width in (2, 3, 4)]
    problem = None
    for text in dict.fromkeys(texts):
        try:
            found = _without(files_matching(root, image.replace(CHANNEL, text)), taken)
        except FindingError as error:
            problem = problem or error
            continue
        if len(found) > 1 or all(path.exists() for path in found.values()):
            return found
    if problem is None:
        return _without(files_matching(root, image.replace(CHANNEL, str(channel))), taken)
    known = _known_channels(root, image, taken)
    if not known:
        raise problem
    found_none = f"no file that data.image matches has the channel {str(channel)!r}{known}"
    raise fault("channel_choice", root, found_none, "choose one of these with data.channel")


def _without(found: FilesByWildcards, taken: Iterable[Path]) -> FilesByWildcards:
    """Leave out the files that ``data.label`` matches."""
    return {key: path for key, path in found.items() if path not in taken}


def _image_path(
    root: Path,
    image: str,
    key: tuple[str, ...] | None,
    name: str,
    files: Mapping[tuple[str, ...], Path],
    channel: Channel,
) -> Path:
    """Return the image of a case, or the path where it should be."""
    if key is not None and key in files:
        return files[key]
    expected = image.replace(CHANNEL, str(channel))
    # Each * becomes the text of the case; without an image, the name of its mask.
    texts = iter(key or ())
    return root / re.sub(r"\*", lambda _: next(texts, name), expected)


def _case_names(
    root: Path,
    images: list[tuple[str, ...]],
    masks: list[tuple[str, ...]],
    patterns: tuple[str, str],
) -> tuple[dict[tuple[str, ...], str], dict[tuple[str, ...], str]]:
    """Name the cases of images and masks, so that the files of one case have one name.

    Args:
        root: the data set's folder, for the messages.
        images: the texts of the ``*`` for each image.
        masks: the same for each mask.
        patterns: of the images and of the masks.

    Returns:
        The name of each image, and of each mask, by its texts.

    Raises:
        FindingError: the text of the last ``*`` is not unique, and the patterns have different
            numbers of ``*``.
    """
    # First choice: the text of the last * alone, if no two files share it.
    last = [Counter("".join(key[-1:]) for key in keys) for keys in (images, masks)]
    if all(count == 1 for counter in last for count in counter.values()):
        return (
            {key: "".join(key[-1:]) for key in images},
            {key: "".join(key[-1:]) for key in masks},
        )
    if len({len(key) for key in [*images, *masks]}) > 1:
        text = next(t for counter in last for t, count in counter.items() if count > 1)
        message = (
            f"the last * names a case, but several files have {text!r} for it, and {patterns[0]!r} "
            f"and {patterns[1]!r} differ in their numbers of *"
        )
        raise fault("bad_pattern", root, message, "write both patterns with the same *")
    return ({key: _joined(key) for key in images}, {key: _joined(key) for key in masks})


def _joined(texts: tuple[str, ...]) -> str:
    """Join the texts of all ``*``; a text that begins with the one before it replaces that."""
    kept: list[str] = []
    for text in texts:
        if kept and (text == kept[-1] or text.startswith(f"{kept[-1]}_")):
            kept[-1] = text
        else:
            kept.append(text)
    return "_".join(kept)


def stem_of(path: Path, suffixes: tuple[str, ...]) -> str:
    """Return the file name without the ending of the format, such as ``.nii.gz``."""
    for suffix in suffixes:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem
