"""From a name to a reader, a class table and an intensity rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samadapt.data.cards import Card, list_cards, load_card
from samadapt.data.classes import ClassChoice, ClassTable, make_table, values_of
from samadapt.data.download import fetch_dataset
from samadapt.data.intensity import IntensityRule, intensity_of_modality, make_intensity
from samadapt.data.nifti_affine import check_spacing_source
from samadapt.data.reader import Reader, ReaderOptions, Scan, get_reader, parse_axis, readers
from samadapt.data.tiles import Tiling
from samadapt.data.types import Finding
from samadapt.errors import ConfigError, nearest


def open_reader(
    name: str,
    root: str | Path | None,
    axis: str | int | None = None,
    channel: int | str | None = None,
    image: str | None = None,
    label: str | None = None,
    tiling: Tiling | None = None,
    spacing: str | None = None,
) -> tuple[Card | None, Reader]:
    """Return the card, if the name is one, and the reader with its options.

    Raises:
        ConfigError: neither card nor reader has that name, or an option is wrong.
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
    if card and card.download:
        folder = fetch_dataset(card.name, card.download) if folder is None else folder
        if not (folder / "imagesTr").is_dir() and (folder / card.download.folder).is_dir():
            folder = folder / card.download.folder
    options = ReaderOptions(
        folder,
        chosen_axis,
        channel if channel is not None or card is None else card.channel,
        image or (card.image if card else None),
        label or (card.label if card else None),
        tiling,
        spacing,
    )
    return card, get_reader(card.reader if card else name)(options)


def decide_classes(
    scan: Scan,
    card: Card | None,
    chosen: ClassChoice,
    merge: bool = False,
    ignore: int | Sequence[int] | None = None,
) -> ClassTable:
    """Return the class table from the user's choice, the card, the data set or the masks.

    Args:
        scan: the cases with the values of their masks; ignored values that occur nowhere become
            a finding.
        card: the data set card, or None.
        chosen: see ``make_table``.
        merge: all classes as one.
        ignore: mask value or values without loss and score; None: those that the data set
            declares, unless ``chosen`` makes them a class.

    Raises:
        ConfigError: as ``make_table``.
    """
    declared = card.classes if card and card.classes else scan.classes
    found = {value for case in scan.cases for value in case.values}
    if ignore is None:
        named = [values_of(v) for v in chosen.values()] if isinstance(chosen, Mapping) else []
        ignored = set(scan.ignored) - set().union(*named)
    else:
        ignored = set(values_of(ignore))
        if absent := sorted(ignored - found - {0}) if scan.cases else []:
            shown = ", ".join(map(str, absent))
            message = f"data.ignore names the value {shown}, which occurs in no mask"
            where = str(scan.cases[0].labels or scan.cases[0].image)
            fix = "check the value, or leave data.ignore out"
            scan.findings.append(Finding("ignore_absent", "warning", where, message, fix))
    return make_table(declared, chosen, found, merge=merge, ignored=ignored)


def check_values(scan: Scan, table: ClassTable) -> None:
    """Turn values and names outside the class list into findings and leave those cases out."""
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
            fix = "mend the mask, or list the classes to use with data.classes={name: value}"
            file = str(case.labels or case.image)
            findings.append(Finding("label_value", "error", file, message, fix))
        names = sorted({name for name in case.named if not table.id_of(name)})
        if names and table.complete:
            message = f"labels {', '.join(names[:8])} are outside the class list ({listed})"
            fix = "mend the annotation, or name the classes with data.classes={name: value}"
            file = str(case.annotations or case.image)
            findings.append(Finding("annotation_class", "error", file, message, fix))
        scan.findings.extend(findings)
        if findings:
            scan.left_out.append(case.name)
        else:
            usable.append(case)
    scan.cases = usable


def decide_intensity(
    chosen: str | Mapping[str, Any] | None, card: Card | None, scan: Scan, reader: Reader
) -> IntensityRule:
    """Return the rule from the user's choice, the card, the modality or the reader.

    Raises:
        ConfigError: none of them says.
    """
    if chosen is not None and chosen != "auto":
        return make_intensity(chosen)
    if card and card.intensity:
        return make_intensity(card.intensity)
    if scan.modality:
        return make_intensity(intensity_of_modality(scan.modality))
    if reader.default_intensity:
        return make_intensity(reader.default_intensity)
    raise ConfigError(
        "data.intensity: the data set does not say what its values are; choose "
        "data.intensity=mri, ct:soft_tissue, ct:LOW,HIGH (HU) or rgb"
    )
