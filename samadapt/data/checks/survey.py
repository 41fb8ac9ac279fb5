"""``samadapt check``: report every problem of a data set, and statistics of its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samadapt.data.cards import Card
from samadapt.data.channels import Channel
from samadapt.data.checks.class_values import decide_classes
from samadapt.data.checks.empty_dataset import refuse_no_case
from samadapt.data.checks.leaks import copy_findings, mark_patients
from samadapt.data.checks.quality import (
    CaseFacts,
    case_findings,
    class_statistics,
    comparison_findings,
    ignored_share,
    measure,
)
from samadapt.data.checks.refusals import check_tiles
from samadapt.data.classes import ClassChoice, Ignore
from samadapt.data.findings import Finding, error_finding
from samadapt.data.formats.base import FormatReader, Scan
from samadapt.data.opening import (
    Intensity,
    decide_intensity,
    mask_rules,
    open_reader,
)
from samadapt.data.partial_labels import read_partial_labels
from samadapt.data.splits import Splits, make_splits
from samadapt.data.tiles import OVERLAP, tiling
from samadapt.data.types import Case, Volume
from samadapt.errors import ConfigError


@dataclass(frozen=True)
class Survey:
    """What a check found.

    Attributes:
        findings: all problems, errors first.
        cases: number of usable cases.
        left_out: names of the cases with an error.
        patients: number of patients; None where the files name none.
        classes: one row for each class; see ``quality.class_statistics``.
        ignored: ``{"voxels", "share"}`` of the voxels without loss and score; None if there are
            none.
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
    """Return only the problems of single files, errors first.

    The arguments are those of ``survey``.
    """
    masks = mask_rules(classes, instances, mask_threshold, ignore, background, regions)
    _, card, reader = open_reader(
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
    """Read every file of a data set once; return all problems and statistics of each class.

    Apart from the problems of single files these are unusual cases, differences between cases, and
    copies.

    Args:
        name: a card or a reader. The other arguments are those of ``open_dataset``.
        root: the data set's folder.
        axis: the axis that volumes are sliced along.
        classes: the classes that will be used; they decide which label values are errors.
        max_cases: read only the first of the sorted cases.
        channel: channel of multi-channel images.
        image: file name or pattern of the images.
        label: file name or pattern of the masks.
        intensity: decides whether the values should be HU.
        val_every: every n-th case is validation; copies in both splits are errors.
        patient: pattern for case names; see ``leaks.mark_patients``.
        tile: count tiles with this side in pixels as slices, as training would.
        tile_overlap: smallest overlap of neighbouring tiles, as a share of the side.
        spacing: which voxel size of a NIfTI header is true if it states two.
        ignore: mask value or values without loss and score.
        instances: each number of a mask is one object of one class.
        mask_threshold: this value of a mask and higher ones are foreground.
        series: which of several DICOM series in a folder.
        exif: see ``formats/shared/exif.py``.
        background: colour of the masks' background; see ``colours.py``.
        annotated: file that lists what is annotated; see ``partial_labels.py``.
        regions: classes that may overlap.

    Raises:
        ConfigError: a name or class does not exist, or volumes would be cut into tiles.
        DownloadError: the data set of a card could not be downloaded.
    """
    cut = tiling(tile, tile_overlap)
    masks = mask_rules(classes, instances, mask_threshold, ignore, background, regions)
    name, card, reader = open_reader(
        name, root, axis, channel, image, label, cut, spacing, masks, series, classes, exif
    )
    # Each volume is measured while the scan has it in memory, so files are read once.
    facts: dict[str, CaseFacts] = {}

    def look(case: Case, volume: Volume) -> None:
        facts[case.name] = measure(case, volume)

    scan = reader.scan(max_cases, look)
    check_tiles(cut, scan.cases)
    mark_patients(scan, patient)
    table = decide_classes(scan, card, classes, masks=masks, regions=regions)
    refuse_no_case(scan, reader)
    read_partial_labels(annotated, root, scan, table)
    where = str(reader.options.root or name)
    is_ct = _is_ct(intensity, card, scan, reader)
    for case in scan.cases:
        scan.findings += case_findings(case, facts[case.name], table, is_ct=is_ct)
    if scan.cases:
        parts = _division(scan, card, val_every, where)
        scan.findings += copy_findings(scan.cases, parts)
        scan.findings += comparison_findings(scan.cases, facts, table, parts, where)
    # Where the files name patients, a case without one counts as a patient.
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
    # "error" sorts before "warning".
    return finding.severity, finding.file, finding.code


def _division(scan: Scan, card: Card | None, val_every: int, where: str) -> Splits:
    """Return the division that a run would use; if it is impossible, add a finding."""
    cases = sorted(scan.cases, key=lambda case: case.name)
    try:
        return make_splits(cases, card.split if card else None, val_every)
    except ConfigError as error:
        fix = "correct the split; keep all cases of a patient in one split"
        scan.findings.append(error_finding("bad_split", where, str(error), fix))
        return Splits([], [], "")


def _is_ct(
    intensity: Intensity | None, card: Card | None, scan: Scan, reader: FormatReader
) -> bool:
    """Return whether the values should be HU: the intensity rule is a fixed window."""
    try:
        rule = decide_intensity(intensity, card, scan, reader)
    except ConfigError:
        # Only a wrong rule of the user stops the check, not one that nothing decides.
        if intensity not in (None, "auto"):
            raise
        return False
    return all(part.kind == "window" for part in rule.channels or rule.inputs or (rule,))
