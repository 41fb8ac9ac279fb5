"""Errors that samadapt raises on purpose.

    SamadaptError
    ├── UserError               the user can fix it; the command line exits with 2
    │   ├── ConfigError         a key is unknown, or a value has a wrong type or is out of range
    │   ├── DataError           a file of the data set is missing, broken or contradicts another
    │   ├── WeightsError        a checkpoint is missing, unknown, incomplete or altered
    │   ├── AdapterError        an adapter directory is refused
    │   ├── PromptError         prompts have a wrong shape, type or frame (also a ValueError)
    │   └── MissingExtraError   an optional dependency is not installed
    └── RunError                a run failed; the command line exits with 1
        ├── DivergedError       the loss was NaN or infinite too often
        ├── LostOthersError     another process of the run ended, or the network failed
        └── DownloadError       a download failed, or its checksum differs

Every message names the file or key, and says what was expected, what was found and what to do.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class SamadaptError(Exception):
    """Base of all errors that samadapt raises on purpose."""

    exit_code: ClassVar[int] = 1


class UserError(SamadaptError):
    """Something is wrong that the user can fix."""

    exit_code: ClassVar[int] = 2


class ConfigError(UserError):
    """A key is unknown, or a value has a wrong type or is out of range."""


class DataError(UserError):
    """A file of the data set is missing, broken or contradicts another."""


class WeightsError(UserError):
    """A checkpoint is missing, of an unknown kind, incomplete or altered."""


class AdapterError(UserError):
    """An adapter directory is refused; the message names the file and the fault."""


class PromptError(UserError, ValueError):
    """Prompts have a wrong shape, type or frame."""


class MissingExtraError(UserError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        """Name the missing package and the extra of samadapt that installs it."""
        super().__init__(
            f"the package {package!r} is needed here but not installed; "
            f"install it with: pip install 'samadapt[{extra}]'"
        )


class RunError(SamadaptError):
    """A run failed for a reason that is not a mistake in its input."""


class DivergedError(RunError):
    """The loss was NaN or infinite several times in a row."""


class LostOthersError(RunError):
    """Another process of the run ended, or the network between them failed."""


class DownloadError(RunError):
    """A download failed, or its checksum is not the expected one."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` with the closest valid name, or an empty string."""
    match = get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
