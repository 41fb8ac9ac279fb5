"""What must not be on both sides of a split: the same image, the same patient.

Patients are marked by the reader (DICOM), or by a pattern over case names; ``splits.py`` keeps
those of one on one side. Images are compared by a hash of their voxels, so that a copy is found
whatever its name, compression or header.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace

from samadapt.data.findings import Finding
from samadapt.data.formats.base import Scan
from samadapt.data.splits import Splits
from samadapt.data.types import Case
from samadapt.errors import ConfigError


def mark_patients(scan: Scan, pattern: str | None) -> None:
    """Mark whose each case is by a pattern over case names; those that do not match are findings.

    Args:
        scan: its cases are replaced by marked ones.
        pattern: regular expression of the whole name with one group, the patient; or None.

    Raises:
        ConfigError: not such an expression.
    """
    if pattern is None:
        return
    wanted = patient_pattern(pattern)
    strange = []
    for index, case in enumerate(scan.cases):
        match = wanted.fullmatch(case.name)
        if match and match.group(1):
            scan.cases[index] = replace(case, patient=match.group(1))
        else:
            strange.append(case)
    if strange:
        names = ", ".join(case.name for case in strange[:5])
        message = f"data.patient={pattern!r} does not match {len(strange)} cases: {names}"
        fix = "mend the pattern; until then each of them counts as a patient"
        where = str(strange[0].image)
        scan.findings.append(Finding("no_patient", "warning", where, message, fix))


def patient_pattern(pattern: str) -> re.Pattern[str]:
    """Return a pattern of ``data.patient``, compiled.

    Raises:
        ConfigError: it is no regular expression, or does not have exactly one group.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sets within sets, which mean what they say
            wanted = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"data.patient: {pattern!r} is no regular expression: {error}") from None
    if wanted.groups != 1:
        raise ConfigError(
            f"data.patient: the pattern needs one group, the patient, as '(.+)_\\d+'; "
            f"{pattern!r} has {wanted.groups}"
        )
    return wanted


def copies(cases: Sequence[Case]) -> list[list[Case]]:
    """Return the groups of cases that hold the same image."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.digest or case.name, []).append(case)
    return [group for group in groups.values() if len(group) > 1]


def leave_out_copies(scan: Scan) -> None:
    """Leave out every copy of an image but the first by name, with a finding each."""
    for first, *others in copies(scan.cases):
        for case in others:
            message = f"holds the same voxels as {first.image}; left out (data.on_error=skip)"
            finding = Finding(
                "duplicate_image", "warning", str(case.image), message, "remove one of the two"
            )
            scan.findings.append(finding)
            scan.left_out.append(case.name)
            scan.cases.remove(case)


def copy_findings(cases: Sequence[Case], parts: Splits) -> list[Finding]:
    """Report every copy: as an error where the first of them is on the other side."""
    found = []
    train, val = set(parts.train), set(parts.val)
    for first, *others in copies(cases):
        names = {first.name, *(case.name for case in others)}
        for case in others:
            message = f"holds the same voxels as {first.image}"
            fix = "remove one of the two"
            if names & train and names & val:
                message += ": copies are in training and in validation"
                fix += ", or leave later copies out with data.on_error=skip"
                finding = Finding("duplicate_leak", "error", str(case.image), message, fix)
            else:
                finding = Finding("duplicate_image", "warning", str(case.image), message, fix)
            found.append(finding)
    return found
