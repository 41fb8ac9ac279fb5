"""Which files of a folder are the cases, for every volume format.

Layouts, in the order in which they are looked for:

- ``data.image`` and ``data.label`` given: file names below ``data.root``, or patterns with one
  ``*`` (``*/ct.nii.gz`` with ``*/labels.nii.gz``); the text that ``*`` stands for names the case.
  Say which values are which class: ``data.classes={liver: 5, spleen: 1, kidney: [2, 3]}``.
- ``imagesTr/``, ``labelsTr/`` and ``dataset.json``: Medical Segmentation Decathlon, or nnU-Net
  (images end in ``_0000``).
- ``images/`` and ``labels/`` (or ``masks/``), same file names, ``_mask`` allowed.

A channel is chosen by its name where ``dataset.json`` names the channels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from samadapt.data.reader import Layout, ReaderOptions
from samadapt.data.types import Case, Finding, FindingError, fault

_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
_DECLARED = "mend dataset.json (see the MSD or nnU-Net documentation)"


def discover_volumes(options: ReaderOptions, suffixes: tuple[str, ...]) -> Layout:
    """List the cases of a folder in any of the layouts; faults become findings.

    Args:
        options: root, patterns and channel.
        suffixes: file name endings of the format, longest first.
    """
    root = options.root
    layout = Layout(suffixes=suffixes)
    if root is None or not root.is_dir():
        reason = "there is no such folder" if root else "no folder is given"
        layout.findings.append(_missing_folder(root or Path("data.root"), reason))
        return layout
    try:
        if options.image:
            _pair_patterns(root, options, layout)
        elif (root / "imagesTr").is_dir():
            _read_decathlon(root, options, layout)
        elif (root / "images").is_dir():
            masks = root / ("labels" if (root / "labels").is_dir() else "masks")
            _pair_folders(root / "images", masks, channel_beside(root, options.channel), layout)
        else:
            expected = (
                "expected imagesTr/ + labelsTr/ + dataset.json, or images/ + labels/ or masks/"
            )
            found = ", ".join(sorted(entry.name for entry in root.iterdir())[:6]) or "nothing"
            reason = f"{expected}; the folder holds {found}"
            layout.findings.append(_missing_folder(root, reason))
    except FindingError as error:
        layout.findings.append(error.finding)
        return layout
    if not layout.cases and not layout.findings:
        message = f"the folder holds no {' or '.join(suffixes)} image"
        layout.findings.append(Finding("no_cases", "error", str(root), message, "check data.root"))
    return layout


def stem_of(path: Path, suffixes: tuple[str, ...]) -> str:
    """Return the file name without the format's ending, such as ``.nii.gz``."""
    for suffix in suffixes:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def _missing_folder(root: Path, reason: str) -> Finding:
    fix = "set data.root to the data set's folder, or data.image and data.label to file names"
    return Finding("missing_folder", "error", str(root), reason, fix)


def _files(folder: Path, layout: Layout) -> dict[str, Path]:
    """List the volumes of a folder by stem; other files and double stems are findings."""
    found: dict[str, Path] = {}
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in entries:
        if path.name.startswith(".") or path.is_dir():
            continue
        if not path.name.lower().endswith(layout.suffixes):
            if _has_header(path, entries):
                continue
            message = f"expected {' or '.join(layout.suffixes)} here; this file is not read"
            finding = Finding("other_file", "warning", str(path), message, "remove or convert it")
            layout.findings.append(finding)
            continue
        stem = stem_of(path, layout.suffixes)
        if stem in found:
            message = f"has the same name as {found[stem].name}"
            finding = Finding("duplicate_case", "error", str(path), message, "keep one of the two")
            layout.findings.append(finding)
            layout.ambiguous |= {path, found[stem]}
            continue
        found[stem] = path
    return found


def _has_header(path: Path, entries: list[Path]) -> bool:
    """Whether a file is the voxels of a header beside it (``.mhd`` or ``.nhdr``)."""
    stem = path.name.partition(".")[0]
    headers = {entry.stem for entry in entries if entry.suffix.lower() in (".mhd", ".nhdr")}
    return path.name.lower().endswith((".raw", ".raw.gz", ".zraw")) and stem in headers


