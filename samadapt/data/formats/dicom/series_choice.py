"""Which of several DICOM series in a folder is used: ``data.series``.

The choice is one or more terms, separated by commas. A modality (``CT``), a series number (``3``)
and ``largest`` (the most slices) narrow the series one after another. Eight hexadecimal digits,
which messages show in brackets, name one series of one folder; folders that do not hold it keep all
of their series.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from samadapt.data.formats.dicom.folder_contents import DicomSeries
from samadapt.errors import ConfigError

LARGEST = "largest"
_IDENTITY = re.compile(r"[0-9a-f]{8}")
_TERM = re.compile(r"[A-Z]{2,16}|\d{1,12}|largest|[0-9a-f]{8}")
_OF_ONE_FOLDER = re.compile(r"[0-9a-f]*\d[0-9a-f]*|[0-9a-f]{8}")
"""Terms that mean something in one folder alone: series numbers and identities."""


def parse_choice(choice: str | None) -> tuple[str, ...]:
    """Return the terms of a choice; none for None.

    Raises:
        ConfigError: a term is neither a modality, a number, ``largest`` nor an identity.
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
    """Return the series of one folder that fit a choice, in their order.

    Args:
        series: the image series of one folder or case.
        terms: of ``parse_choice``; without terms, all series fit.
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
    """Return a recorded choice if it means something in other folders as well, else None.

    Modalities and ``largest`` do; a series number or the digits of one series do not.
    """
    terms = parse_choice(choice)
    return choice if terms and not any(_OF_ONE_FOLDER.fullmatch(term) for term in terms) else None


def listed(series: Sequence[DicomSeries], limit: int = 8) -> str:
    """Return the series as messages list them: modality, slices, number and identity."""
    shown = "; ".join(str(item) for item in series[:limit])
    return f"{shown}; …" if len(series) > limit else shown
