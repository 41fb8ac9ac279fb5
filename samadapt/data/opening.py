"""What ``open_dataset`` decides: the reader, how masks are read, the classes, the intensity rule.

Each of them follows from the user's keys, else from the card, else from what the data set declares.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from samadapt.data.cards import Card, list_cards, load_card
from samadapt.data.channels import MANY, Channel, listed_channels, parse_channel
from samadapt.data.checks.empty_dataset import refuse_no_object
from samadapt.data.checks.mask_values import SOME, VOID, common_value_findings, value_findings
from samadapt.data.classes import (
    ClassChoice,
    ClassTable,
    ClassValues,
    Ignore,
    make_table,
    values_of,
)
from samadapt.data.colours import resolve_colours, with_ignored
from samadapt.data.fetch import fetch_dataset
from samadapt.data.findings import Finding
from samadapt.data.formats.base import (
    FormatReader,
    Layout,
    ReaderOptions,
    Scan,
    get_reader,
    parse_axis,
    readers,
)
from samadapt.data.formats.nifti.affine import check_spacing_source
from samadapt.data.formats.shared.exif import parse_exif
from samadapt.data.intensity import IntensityRule, intensity_of_modality, make_intensity
from samadapt.data.mask_rules import AS_CLASSES, MaskRules
from samadapt.data.tiles import Tiling
from samadapt.data.types import Case
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
) -> tuple[Card | None, FormatReader]:
    """Return the card, if ``name`` is one, and the reader with its options.

    The arguments are those of ``open_dataset``; ``masks`` is the result of ``mask_rules``.

    Raises:
        ConfigError: there is no card or reader of that name, or an option does not fit it.
        DownloadError: the card's data set could not be fetched.
    """
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
    return card, kind(options)


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
    listed = isinstance(classes, Mapping) or regions is not None
    return MaskRules(instances, threshold, ignored, not listed, colours)


def decide_classes(
    scan: Scan,
    card: Card | None,
    chosen: ClassChoice,
    merge: bool = False,
    masks: MaskRules = AS_CLASSES,
    regions: Mapping[str, int | Sequence[int]] | None = None,
) -> ClassTable:
    """Return the class table: from the user's choice, the card, the data set or the masks.

    Cases with values or names outside the class list get a finding and are left out. So do cases
    with values that cannot be classes, where no class list exists.

    Args:
        scan: the cases with the values of their masks. Findings are added, for example about
            ignored values that occur nowhere.
        card: the data set card, or None.
        chosen: see ``make_table``.
        merge: all classes as one.
        masks: how masks are read, and which values have no loss and no score.
        regions: classes that may overlap; None: those that the data set declares, unless
            ``chosen`` lists values.

    Raises:
        ConfigError: see ``make_table``.
    """
    # The user's own values come first, then the card, then what the data set declares.
    declared = card.classes if card and card.classes else scan.classes
    chosen, _ = resolve_colours(chosen, None)
    if regions is None and declared is None and not merge and not isinstance(chosen, Mapping):
        regions = scan.regions
    ignored = _ignored_values(scan, chosen, masks)
    if masks.one_class:
        # Object numbers and a threshold give a mask of 0 and 1.
        table = ClassTable((_one_name(declared, chosen),), ((1,),), ignored=tuple(sorted(ignored)))
    else:
        if declared is None and regions is None and not isinstance(chosen, Mapping):
            judge_values(scan, chosen or (), ignored, merge)
        found = {value for case in scan.cases for value in case.values}
        table = make_table(declared, chosen, found, merge=merge, ignored=ignored, regions=regions)
        if regions is not None and regions is scan.regions and chosen is None:
            table = replace(table, complete=True)
    check_values(scan, table)
    refuse_no_object(scan, table, _folder_of(scan.cases) if scan.cases else "")
    return table


def _ignored_values(scan: Scan, chosen: ClassChoice, masks: MaskRules) -> set[int]:
    """Return the values without loss and score: the user's, or those that the data set declares."""
    if masks.ignored is None:
        named = [values_of(v) for v in chosen.values()] if isinstance(chosen, Mapping) else []
        return set(scan.ignored) - set().union(*named)
    found = {value for case in scan.cases for value in case.values}
    if absent := sorted(set(masks.ignored) - found - {0}) if scan.cases else []:
        shown = ", ".join(map(str, absent))
        message = f"data.ignore names the value {shown}, which occurs in no mask"
        where = str(scan.cases[0].labels or scan.cases[0].image)
        fix = "check the value, or leave data.ignore out"
        scan.findings.append(Finding("ignore_absent", "warning", where, message, fix))
    return set(masks.ignored)