def _pair_folders(images: Path, labels: Path, channel: int | None, layout: Layout) -> None:
    pictures, masks = _files(images, layout), _files(labels, layout)
    owners: dict[str, Path] = {}
    for stem, path in masks.items():
        first = owners.setdefault(_unmasked(stem, pictures), path)
        if first != path:
            message = f"two masks for one image: {first.name} and {path.name}"
            layout.findings.append(
                Finding("duplicate_case", "error", str(path), message, "keep one of them")
            )
            layout.ambiguous |= {first, path}
    masks = owners
    for name in sorted({*pictures, *masks}):
        image = pictures.get(name, images / f"{name}{layout.suffixes[0]}")
        layout.cases.append(Case(name, image, masks.get(name), channel=channel))


def _unmasked(stem: str, pictures: Mapping[str, Path]) -> str:
    if stem in pictures:
        return stem
    return stem.removesuffix("_mask").removesuffix(".seg")  # 3D Slicer writes NAME.seg.nrrd


def _pair_patterns(root: Path, options: ReaderOptions, layout: Layout) -> None:
    if not options.label:
        raise fault("missing_label", root, "data.image is set, data.label is not", "set data.label")
    images, masks = match(root, str(options.image)), match(root, options.label)
    channel = channel_beside(root, options.channel)
    for name in sorted({*images, *masks}):
        image = images.get(name, root / str(options.image).replace("*", name))
        shown = name or stem_of(image, layout.suffixes)
        layout.cases.append(Case(shown, image, masks.get(name), channel=channel))


def match(root: Path, pattern: str) -> dict[str, Path]:
    """Return the files of a pattern by the text that its ``*`` stands for.

    Raises:
        FindingError: the pattern has two ``*``, or nothing matches.
    """
    if "*" not in pattern:
        return {"": root / pattern}
    before, after = pattern.split("*", 1)
    if "*" in after:
        raise fault("bad_pattern", root, f"{pattern!r} has more than one *", "use one *")
    wanted = re.compile(re.escape(before) + r"([^/]+)" + re.escape(after))
    found = {}
    for path in sorted(root.glob(pattern)):
        held = wanted.fullmatch(path.relative_to(root).as_posix())
        if held and not path.name.startswith("."):
            found[held.group(1)] = path
    if not found:
        raise fault("no_cases", root, f"no file matches {pattern!r}", "check the pattern")
    return found


def _read_decathlon(root: Path, options: ReaderOptions, layout: Layout) -> None:
    declared = _read_json(root / "dataset.json")
    channels = _channel_names(declared)
    channel = _channel_index(root / "dataset.json", options.channel, channels)
    layout.classes = _classes(root / "dataset.json", declared, layout)
    layout.modality = channels.get(str(channel or 0))
    ending = declared.get("file_ending", layout.suffixes[0])
    if ending not in layout.suffixes:
        message = f"file_ending is {ending!r}; this reader reads {' and '.join(layout.suffixes)}"
        fix = "use the reader of that format (samadapt ls data), or convert the images"
        raise fault("file_ending", root / "dataset.json", message, fix)
    pictures = _files(root / "imagesTr", layout)
    masks = _files(root / "labelsTr", layout)
    numbered = {stem: _CHANNEL.match(stem) for stem in pictures}
    if pictures and all(numbered.values()) and not set(pictures) & set(masks):
        _nnunet_cases(root, pictures, masks, channel, channels, layout)
    else:
        _msd_cases(root, declared, pictures, masks, channel, layout)


def _nnunet_cases(
    root: Path,
    pictures: Mapping[str, Path],
    masks: Mapping[str, Path],
    channel: int | None,
    channels: Mapping[str, str],
    layout: Layout,
) -> None:
    count = max(len(channels), len({stem[-4:] for stem in pictures}))
    if channel is None and count > 1:
        raise fault(
            "channel_choice",
            root / "dataset.json",
            f"each case has {count} channels and none is chosen",
            f"choose one with data.channel: 0..{count - 1}, {', '.join(channels.values())}",
        )
    wanted = f"_{channel or 0:04d}"
    for name in sorted({*(stem[:-5] for stem in pictures), *masks}):
        image = pictures.get(
            name + wanted, root / "imagesTr" / f"{name}{wanted}{layout.suffixes[0]}"
        )
        layout.cases.append(Case(name, image, masks.get(name)))


