"""Find the cases of a folder, for every volume format.

Three layouts are tried in this order:

1. ``data.image`` and ``data.label`` are given: file names below ``data.root``, or patterns
   (``*/ct.nii.gz`` with ``*/labels.nii.gz``); see ``volume_patterns.py``. One folder a case with
   one file a channel, as BraTS has it: ``data.image='*/*_{channel}.nii.gz'``,
   ``data.label='*/*_seg.nii.gz'``, ``data.channel=[flair,t1,t2]``. ``data.classes`` says which
   values are which class: ``data.classes={liver: 5, spleen: 1, kidney: [2, 3]}``.
2. ``imagesTr/``, ``labelsTr/`` and ``dataset.json``: Medical Segmentation Decathlon (MSD), or
   nnU-Net, where images end in ``_0000``.
3. ``images/`` and ``labels/`` (or ``masks/``) with the same file names; masks may end in ``_mask``.

A channel, or up to three, is chosen by index, or by name if ``dataset.json`` names the channels.
Where images end in ``_0000``, ``_0001`` and so on, each channel of a case is a file of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from samadapt.data.channels import Choice, Indices, listed_channels
from samadapt.data.findings import Finding, FindingError, error_finding, fault, warning_finding
from samadapt.data.formats.base import Layout, ReaderOptions
from samadapt.data.formats.shared.unsupported_files import by_name
from samadapt.data.formats.shared.volume_advice import unknown_layout
from samadapt.data.formats.shared.volume_patterns import pair_patterns, stem_of
from samadapt.data.types import Case
from samadapt.system.limits import lies_inside

_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
_DECLARED = "correct dataset.json (see the MSD or nnU-Net documentation)"


def discover_volumes(options: ReaderOptions, suffixes: tuple[str, ...]) -> Layout:
    """List the cases of a folder in any of the layouts; faults become findings.

    Args:
        options: root, patterns and channels.
        suffixes: file name endings of the format, longest first.
    """
    root = options.root
    layout = Layout(suffixes=suffixes)
    if not (root is None and options.image) and (root is None or not root.is_dir()):
        reason = "there is no such folder" if root else "no folder is given"
        where = root or Path("data.root")
        fix = "set data.root to the data set's folder, or data.image and data.label to file names"
        layout.findings.append(error_finding("missing_folder", where, reason, fix))
        return layout
    try:
        if root is None or options.image:
            channels_are_files = pair_patterns(options, layout)
            if not channels_are_files:
                channel = channel_beside(root or Path(), options.channel)
                layout.cases = [replace(case, channel=channel) for case in layout.cases]
        elif (root / "imagesTr").is_dir():
            _read_decathlon(root, options, layout)
        elif (root / "images").is_dir():
            masks = root / ("labels" if (root / "labels").is_dir() else "masks")
            _pair_folders(root / "images", masks, channel_beside(root, options.channel), layout)
        else:
            layout.findings.append(unknown_layout(root, suffixes))
    except FindingError as error:
        layout.findings.append(error.finding)
        return layout
    if not layout.cases and not layout.findings:
        message = f"the folder holds no {' or '.join(suffixes)} image"
        place = str(root or options.image)
        layout.findings.append(error_finding("no_cases", place, message, "check data.root"))
    return layout


def _files(folder: Path, layout: Layout) -> dict[str, Path]:
    """List the volumes of a folder by stem. Other files, and two of one stem, become findings."""
    found: dict[str, Path] = {}
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    names = {entry.name for entry in entries}
    for path in entries:
        if path.name.startswith(".") or path.is_dir():
            continue
        if not path.name.lower().endswith(layout.suffixes):
            if _has_header(path, entries):
                continue
            known = by_name(path)
            if known and not {f"{path.stem}{end}" for end in layout.suffixes} & names:
                message = f"it is {known[0]}, which is not read"
                layout.findings.append(error_finding("not_read", path, message, known[1]))
                continue
            message = f"expected {' or '.join(layout.suffixes)} here; this file is not read"
            finding = warning_finding("other_file", path, message, "remove or convert it")
            layout.findings.append(finding)
            continue
        stem = stem_of(path, layout.suffixes)
        if stem in found:
            message = f"it has the same name as {found[stem].name}"
            finding = error_finding("duplicate_case", path, message, "keep one of the two")
            layout.findings.append(finding)
            layout.ambiguous |= {path, found[stem]}
            continue
        found[stem] = path
    return found


def _has_header(path: Path, entries: list[Path]) -> bool:
    """Return whether a file belongs to one beside it: voxels of a header, or SPM's ``.mat``."""
    names = {entry.name.lower() for entry in entries}
    beside = {".img": ".hdr", ".mat": ".img"}.get(path.suffix.lower())
    if beside and f"{path.stem}{beside}".lower() in names:
        return True
    stem = path.name.partition(".")[0]
    headers = {entry.stem for entry in entries if entry.suffix.lower() in (".mhd", ".nhdr")}
    return path.name.lower().endswith((".raw", ".raw.gz", ".zraw")) and stem in headers