def judge_values(
    scan: Scan, names: Sequence[str], ignored: Collection[int] = (), merge: bool = False
) -> None:
    """Report mask values that cannot be classes, and leave those cases out.

    Args:
        scan: a data set that declares no classes.
        names: classes that the user lists without values; they mean the values 1, 2, ...
        ignored: values of pixels that are not annotated.
        merge: all values become one class, so object numbers and two encodings are allowed.
    """
    # Names without values fit if the masks hold 1 to n, or if one name meets one value.
    found = {value for case in scan.cases for value in case.values} - set(ignored)
    if names and (found <= set(range(1, len(names) + 1)) or len(found) == len(names) == 1):
        return
    # First each mask by itself, then the rest of them together.
    usable = []
    for case in scan.cases:
        own = value_findings(case, ignored)
        scan.findings.extend(own)
        if own:
            scan.left_out.append(case.name)
        else:
            usable.append(case)
    common = common_value_findings(usable, _folder_of(usable), ignored) if usable else []
    if merge:
        common = [one for one in common if one.code not in ("object_numbers", "mixed_encodings")]
    if common:
        scan.findings.extend(common)
        scan.left_out.extend(case.name for case in usable)
        usable = []
    scan.cases = usable


def _folder_of(cases: Sequence[Case]) -> str:
    """Return the innermost folder that contains all masks."""
    return os.path.commonpath([(case.labels or case.image).absolute().parent for case in cases])


def _one_name(declared: ClassValues | None, chosen: ClassChoice) -> str:
    """Return the name of the only class that object numbers or a threshold make."""
    names = list(chosen) if chosen else list(declared or ("foreground",))
    if len(names) == 1:
        return str(names[0])
    raise ConfigError(
        "data.instances=true and data.mask_threshold make one class; the class list has "
        f"{len(names)}: {', '.join(map(str, names[:8]))}. Name one with data.classes=[name]"
    )


def check_values(scan: Scan, table: ClassTable) -> None:
    """Report values and names outside the class list, and leave those cases out."""
    listed = ", ".join(
        f"{name}={','.join(map(str, values))}"
        for name, values in zip(table.names, table.values, strict=True)
    )
    usable = []
    for case in scan.cases:
        findings = []
        unknown = table.unknown(case.values)
        if unknown:
            message = f"label values {unknown[:8]} are outside the class list ({listed})"
            file = str(case.labels or case.image)
            findings.append(Finding("label_value", "error", file, message, _way_out(unknown)))
        names = sorted({name for name in case.named if not table.id_of(name)})
        if names and table.complete:
            message = f"labels {', '.join(names[:8])} are outside the class list ({listed})"
            fix = "correct the annotation, or name the classes with data.classes={name: value}"
            file = str(case.annotations or case.image)
            findings.append(Finding("annotation_class", "error", file, message, fix))
        scan.findings.extend(findings)
        if findings:
            scan.left_out.append(case.name)
        else:
            usable.append(case)
    scan.cases = usable


def _way_out(unknown: Sequence[int]) -> str:
    """Return what to do about values outside the class list, depending on what they may mean."""
    fix = "correct the mask, or list the classes to use with data.classes={name: value}"
    if unknown in ([VOID], [-1]):
        fix += f"; if {unknown[0]} means not annotated, set data.ignore={unknown[0]}"
    elif len(unknown) > SOME:
        fix += "; if each number is an object of one class, set data.instances=true"
    return fix


def decide_intensity(
    chosen: Intensity | None, card: Card | None, layout: Layout, reader: FormatReader
) -> IntensityRule:
    """Return the rule: from the user's choice, the card, the modality or the reader.

    Args:
        chosen: ``data.intensity``; None or ``"auto"``: it is not chosen.
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
    raise ConfigError(
        "data.intensity: the data set does not say what its values are; choose "
        "data.intensity=mri, ct:soft_tissue, ct:LOW,HIGH (HU) or rgb"
    )
