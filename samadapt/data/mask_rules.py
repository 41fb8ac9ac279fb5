"""How the values of mask files are read: as classes, as object numbers, or by a threshold.

Three keys of ``data`` choose: ``data.instances=true`` (every number is one object of one class),
``data.mask_threshold=T`` (grey levels from T on are foreground) and ``data.ignore=V`` (pixels of
value V are not annotated). Without them each value is a class. Whether the values of a data set
look like classes at all is checked in ``checks/mask_values.py``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from samadapt.data.colours import Colours
from samadapt.data.findings import fault
from samadapt.data.types import Volume
from samadapt.system.arrays import Array

LARGEST_VALUE = 2**31 - 1
"""Object numbers and label values are kept as int32."""


@dataclass(frozen=True)
class MaskRules:
    """How the values of masks are read.

    Attributes:
        instances: each number is one object of one class.
        threshold: this value and higher ones are foreground, lower ones background; None: values
            are used as they are.
        ignored: values of pixels that are not annotated; None: those that the data set declares.
        judged: no class list exists, so the values must be measured (``checks/mask_values.py``).
        colours: what the colours of masks mean; None: masks hold numbers.
    """

    instances: bool = False
    threshold: float | None = None
    ignored: tuple[int, ...] | None = None
    judged: bool = False
    colours: Colours | None = None

    @property
    def one_class(self) -> bool:
        """Whether the rules give a single class, with the value 1."""
        return self.instances or self.threshold is not None

    def apply(self, volume: Volume, file: Path) -> Volume:
        """Return the volume with its labels read by the rules.

        Args:
            volume: as read.
            file: its mask, named in errors.

        Raises:
            FindingError: an object number is below 0, or a value is NaN under a threshold.
        """
        if self.threshold is not None:
            return at_threshold(volume, self.threshold, file, self.ignored or ())
        return as_objects(volume, file, self.ignored or ()) if self.instances else volume


AS_CLASSES = MaskRules()
"""Each value is a class, as declared."""


def as_objects(volume: Volume, file: Path, ignored: Collection[int] = ()) -> Volume:
    """Turn object numbers into one class and its objects (``data.instances=true``).

    Args:
        volume: its labels are object numbers, 0 is background.
        file: the mask, named in errors.
        ignored: values of pixels that are not annotated.

    Returns:
        The volume with ``labels`` 1 where there is an object (ignored values stay), and
        ``instances`` int32 with the numbers: (h, w) for pictures, (h, w, d) for volumes. Numbers
        above 31 bits are replaced by consecutive ones.

    Raises:
        FindingError: a number is below 0.
    """
    if volume.labels is None:
        return volume
    numbers = without_ignored(volume.labels, ignored)
    if numbers.min() < 0:
        message = f"object numbers start at 1; it holds {int(numbers.min())}"
        fix = f"treat it as not annotated with data.ignore={int(numbers.min())}, or renumber"
        raise fault("label_value", file, message, fix)
    if numbers.max() > LARGEST_VALUE:
        values, ranks = np.unique(numbers, return_inverse=True)
        # Background, the smallest value, has rank 0. Without background the ranks start at 1.
        numbers = ranks.reshape(numbers.shape) + (values[0] > 0)
    labels = (numbers > 0).astype(np.int32)
    for value in ignored:
        labels[volume.labels == value] = value
    # A volume file with one slice has a grid (`source`); a picture has none.
    is_picture = volume.source is None and numbers.shape[2] == 1
    instances = numbers.astype(np.int32)
    return replace(volume, labels=labels, instances=instances[:, :, 0] if is_picture else instances)


def at_threshold(
    volume: Volume, threshold: float, file: Path, ignored: Collection[int] = ()
) -> Volume:
    """Turn grey levels or probabilities into a binary mask (``data.mask_threshold``).

    Args:
        volume: its labels are grey levels or probabilities.
        threshold: this value and higher ones become 1, lower ones 0.
        file: the mask, named in errors.
        ignored: values of pixels that are not annotated; they stay as they are.

    Raises:
        FindingError: a value is NaN.
    """
    if volume.labels is None:
        return volume
    if volume.labels.dtype.kind == "f" and np.isnan(volume.labels).any():
        message = "some values of the mask are NaN"
        raise fault("non_integer_labels", file, message, "replace them and save it again")
    labels = (volume.labels >= threshold).astype(np.int32)
    for value in ignored:
        labels[volume.labels == value] = value
    return replace(volume, labels=labels)


def without_ignored(labels: Array, ignored: Collection[int]) -> Array:
    """Return the labels with 0 in place of ignored values."""
    return np.where(np.isin(labels, list(ignored)), 0, labels) if ignored else labels