def _pair_folders(folder: Path, labels: Path, channel: Indices, layout: Layout) -> None:
    """Add a case for each image and each mask of two folders, paired by name."""
    images, masks = _files(folder, layout), _files(labels, layout)
    # Names like scan_0001 may just count the cases, so a mask must lack the number.
    if _are_numbered(images, masks) and {stem[:-5] for stem in images} & set(masks):
        _nnunet_cases(folder, images, masks, channel, {}, layout)
        return
    masks = _owners(masks, images, layout)
    for name in sorted({*images, *masks}):
        image = images.get(name, folder / f"{name}{layout.suffixes[0]}")
        layout.cases.append(Case(name, image, masks.get(name), channel=channel))


def _owners(masks: Mapping[str, Path], images: Collection[str], layout: Layout) -> dict[str, Path]:
    """Return the masks by the names of their images. Two masks of one image become a finding."""
    owners: dict[str, Path] = {}
    for stem, path in masks.items():
        first = owners.setdefault(_unmasked(stem, images), path)
        if first != path:
            message = f"there are two masks for one image: {first.name} and {path.name}"
            layout.findings.append(
                error_finding("duplicate_case", path, message, "keep one of them")
            )
            layout.ambiguous |= {first, path}
    return owners


def _unmasked(stem: str, images: Collection[str]) -> str:
    """Return the name of the image that a mask of this name belongs to."""
    if stem in images:
        return stem
    return stem.removesuffix("_mask").removesuffix(".seg")  # 3D Slicer writes NAME.seg.nrrd


def _read_decathlon(root: Path, options: ReaderOptions, layout: Layout) -> None:
    """Add the cases of a folder of MSD or nnU-Net, with classes and modality of its JSON file."""
    declared = _read_json(root / "dataset.json")
    channels = _channel_names(declared)
    channel = _channel_indices(root / "dataset.json", options.channel, channels)
    layout.classes = _classes(root / "dataset.json", declared, layout)
    kinds = {channels.get(str(index)) for index in listed_channels(channel) or (0,)}
    layout.modality = kinds.pop() if len(kinds) == 1 or "CT" not in kinds else None
    ending = declared.get("file_ending", layout.suffixes[0])
    if ending not in layout.suffixes:
        message = (
            f"file_ending names another format; this reader reads {' and '.join(layout.suffixes)}"
        )
        fix = "use the reader of that format (samadapt ls data), or convert the images"
        raise fault("file_ending", root / "dataset.json", message, fix)
    images = _files(root / "imagesTr", layout)
    masks = _files(root / "labelsTr", layout)
    if _are_numbered(images, masks):
        _nnunet_cases(root / "imagesTr", images, masks, channel, channels, layout)
    else:
        _msd_cases(root, declared, images, masks, channel, layout)


def _are_numbered(images: Mapping[str, Path], masks: Mapping[str, Path]) -> bool:
    """Return whether every image ends in a channel number (``_0000``), and no mask does."""
    own = {_unmasked(stem, images) for stem in masks}
    return bool(images) and all(map(_CHANNEL.match, images)) and not own & set(images)


def _nnunet_cases(
    folder: Path,
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    channel: Indices,
    channels: Mapping[str, str],
    layout: Layout,
) -> None:
    """Add cases with one file for each channel.

    Args:
        folder: of the images.
        images: images by stem; the last five characters are the channel, such as ``_0000``.
        masks: masks by stem.
        channel: index of the channel, or several; None where there is one.
        channels: names of the channels by index, as ``dataset.json`` has them.
        layout: the cases are added to it.

    Raises:
        FindingError: there are several channels, and none is chosen.
    """
    count = max(len(channels), len({stem[-4:] for stem in images}))
    if channel is None and count > 1:
        raise fault(
            "channel_choice",
            folder.parent / "dataset.json" if channels else folder,
            f"each case has {count} channels and none is chosen",
            f"choose one with data.channel: {', '.join([f'0..{count - 1}', *channels.values()])}; "
            "or up to three, data.channel=[0,1]",
        )
    owners = _owners(masks, {stem[:-5] for stem in images}, layout)
    for name in sorted({*(stem[:-5] for stem in images), *owners}):
        files = []
        for index in listed_channels(channel) or (0,):
            stem = f"{name}_{index:04d}"
            files.append(images.get(stem, folder / f"{stem}{layout.suffixes[0]}"))
        several = tuple(files) if len(files) > 1 else ()
        layout.cases.append(Case(name, files[0], owners.get(name), files=several))


