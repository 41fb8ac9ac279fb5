"""Open the reader of a data set, and decide how masks are read and which intensity rule applies.

Each decision follows from the user's keys, else from the card, else from what the data set
declares. The classes are decided in ``checks/class_values.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from samadapt.data.cards import Card, list_cards, load_card
from samadapt.data.channels import MANY, Channel, listed_channels, parse_channel
from samadapt.data.classes import (
    ClassChoice,
    Ignore,
    values_of,
)
from samadapt.data.colours import resolve_colours, with_ignored
from samadapt.data.detect import AUTO, detect_reader
from samadapt.data.fetch import fetch_dataset
from samadapt.data.formats.base import (
    FormatReader,
    Layout,
    ReaderOptions,
    get_reader,
    parse_axis,
    readers,
)
from samadapt.data.formats.nifti.affine import check_spacing_source
from samadapt.data.formats.shared.exif import parse_exif
from samadapt.data.intensity import IntensityRule, intensity_of_modality, make_intensity
from samadapt.data.mask_rules import AS_CLASSES, MaskRules
from samadapt.data.tiles import Tiling
from samadapt.errors import ConfigError, nearest

Intensity = str | Sequence[str] | Mapping[str, Any]
"""A specification that ``make_intensity`` accepts."""


def open_reader(
    name: str,
    root: str | Path | None,
    axis: str | int | None = None,
    channel: Channel | Sequence[Channel] | None = None,
    image: str | None = None,
    label: str | None = None,
    tiling: Tiling | None = None,
    spacing: str | None = None,
    masks: MaskRules = AS_CLASSES,
    series: str | None = None,
    classes: ClassChoice = None,
    exif: str | None = None,
) -> tuple[str, Card | None, FormatReader]:
    """Return the name, the card, if it is the name of one, and the reader with its options.

    The arguments are those of ``open_dataset``; ``masks`` is the result of ``mask_rules``. In the
    place of ``auto`` the name of the reader is returned that fits the files.

    Raises:
        ConfigError: there is no card or reader of that name, or an option does not fit it.
        DownloadError: the card's data set could not be fetched.
    """
    name = detect_reader(root) if name == AUTO else name
    check_spacing_source(spacing)
    known = {*list_cards(), *readers()}
    if name not in known:
        raise ConfigError(
            f"data: no card or reader is called {name!r}; known: {', '.join(sorted(known))}"
            + nearest(name, known)
        )
    card = load_card(name) if name in list_cards() else None
    chosen_axis = parse_axis(axis if axis is not None or card is None else card.axis)
    folder = Path(root).expanduser() if root is not None else None
    # The archive of a card contains one folder; data.root may be that folder or the one around it.
    if card and card.download:
        folder = fetch_dataset(card.name, card.download) if folder is None else folder
        if not (folder / "imagesTr").is_dir() and (folder / card.download.folder).is_dir():
            folder = folder / card.download.folder
    # The values of masks are measured only where neither user nor card declares what they mean.
    declared = masks.one_class or bool(card and card.classes)
    masks = replace(masks, judged=masks.judged and not declared)
    options = ReaderOptions(
        folder,
        chosen_axis,
        parse_channel(channel if channel is not None or card is None else card.channel, MANY),
        image or (card.image if card else None),
        label or (card.label if card else None),
        tiling,
        spacing,
        masks,
        series,
        classes,
        parse_exif(exif),
    )
    # Some keys make sense only for some formats.
    kind = get_reader(card.reader if card else name)
    if series is not None and kind.name != "dicom":
        raise ConfigError(f"data.series chooses among DICOM series, but data={name} has none")
    _check_file_keys(kind, name, {"root": root, "image": image, "label": label})
    if kind.numbers_objects and options.masks.one_class:
        key = "data.instances" if options.masks.instances else "data.mask_threshold"
        raise ConfigError(
            f"{key} is for masks that hold one number for each pixel; data={name} already "
            f"separates objects and classes. Leave {key} out"
        )
    if options.masks.colours is not None and not kind.knows_colours:
        raise ConfigError(
            f"data.classes and data.background name colours, but masks of data={name} have label "
            "values: name classes by value, for example data.classes={liver: 1}"
        )
    return name, card, kind(options)


def _check_file_keys(
    kind: type[FormatReader], name: str, given: Mapping[str, str | Path | None]
) -> None:
    """Refuse a key that names files if the reader would ignore it."""
    for key, value in given.items():
        if value is None or key in kind.file_keys:
            continue
        if not kind.file_keys:
            raise ConfigError(
                f"data.{key}: data={name} comes with a package and reads none of your files. Name "
                "the format of your data, such as data=nifti (`samadapt ls data`)"
            )
        raise ConfigError(
            f"data.{key}: data={name} finds its files by itself ({kind.summary}) and does not read "
            f"this key. Leave data.{key} out, and arrange the files in this way"
        )


def mask_rules(
    classes: ClassChoice,
    instances: bool = False,
    threshold: float | None = None,
    ignore: Ignore = None,
    background: str | Sequence[str] | None = None,
    regions: Mapping[str, int | Sequence[int]] | None = None,
) -> MaskRules:
    """Return how masks are read, from the keys of ``data``.

    Args:
        classes: ``data.classes``; it may name colours.
        instances: ``data.instances``.
        threshold: ``data.mask_threshold``.
        ignore: ``data.ignore``.
        background: ``data.background``.
        regions: ``data.regions``.

    Raises:
        ConfigError: the keys contradict each other: only one of object numbers, threshold, colours
            and regions can be used.
    """
    if regions is not None and (instances or threshold is not None):
        key = "data.instances" if instances else "data.mask_threshold"
        raise ConfigError(f"{key} makes one class and data.regions several: choose one of the two")
    if instances and threshold is not None:
        raise ConfigError(
            "data.instances=true reads object numbers and data.mask_threshold grey levels: "
            "choose one of the two"
        )
    _, colours = resolve_colours(classes, background)
    if colours is not None and (instances or threshold is not None or regions is not None):
        raise ConfigError(
            "data.instances, data.mask_threshold and data.regions read numbers, and data.classes "
            "or data.background name colours: choose one of the two"
        )
    colours, ignored = with_ignored(colours, None if ignore is None else values_of(ignore))
    # Names alone do not say which value is which class, so the values are measured then too.
    listed = isinstance(classes, Mapping) or regions is not None
    return MaskRules(instances, threshold, ignored, not listed, colours)


def decide_intensity(
    chosen: Intensity | None, card: Card | None, layout: Layout, reader: FormatReader
) -> IntensityRule:
    """Return the rule: from the user's choice, the card, the modality or the reader.

    Args:
        chosen: ``data.intensity``; None: it is not chosen. ``"auto"``: where nothing else decides,
            the values of the first volumes do.
        card: the data set card, or None.
        layout: what the folder declares; only its modality is used.
        reader: its options name the channels.

    Raises:
        ConfigError: none of them decides, or the number of rules is not that of the channels.
    """
    rule = _intensity(chosen, card, layout, reader)
    return rule.for_channels(max(1, len(listed_channels(reader.options.channel))))


def _intensity(
    chosen: Intensity | None, card: Card | None, layout: Layout, reader: FormatReader
) -> IntensityRule:
    if chosen is not None and chosen != "auto":
        return make_intensity(chosen)
    if card and card.intensity:
        return make_intensity(card.intensity)
    if layout.modality:
        return make_intensity(intensity_of_modality(layout.modality))
    if reader.default_intensity:
        return make_intensity(reader.default_intensity)
    if chosen == "auto" and layout.cases:
        return make_intensity(intensity_of_modality("CT" if _holds_ct(layout, reader) else "MRI"))
    raise ConfigError(
        "data.intensity: the data set does not say what its values are; choose "
        "data.intensity=mri, ct:soft_tissue, ct:LOW,HIGH (HU) or rgb, or auto to let the values "
        "decide"
    )


BELOW_WATER, MEASURED = -150, 3
"""Volumes that hold values down to this many HU are CT, where fat is at -100 and air at -1000. MRI
has no negative values but those of an interpolation or of standardised intensities, which are
small. Several volumes are measured, so that one with an artefact or a broken header decides
nothing."""


def _holds_ct(layout: Layout, reader: FormatReader) -> bool:
    """Return whether most of the first volumes of a data set hold HU.

    Raises:
        FindingError: one of them cannot be read.
    """
    measured = [reader.lowest(case) <= BELOW_WATER for case in layout.cases[:MEASURED]]
    return 2 * sum(measured) > len(measured)
