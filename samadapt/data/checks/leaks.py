"""Leaks: the same image or the same patient must not be in both splits.

The patient of a case comes from the reader (DICOM) or from a pattern for case names, and
``splits.py`` keeps all cases of a patient in one split. Images are compared by a hash of their
voxels, so a copy is found even if its name, compression or header differs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace

from samadapt.data.findings import Finding, error_finding, warning_finding
from samadapt.data.formats.base import Scan
from samadapt.data.splits import Splits
from samadapt.data.types import Case
from samadapt.errors import ConfigError


def mark_patients(scan: Scan, pattern: str | None) -> None:
    """Set the patient of each case from its name; names that do not match become a finding.

    Args:
        scan: its cases are replaced by cases with a patient.
        pattern: regular expression for the whole name with one group, the patient; or None.

    Raises:
        ConfigError: it is not such an expression.
    """
    if pattern is None:
        return
    wanted = patient_pattern(pattern)
    unmatched = []
    for index, case in enumerate(scan.cases):
        match = wanted.fullmatch(case.name)
        if match and match.group(1):
            scan.cases[index] = replace(case, patient=match.group(1))
        else:
            unmatched.append(case)
    if unmatched:
        names = ", ".join(case.name for case in unmatched[:5])
        message = f"data.patient={pattern!r} does not match {len(unmatched)} cases: {names}"
        fix = "correct the pattern; until then each of them counts as a patient of its own"
        scan.findings.append(warning_finding("no_patient", unmatched[0].image, message, fix))


def patient_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of ``data.patient``.

    Raises:
        ConfigError: it is not a regular expression, or it does not have exactly one group.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about [[, which may get another meaning in future
            wanted = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"data.patient: {pattern!r} is not a regular expression: {error}"
        ) from None
    if wanted.groups != 1:
        raise ConfigError(
            f"data.patient: the pattern needs one group for the patient, as in '(.+)_\\d+'; "
            f"{pattern!r} has {wanted.groups}"
        )
    return wanted


def copies(cases: Sequence[Case]) -> list[list[Case]]:
    """Return the groups of cases that hold the same image."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        # A case that was not scanned has no hash, and equals only itself.
        groups.setdefault(case.digest or case.name, []).append(case)
    return [group for group in groups.values() if len(group) > 1]


def leave_out_copies(scan: Scan) -> None:
    """Keep only the first copy of each image by name, and report the others."""
    for first, *others in copies(scan.cases):
        for case in others:
            message = f"holds the same voxels as {first.image}; left out (data.on_error=skip)"
            fix = "remove one of the two"
            scan.findings.append(warning_finding("duplicate_image", case.image, message, fix))
            scan.left_out.append(case.name)
            scan.cases.remove(case)


def copy_findings(cases: Sequence[Case], splits: Splits) -> list[Finding]:
    """Report every copy: as an error if copies are in both splits, else as a warning."""
    found = []
    train, val = set(splits.train), set(splits.val)
    for first, *others in copies(cases):
        names = {first.name, *(case.name for case in others)}
        for case in others:
            message = f"holds the same voxels as {first.image}"
            fix = "remove one of the two"
            if names & train and names & val:
                message += ": copies are in training and in validation"
                fix += ", or leave later copies out with data.on_error=skip"
                found.append(error_finding("duplicate_leak", case.image, message, fix))
            else:
                found.append(warning_finding("duplicate_image", case.image, message, fix))
    return found