def _msd_cases(
    root: Path,
    declared: Mapping[str, Any],
    pictures: dict[str, Path],
    masks: dict[str, Path],
    channel: int | None,
    layout: Layout,
) -> None:
    training = declared.get("training", [])
    entries: Iterable[Any] = training if isinstance(training, list) else [training]
    for entry in entries:
        if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
            message = f"an entry of training needs image and label; got {str(entry)[:80]}"
            finding = Finding(
                "bad_dataset_json", "error", str(root / "dataset.json"), message, _DECLARED
            )
            layout.findings.append(finding)
            continue
        for key, known in (("image", pictures), ("label", masks)):
            path = root / str(entry[key])
            known.setdefault(stem_of(path, layout.suffixes), path)
    for name in sorted({*pictures, *masks}):
        image = pictures.get(name, root / "imagesTr" / f"{name}{layout.suffixes[0]}")
        layout.cases.append(Case(name, image, masks.get(name), channel=channel))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        fix = "add it, or name the files with data.image, data.label and data.classes"
        raise fault("missing_dataset_json", path, "MSD and nnU-Net folders have this file", fix)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise fault("broken_dataset_json", path, f"is not JSON ({error})", _DECLARED) from None
    if not isinstance(content, dict):
        message = f"must hold an object; holds {type(content).__name__}"
        raise fault("broken_dataset_json", path, message, _DECLARED)
    return content


def _mapping(declared: Mapping[str, Any], *keys: str) -> Mapping[Any, Any]:
    for key in keys:
        if isinstance(declared.get(key), dict):
            return dict(declared[key])
    return {}


def _channel_names(declared: Mapping[str, Any]) -> dict[str, str]:
    names = _mapping(declared, "channel_names", "modality")
    return {str(key): str(value) for key, value in names.items()}


def channel_beside(folder: Path, channel: int | str | None) -> int | None:
    """Return a channel's index; a name is looked up in ``dataset.json`` in or above ``folder``.

    Raises:
        FindingError: no such file names the channel.
    """
    if channel is None or str(channel).isdigit():
        return _numbered(channel)
    for path in (folder / "dataset.json", folder.parent / "dataset.json"):
        if path.is_file():
            return _channel_index(path, channel, _channel_names(_read_json(path)))
    message = f"channel {channel!r} is asked for by name; no dataset.json here names the channels"
    raise fault("channel_choice", folder, message, "choose the channel by its index, from 0")


def _numbered(channel: int | str | None) -> int | None:
    return int(channel) if channel is not None and str(channel).isdigit() else None


def _channel_index(
    path: Path, channel: int | str | None, channels: Mapping[str, str]
) -> int | None:
    if channel is None or str(channel).isdigit():
        return _numbered(channel)
    for index, name in channels.items():
        if name == channel and index.isdigit():
            return int(index)
    known = ", ".join(channels.values()) or "none"
    raise fault("channel_choice", path, f"no channel {channel!r}; it has: {known}", "choose one")


def _classes(
    path: Path, declared: Mapping[str, Any], layout: Layout
) -> dict[str, tuple[int, ...]] | None:
    """Return name to values from MSD's ``{"1": name}`` or nnU-Net's ``{name: 1}``."""
    labels = declared.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise fault("bad_dataset_json", path, "labels must map values and names", _DECLARED)
    pairs = [_name_and_values(path, key, value) for key, value in labels.items()]
    classes = {name: values for name, values in pairs if values != (0,) and name != "ignore"}
    layout.ignored = tuple(value for name, values in pairs if name == "ignore" for value in values)
    seen: set[int] = set()
    for name, values in classes.items():
        if seen & set(values) or 0 in values:
            message = f"label {name!r} shares values with another (a region): {list(values)}"
            fix = "choose classes that do not overlap with data.classes={name: [values]}"
            layout.findings.append(
                Finding("overlapping_labels", "warning", str(path), message, fix)
            )
            return None
        seen |= set(values)
    return classes


def _name_and_values(path: Path, key: str, value: Any) -> tuple[str, tuple[int, ...]]:
    if key.lstrip("-").isdigit() and isinstance(value, str):
        return value, (int(key),)
    if isinstance(value, int) and not isinstance(value, bool):
        return key, (value,)
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return key, tuple(value)
    message = f"labels: expected value: name or name: value; got {key!r}: {value!r}"
    raise fault("bad_dataset_json", path, message, _DECLARED)