def _msd_cases(
    root: Path,
    declared: Mapping[str, Any],
    images: dict[str, Path],
    masks: dict[str, Path],
    channel: Indices,
    layout: Layout,
) -> None:
    """Add the cases of MSD: the entries of ``training``, and further files of the two folders."""
    training = declared.get("training", [])
    entries: Iterable[Any] = training if isinstance(training, list) else [training]
    for index, entry in enumerate(entries):
        names_both = isinstance(entry, dict) and all(
            isinstance(entry.get(key), str) and entry[key] for key in ("image", "label")
        )
        if not names_both:
            message = f"entry {index} of training must have image and label, as strings"
            finding = error_finding("bad_dataset_json", root / "dataset.json", message, _DECLARED)
            layout.findings.append(finding)
            continue
        outside = [key for key in ("image", "label") if not lies_inside(str(entry[key]), root)]
        if outside:
            message = (
                f"{outside[0]} of entry {index} of training lies outside of the data set's folder"
            )
            fix = "name the files relative to the folder of dataset.json"
            file = str(root / "dataset.json")
            layout.findings.append(Finding("path_outside", "error", file, message, fix))
            continue
        for key, known in (("image", images), ("label", masks)):
            path = root / str(entry[key])
            known.setdefault(stem_of(path, layout.suffixes), path)
    for name in sorted({*images, *masks}):
        image = images.get(name, root / "imagesTr" / f"{name}{layout.suffixes[0]}")
        layout.cases.append(Case(name, image, masks.get(name), channel=channel))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        fix = "add it, or name the files with data.image, data.label and data.classes"
        raise fault("missing_dataset_json", path, "MSD and nnU-Net folders have this file", fix)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise fault(
            "broken_dataset_json", path, f"it is not JSON ({type(error).__name__})", _DECLARED
        ) from None
    if not isinstance(content, dict):
        message = f"it must hold a JSON object; it holds {type(content).__name__}"
        raise fault("broken_dataset_json", path, message, _DECLARED)
    return content


def _mapping(declared: Mapping[str, Any], *keys: str) -> Mapping[Any, Any]:
    """Return the first of some keys that holds a mapping; empty if there is none."""
    for key in keys:
        if isinstance(declared.get(key), dict):
            return dict(declared[key])
    return {}


def _channel_names(declared: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the channels by index: nnU-Net's key, or that of MSD and old nnU-Net."""
    names = _mapping(declared, "channel_names", "modality")
    return {str(key): str(value) for key, value in names.items()}


def channel_beside(folder: Path, channel: Choice) -> Indices:
    """Return channels as indices. Names are looked up in ``dataset.json`` in or above ``folder``.

    Raises:
        FindingError: no such file names the channel.
    """
    names = [name for name in listed_channels(channel) if not str(name).isdigit()]
    if not names:
        return _as_indices(channel, [int(index) for index in listed_channels(channel)])
    for path in (folder / "dataset.json", folder.parent / "dataset.json"):
        if path.is_file():
            return _channel_indices(path, channel, _channel_names(_read_json(path)))
    message = f"channel {names[0]!r} is given by name, but no dataset.json here names the channels"
    fix = "choose the channel by its index, from 0; or, where it is a file, write {channel} into "
    raise fault("channel_choice", folder, message, f"{fix}data.image")


def _as_indices(channel: Choice, indices: list[int]) -> Indices:
    if channel is None:
        return None
    return tuple(indices) if isinstance(channel, tuple) else indices[0]


def _channel_indices(path: Path, channel: Choice, channels: Mapping[str, str]) -> Indices:
    return _as_indices(
        channel, [_index_of(path, one, channels) for one in listed_channels(channel)]
    )


def _index_of(path: Path, channel: int | str, channels: Mapping[str, str]) -> int:
    if str(channel).isdigit():
        return int(channel)
    for index, name in channels.items():
        if name == channel and index.isdigit():
            return int(index)
    known = ", ".join(channels.values()) or "none"
    raise fault("channel_choice", path, f"no channel {channel!r}; it has: {known}", "choose one")


def _classes(
    path: Path, declared: Mapping[str, Any], layout: Layout
) -> dict[str, tuple[int, ...]] | None:
    """Return the values of each class: MSD has ``{"1": name}``, nnU-Net ``{name: 1}``.

    Values of ``ignore`` go to ``layout.ignored``. Classes that overlap, which nnU-Net calls
    regions, go to ``layout.regions``; then None is returned.
    """
    labels = declared.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise fault("bad_dataset_json", path, "labels must map values and names", _DECLARED)
    pairs = [_name_and_values(path, key, value) for key, value in labels.items()]
    classes = {name: values for name, values in pairs if values != (0,) and name != "ignore"}
    layout.ignored = tuple(value for name, values in pairs if name == "ignore" for value in values)
    used = [value for values in classes.values() for value in values]
    if 0 in used:
        message = "a label lists the value 0, which is background, among others"
        raise fault("bad_dataset_json", path, message, _DECLARED)
    if len(used) > len(set(used)):  # such as the regions of BraTS: a voxel is of several
        layout.regions = classes
        return None
    return classes


def _name_and_values(path: Path, key: str, value: Any) -> tuple[str, tuple[int, ...]]:
    """Return the name and the values of an entry of ``labels``."""
    if key.lstrip("-").isdigit() and isinstance(value, str):
        return value, (int(key),)
    if isinstance(value, int) and not isinstance(value, bool):
        return key, (value,)
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return key, tuple(value)
    message = "labels: each entry must be value: name or name: value"
    raise fault("bad_dataset_json", path, message, _DECLARED)
