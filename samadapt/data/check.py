"""Every problem of a data set as findings; nothing is changed."""

from __future__ import annotations

from pathlib import Path

from samadapt.data.classes import ClassChoice
from samadapt.data.opening import check_values, decide_classes, open_reader
from samadapt.data.types import Finding


def check_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    axis: str | int | None = None,
    classes: ClassChoice = None,
    max_cases: int | None = None,
    channel: int | str | None = None,
    image: str | None = None,
    label: str | None = None,
) -> list[Finding]:
    """Read every file of a data set and return all problems, errors first.

    Args:
        name: a card or a reader; the other arguments are those of ``open_dataset``.
        root: the data set's folder.
        axis: what volumes are sliced along.
        classes: the classes that will be used; decides which label values are errors.
        max_cases: read only the first of the sorted cases.
        channel: channel of multi-channel images.
        image: file name or pattern of the images.
        label: file name or pattern of the masks.

    Raises:
        ConfigError: an unknown name or class.
        DownloadError: a card's data set could not be fetched.
    """
    card, reader = open_reader(name, root, axis, channel, image, label)
    scan = reader.scan(max_cases)
    check_values(scan, decide_classes(scan, card, classes))
    return sorted(scan.findings, key=lambda finding: (finding.severity, finding.file, finding.code))
