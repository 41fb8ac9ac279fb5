"""Why a data set cannot be used as it was asked for."""

from __future__ import annotations

from samadapt.data.checks.leaks import copy_findings, leave_out_copies
from samadapt.data.checks.unusable import refuse_no_case
from samadapt.data.formats.base import Reader, Scan
from samadapt.data.intensity import IntensityRule
from samadapt.data.splits import Splits
from samadapt.data.stacks import check_depth
from samadapt.data.tiles import Tiling, check_tiles
from samadapt.data.types import Case, Finding
from samadapt.errors import ConfigError, DataError

_SHOWN = 20


def check_usable(name: str, scan: Scan, on_error: str, reader: Reader) -> None:
    """Refuse a data set with errors, or without a case; ``skip`` leaves copies out as well.

    Raises:
        DataError: the first twenty errors.
    """
    refuse_no_case(scan, reader)
    if on_error == "skip":
        leave_out_copies(scan)
    errors = [finding for finding in scan.findings if finding.severity == "error"]
    if not scan.cases or (errors and on_error == "stop"):
        raise DataError(_refusal(name, errors, skippable=bool(scan.cases)))


def check_options(on_error: str, slice_step: int, empty_slices: str | float) -> None:
    """Refuse values that no option has; raises ``ConfigError``."""
    if on_error not in ("stop", "skip"):
        raise ConfigError(f"data.on_error must be stop or skip; got {on_error!r}")
    if slice_step < 1:
        raise ConfigError(f"data.slice_step must be at least 1; got {slice_step}")
    share_of(empty_slices)


def check_kind(cases: list[Case], rule: IntensityRule, stack: int, cut: Tiling | None) -> None:
    """Refuse what needs volumes of pictures, and the reverse; raises ``ConfigError``."""
    flat = next((case for case in cases if case.shape[2] == 1), None)
    if rule.neighbours and flat is not None:
        raise ConfigError(f"data.neighbours={rule.neighbours}: {flat.image} has one slice alone")
    check_depth(stack, cases)
    check_tiles(cut, cases)


def check_copies(name: str, scan: Scan, parts: Splits) -> None:
    """Refuse an image on both sides of the split; copies on one side are findings."""
    doubled = copy_findings(scan.cases, parts)
    if leaks := [finding for finding in doubled if finding.severity == "error"]:
        raise DataError(_refusal(name, leaks))
    scan.findings.extend(doubled)


def _refusal(name: str, errors: list[Finding], *, skippable: bool = True) -> str:
    """Return the first errors; ``skippable``: other cases are usable without these."""
    if not errors:
        return f"{name}: no usable case was found"
    lines = [f"{name}: {_counted(len(errors))} in the data set:", *map(str, errors[:_SHOWN])]
    if len(errors) > _SHOWN:
        lines.append(f"... and {len(errors) - _SHOWN} more; samadapt check lists all")
    if skippable:
        lines.append("mend the files, or leave these cases out with data.on_error=skip")
    return "\n  ".join(lines)


def _counted(errors: int) -> str:
    return "1 error" if errors == 1 else f"{errors} errors"


def share_of(empty: str | float) -> float:
    """Return the share of empty slices to keep; raises ``ConfigError`` for another word."""
    if empty in ("drop", "keep"):
        return 0.0 if empty == "drop" else 1.0
    try:
        share = float(empty)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"data.empty_slices must be drop, keep or a share of 0..1; got {empty!r}")
    return share
