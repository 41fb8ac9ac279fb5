"""Decide the classes of a data set, and report label values and names that do not fit them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from samadapt.data.cards import Card
from samadapt.data.checks.empty_dataset import refuse_no_object
from samadapt.data.checks.mask_values import SOME, VOID, common_value_findings, value_findings
from samadapt.data.classes import ClassChoice, ClassTable, ClassValues, make_table, values_of
from samadapt.data.colours import resolve_colours
from samadapt.data.findings import error_finding, warning_finding
from samadapt.data.formats.base import Scan
from samadapt.data.mask_rules import AS_CLASSES, MaskRules
from samadapt.data.types import Case
from samadapt.errors import ConfigError


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
        where = scan.cases[0].labels or scan.cases[0].image
        fix = "check the value, or leave data.ignore out"
        scan.findings.append(warning_finding("ignore_absent", where, message, fix))
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
            file = case.labels or case.image
            findings.append(error_finding("label_value", file, message, _way_out(unknown)))
        names = sorted({name for name in case.named if not table.id_of(name)})
        if names and table.complete:
            message = f"labels {', '.join(names[:8])} are outside the class list ({listed})"
            fix = "correct the annotation, or name the classes with data.classes={name: value}"
            file = case.annotations or case.image
            findings.append(error_finding("annotation_class", file, message, fix))
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
