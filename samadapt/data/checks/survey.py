"""Every problem of a data set as findings, and what it holds; nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samadapt.data.cards import Card
from samadapt.data.channels import Channel
from samadapt.data.checks.empty_dataset import refuse_no_case
from samadapt.data.checks.leaks import copy_findings, mark_patients
from samadapt.data.checks.quality import (
    Facts,
    case_findings,
    class_statistics,
    comparison_findings,
    ignored_share,
    measure,
)
from samadapt.data.checks.refusals import check_tiles
from samadapt.data.classes import ClassChoice, ClassTable, Ignore
from samadapt.data.findings import Finding
from samadapt.data.formats.base import FormatReader, Scan
from samadapt.data.opening import (
    Intensity,
    decide_classes,
    decide_intensity,
    mask_rules,
    open_reader,
)
from samadapt.data.partial_labels import read_annotated
from samadapt.data.splits import Splits, make_splits
from samadapt.data.tiles import OVERLAP, tiling
from samadapt.data.types import Case, Volume
from samadapt.errors import ConfigError


@dataclass(frozen=True)
class Survey:
    """What a check found.

    Attributes:
        findings: all problems, errors first.
        cases: usable cases.
        left_out: names of the cases that have an error.
        patients: how many people the cases are of, where marks say; None where nothing does.
        classes: a row a class; see ``quality.class_statistics``.
        ignored: ``{"voxels", "share"}`` of all voxels that have no loss and no score; None
            where there is none.
    """

    findings: list[Finding]
    cases: int
    left_out: list[str]
    patients: int | None
    classes: list[dict[str, Any]]
    ignored: dict[str, float] | None = None


def check_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    axis: str | int | None = None,
    classes: ClassChoice = None,
    max_cases: int | None = None,
    channel: Channel | Sequence[Channel] | None = None,
    image: str | None = None,
    label: str | None = None,
    spacing: str | None = None,
    ignore: Ignore = None,
    instances: bool = False,
    mask_threshold: float | None = None,
    series: str | None = None,
    exif: str | None = None,
    background: str | Sequence[str] | None = None,
    regions: Mapping[str, int | Sequence[int]] | None = None,
) -> list[Finding]:
    """Return the faults of single files alone, errors first; the arguments are ``survey``'s."""
    rules = (instances, mask_threshold, ignore, background, regions)
    masks = mask_rules(classes, *rules)
    card, reader = open_reader(
        name, root, axis, channel, image, label, None, spacing, masks, series, classes, exif
    )
    scan = reader.scan(max_cases)
    decide_classes(scan, card, classes, masks=masks, regions=regions)
    refuse_no_case(scan, reader)
    return sorted(scan.findings, key=_order)


def survey(
    name: str,
    root: str | Path | None = None,
    *,
    axis: str | int | None = None,
    classes: ClassChoice = None,
    max_cases: int | None = None,
    channel: Channel | Sequence[Channel] | None = None,
    image: str | None = None,
    label: str | None = None,
    intensity: Intensity | None = None,
    val_every: int = 5,
    patient: str | None = None,
    tile: int | None = None,
    tile_overlap: float = OVERLAP,
    spacing: str | None = None,
    ignore: Ignore = None,
    instances: bool = False,
    mask_threshold: float | None = None,
    series: str | None = None,
    exif: str | None = None,
    background: str | Sequence[str] | None = None,
    annotated: str | Path | None = None,
    regions: Mapping[str, int | Sequence[int]] | None = None,
) -> Survey:
    """Read every file of a data set and return all problems, and statistics of each class.

    Beside the faults of single files: what is odd about a case, how cases differ, copies.

    Args:
        name: a card or a reader; the other arguments are those of ``open_dataset``.
        root: the data set's folder.
        axis: what volumes are sliced along.
        classes: the classes that will be used; decides which label values are errors.
        max_cases: read only the first of the sorted cases.
        channel: channel of multi-channel images.
        image: file name or pattern of the images.
        label: file name or pattern of the masks.
        intensity: tells whether the values are meant as HU.
        val_every: every such case is validation; copies on both sides are errors.
        patient: pattern over case names; see ``leaks.mark_patients``.
        tile: count tiles of so many pixels a side as slices, as training would.
        tile_overlap: of neighbouring tiles.
        spacing: which voxel size of a NIfTI header is true where it states two.
        ignore: mask value or values without loss and score; see ``open_dataset``.
        instances: each number of a mask is one object of one class.
        mask_threshold: values of a mask from here on are foreground, lower ones background.
        series: which of several DICOM series in a folder.
        exif: see ``orientation.py``.
        background: colour of the masks' background; see ``colours.py``.
        annotated: file that lists what is annotated; see ``annotated.py``.
        regions: classes that may overlap; see ``open_dataset``.

    Raises:
        ConfigError: an unknown name or class, or tiles of volumes.
        DownloadError: a card's data set could not be fetched.
    """
    cut = tiling(tile, tile_overlap)
    rules = (instances, mask_threshold, ignore, background, regions)
    masks = mask_rules(classes, *rules)
    card, reader = open_reader(
        name, root, axis, channel, image, label, cut, spacing, masks, series, classes, exif
    )
    facts: dict[str, Facts] = {}

    def look(case: Case, volume: Volume) -> None:
        facts[case.name] = measure(case, volume)

    scan = reader.scan(max_cases, look)
    check_tiles(cut, scan.cases)
    mark_patients(scan, patient)
    table = decide_classes(scan, card, classes, masks=masks, regions=regions)
    refuse_no_case(scan, reader)
    read_annotated(annotated, root, scan, table)
    where = str(reader.options.root or name)
    is_ct = _is_ct(intensity, card, scan, reader)
    for case in scan.cases:
        scan.findings += case_findings(case, facts[case.name], table, is_ct=is_ct)
    if scan.cases:
        parts = _division(scan, card, val_every, where)
        scan.findings += copy_findings(scan.cases, parts)
        scan.findings += comparison_findings(scan.cases, facts, table, parts, where)
    return _summary(scan, facts, table)


def _summary(scan: Scan, facts: Mapping[str, Facts], table: ClassTable) -> Survey:
    """Return what was found, with the statistics of each class."""
    marks = {case.patient for case in scan.cases if case.patient}
    unmarked = sum(not case.patient for case in scan.cases)
    return Survey(
        sorted(scan.findings, key=_order),
        len(scan.cases),
        sorted(scan.left_out),
        len(marks) + unmarked if marks else None,
        class_statistics(scan.cases, facts, table),
        ignored_share(scan.cases, facts, table),
    )


def _order(finding: Finding) -> tuple[str, str, str]:
    return finding.severity, finding.file, finding.code


def _division(scan: Scan, card: Card | None, val_every: int, where: str) -> Splits:
    """Return the division that a run would use; one that cannot be made is a finding."""
    cases = sorted(scan.cases, key=lambda case: case.name)
    try:
        return make_splits(cases, card.split if card else None, val_every)
    except ConfigError as error:
        fix = "mend the split; keep all cases of a patient on one side"
        scan.findings.append(Finding("bad_split", "error", where, str(error), fix))
        return Splits([], [], "")


def _is_ct(
    intensity: Intensity | None, card: Card | None, scan: Scan, reader: FormatReader
) -> bool:
    """Whether the values are meant as HU: a window is fixed, percentiles are not."""
    try:
        rule = decide_intensity(intensity, card, scan, reader)
    except ConfigError:
        if intensity not in (None, "auto"):
            raise
        return False
    return all(part.kind == "window" for part in rule.channels or rule.inputs or (rule,))
