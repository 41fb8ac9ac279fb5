"""Refuse a data set that cannot be used with the chosen options."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from samadapt.data.checks.empty_dataset import refuse_no_case
from samadapt.data.checks.leaks import copy_findings, leave_out_copies, patient_pattern
from samadapt.data.findings import Finding
from samadapt.data.formats.base import FormatReader, Scan
from samadapt.data.intensity import IntensityRule
from samadapt.data.splits import Splits
from samadapt.data.tiles import Tiling
from samadapt.data.types import Case
from samadapt.errors import ConfigError, DataError

_SHOWN = 20
"""Findings in one message; `samadapt check` lists all of them."""


def check_options(
    on_error: str, slice_step: int, empty_slices: str | float, patient: str | None = None
) -> None:
    """Refuse values that these options do not have.

    Raises:
        ConfigError: naming the key.
    """
    if on_error not in ("stop", "skip"):
        raise ConfigError(f"data.on_error must be stop or skip; got {on_error!r}")
    if slice_step < 1:
        raise ConfigError(f"data.slice_step must be at least 1; got {slice_step}")
    share_of(empty_slices)
    if patient is not None:
        patient_pattern(patient)


def share_of(empty: str | float) -> float:
    """Return the share (0..1) of empty slices to keep.

    Raises:
        ConfigError: neither ``drop`` nor ``keep`` nor a share.
    """
    if empty in ("drop", "keep"):
        return 0.0 if empty == "drop" else 1.0
    try:
        share = float(empty)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"data.empty_slices must be drop, keep or a share of 0..1; got {empty!r}")
    return share


def check_usable(name: str, scan: Scan, on_error: str, reader: FormatReader) -> None:
    """Refuse a data set that has errors or no usable case; ``skip`` also leaves out copies.

    Raises:
        DataError: with the first twenty errors.
    """
    refuse_no_case(scan, reader)
    if on_error == "skip":
        leave_out_copies(scan)
    errors = [finding for finding in scan.findings if finding.severity == "error"]
    # With skip, the cases with errors are left out already, so only an empty data set is refused.
    if not scan.cases or (errors and on_error == "stop"):
        raise DataError(_refusal(name, errors, skippable=bool(scan.cases)))


def check_kind(
    cases: Sequence[Case], rule: IntensityRule, stack: int, tiling: Tiling | None
) -> None:
    """Refuse options for volumes where there are pictures, and options for pictures with volumes.

    Args:
        cases: after the scan.
        rule: its ``neighbours`` needs volumes.
        stack: slices that are seen together (``peft.depth``, ``head.depth``); more than 1 needs
            volumes.
        tiling: cuts pictures; None: they are not cut.

    Raises:
        ConfigError: naming the first case that does not fit.
    """
    flat = next((case for case in cases if case.shape[2] == 1), None)
    if rule.neighbours and flat is not None:
        raise ConfigError(f"data.neighbours={rule.neighbours}: {flat.image} has only one slice")
    check_depth(stack, cases)
    check_tiles(tiling, cases)


def check_depth(size: int, cases: Sequence[Case]) -> None:
    """Refuse stacks of slices for cases with one slice.

    Args:
        size: slices that are seen together (``peft.depth``, ``head.depth``).
        cases: after the scan.

    Raises:
        ConfigError: naming the first such case.
    """
    flat = next((case for case in cases if case.shape[2] == 1), None)
    if size > 1 and flat is not None:
        raise ConfigError(
            f"{size} neighbouring slices of a volume are seen together (peft.depth, head.depth); "
            f"{flat.image} has only one slice. Use peft.depth=1 and head.depth=1"
        )


def check_tiles(tiling: Tiling | None, cases: Iterable[Case]) -> None:
    """Refuse to cut volumes into tiles.

    Raises:
        ConfigError: naming the first volume.
    """
    volume = next((case for case in cases if case.axis is not None or case.shape[2] > 1), None)
    if tiling is not None and volume is not None:
        raise ConfigError(
            f"data.tile={tiling.side} cuts pictures into tiles, but {volume.image} is a volume, "
            "and the model sees each of its slices as a whole. Leave data.tile out; if an adapter "
            "records it, set data.tile=0"
        )


def check_copies(name: str, scan: Scan, splits: Splits) -> None:
    """Refuse an image that is in both splits; copies within one split become findings.

    Raises:
        DataError: with the first twenty such images.
    """
    copies = copy_findings(scan.cases, splits)
    if leaks := [finding for finding in copies if finding.severity == "error"]:
        raise DataError(_refusal(name, leaks))
    scan.findings.extend(copies)


def _refusal(name: str, errors: list[Finding], *, skippable: bool = True) -> str:
    """Return the first errors as text; ``skippable``: other cases can be used without these."""
    if not errors:
        return f"{name}: no usable case was found"
    counted = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    lines = [f"{name}: {counted} in the data set:", *map(str, errors[:_SHOWN])]
    if len(errors) > _SHOWN:
        lines.append(f"... and {len(errors) - _SHOWN} more; samadapt check lists all")
    if skippable:
        lines.append("fix the files, or leave these cases out with data.on_error=skip")
    return "\n  ".join(lines)
