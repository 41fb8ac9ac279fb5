"""Which of several DICOM series in a folder is meant: ``data.series``.

The choice is one or more terms, separated by commas. A modality (``CT``), a series number (``3``)
and ``largest`` (the most slices) narrow the series one after another. Eight digits that a message
shows in brackets name one series of one folder; folders that do not hold it are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from samadapt.data.formats.dicom.folder_contents import DicomSeries
from samadapt.errors import ConfigError

_IDENTITY = re.compile(r"[0-9a-f]{8}")
_TERM = re.compile(r"[A-Z]{2,16}|\d{1,12}|largest|[0-9a-f]{8}")
_OF_ONE = re.compile(r"[0-9a-f]*\d[0-9a-f]*|[0-9a-f]{8}")
LARGEST = "largest"


def parse_choice(choice: str | None) -> tuple[str, ...]:
    """Return the terms of a choice.

    Raises:
        ConfigError: a term is none of those.
    """
    if choice is None:
        return ()
    terms = [term.strip() for term in str(choice).split(",") if term.strip()]
    terms = [
        term if term == LARGEST or _IDENTITY.fullmatch(term) else term.upper() for term in terms
    ]
    wrong = [term for term in terms if not _TERM.fullmatch(term)]
    if wrong or not terms:
        raise ConfigError(
            "data.series: expected a modality (CT), a series number, largest, or the eight digits "
            f"that a message shows for a series, separated by commas; got {choice!r}"
        )
    return tuple(terms)


def choose_series(series: Sequence[DicomSeries], terms: Sequence[str]) -> list[DicomSeries]:
    """Return the series of one folder that a choice leaves, in their order.

    Args:
        series: the image series of one folder or case.
        terms: of ``parse_choice``; none leave all.
    """
    left = list(series)
    named = [item for item in left if item.identity in terms]
    if named:
        return named
    for term in terms:
        if term == LARGEST:
            most = max((item.slices for item in left), default=0)
            left = [item for item in left if item.slices == most]
        elif not _IDENTITY.fullmatch(term):
            left = [item for item in left if term in (item.modality, str(item.number))]
    return left


def general_choice(choice: str | None) -> str | None:
    """Return a recorded choice if it says something of other folders too, else None.

    Modalities and ``largest`` do; a series number or the digits of one series do not.
    """
    terms = parse_choice(choice)
    return choice if terms and not any(_OF_ONE.fullmatch(term) for term in terms) else None


def listed(series: Sequence[DicomSeries], limit: int = 8) -> str:
    """Return the series as a message lists them: modality, slices, number and eight digits."""
    shown = "; ".join(str(item) for item in series[:limit])
    return f"{shown}; …" if len(series) > limit else shown
