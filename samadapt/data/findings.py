"""Findings: what is wrong with a file or with a data set, and what the user can do about it.

Reading code has two ways to report a problem. It raises a ``FindingError`` (see ``fault``) where it
cannot go on, or it returns a list of ``Finding`` where other checks of the same case still make
sense. The scan of a data set turns both into one list, so that the user sees all problems at once.
``checks/codes.py`` lists every code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from samadapt.errors import DataError
from samadapt.system.limits import max_bytes, max_voxels

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One problem of one file.

    Attributes:
        code: stable name of the kind of problem, such as ``"truncated_file"``.
        severity: an ``"error"`` makes the case unusable; a ``"warning"`` does not.
        file: path of the file or folder that has the problem.
        message: what was expected and what was found.
        fix: what the user can do.
    """

    code: str
    severity: Severity
    file: str
    message: str
    fix: str

    def __str__(self) -> str:
        """Return the finding as one line: file, message, fix and code."""
        return f"{self.file}: {self.message}; {self.fix} [{self.code}]"


@dataclass(frozen=True)
class Code:
    """One kind of problem, as ``samadapt check explain=CODE`` explains it.

    Attributes:
        severity: an ``"error"`` makes a case, or the whole data set, unusable.
        meaning: what is wrong and why it matters.
        fix: what to do.
    """

    severity: Severity
    meaning: str
    fix: str


class FindingError(DataError):
    """A file cannot be used; ``finding`` says why."""

    def __init__(self, finding: Finding) -> None:
        """Keep the finding and use its text as the message."""
        super().__init__(str(finding))
        self.finding = finding


def error_finding(code: str, file: Path | str, message: str, fix: str) -> Finding:
    """Return a finding that makes the case unusable."""
    return Finding(code, "error", str(file), message, fix)


def warning_finding(code: str, file: Path | str, message: str, fix: str) -> Finding:
    """Return a finding that the user should know about and that stops nothing."""
    return Finding(code, "warning", str(file), message, fix)


def fault(code: str, file: Path | str, message: str, fix: str) -> FindingError:
    """Return an error finding as an exception, ready to be raised."""
    return FindingError(error_finding(code, file, message, fix))


def check_size(file: Path | str, shape: Sequence[int]) -> None:
    """Refuse a shape that a header declares before memory is allocated for it.

    Args:
        file: named in the finding.
        shape: voxels along each axis.

    Raises:
        FindingError: a side is below 1, or there are more voxels than ``data.max_gb`` holds as
            float32.
    """
    sides = [int(side) for side in shape]
    if min(sides, default=0) < 1:
        message = f"expected at least one voxel along each axis; its shape is {tuple(sides)}"
        raise fault("bad_shape", file, message, "check how it was made")
    if math.prod(sides) > max_voxels():
        message = f"it declares {math.prod(sides):,} voxels {tuple(sides)}"
        raise too_large(file, f"{message}; at most {max_voxels():,} are read")


def check_bytes(file: Path | str, declared: int) -> None:
    """Refuse a number of bytes that a header declares before memory is allocated for it.

    Args:
        file: named in the finding.
        declared: bytes of content.

    Raises:
        FindingError: it is above ``data.max_gb``.
    """
    if declared > max_bytes():
        message = f"it declares {declared / 2**30:,.1f} GB of content"
        raise too_large(file, f"{message}; at most {max_bytes() / 2**30:g} GB are read")


def too_large(file: Path | str, message: str) -> FindingError:
    """Return the error for a file that needs more memory than ``data.max_gb``."""
    fix = "check its header; if it is right, raise data.max_gb, or cut the file into parts"
    return fault("too_large", file, message, fix)
