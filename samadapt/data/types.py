"""The values that pass through the data layer: findings, cases, volumes and samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from samadapt.errors import DataError
from samadapt.system.arrays import Array
from samadapt.system.limits import max_bytes, max_voxels

if TYPE_CHECKING:
    from samadapt.data.tiles import Tile

Severity = Literal["error", "warning"]
Split = Literal["train", "val"]

IGNORED = -1
"""Id of a pixel of a label map whose class is not known: it has no loss and no score."""


@dataclass(frozen=True)
class Finding:
    """One problem of one file.

    Attributes:
        code: stable name of the kind of problem, such as ``"truncated_file"``.
        severity: an ``"error"`` makes the case unusable; a ``"warning"`` does not.
        file: path of the file (or folder) that is at fault.
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
    """One kind of problem.

    Attributes:
        severity: an ``"error"`` makes a case, or the data set, unusable.
        meaning: what is wrong, in one sentence, and why it matters.
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


def fault(code: str, file: Path | str, message: str, fix: str) -> FindingError:
    """Return an error finding ready to be raised."""
    return FindingError(Finding(code, "error", str(file), message, fix))


def check_size(file: Path | str, shape: Sequence[int]) -> None:
    """Refuse a declared shape before any memory is taken for it.

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
    """Refuse a declared number of bytes before any memory is taken for them.

    Raises:
        FindingError: it is above ``data.max_gb``.
    """
    if declared > max_bytes():
        message = f"it declares {declared / 2**30:,.1f} GB of content"
        raise too_large(file, f"{message}; at most {max_bytes() / 2**30:g} GB are read")


def too_large(file: Path | str, message: str) -> FindingError:
    """Return the finding of a file that asks for more than ``data.max_gb``."""
    fix = "check its header; if it is right, raise data.max_gb, or cut the file into parts"
    return fault("too_large", file, message, fix)


@dataclass(frozen=True)
class MaskEvidence:
    """What was measured in one mask, where its values made it worth it.

    Attributes:
        numbers: how many values were measured, where the mask has 1 to n; 0: none.
        single: how many of these are one connected component.
        slope: share (0..1) of the pixels of middle values that lie between a lower and a higher
            neighbour; 0: not measured.
    """

    numbers: int = 0
    single: int = 0
    slope: float = 0.0


@dataclass(frozen=True)
class Case:
    """One image or volume with its ground truth, as files.

    Attributes:
        name: unique in the data set; splits are made of names.
        image: the image file; of a DICOM series its folder.
        labels: the mask file, or None where there is none.
        annotations: the JSON file of boxes and points, or None.
        channel: index into the last axis of a 4D image, several of them, or None.
        shape: (h, w, d) of the volume as sliced; known after the scan.
        spacing_mm: (row, column, slice) in mm; None for pictures.
        axis: 0 sagittal, 1 coronal, 2 axial: the canonical axis that the slices cut; None for
            pictures.
        values: label values other than 0 that occur in the mask.
        presence: (d, len(values)) bool: which value occurs in which slice, or tile.
        zeros: (d,) bool: whether the value 0 occurs in a slice, or tile.
        named: class names that the annotations use.
        files: the image's files where there are several: of a DICOM series, sorted by name; of
            channels, in the order of ``data.channel``, the first is ``image``.
        patient: equal for cases of one patient, who is then on one side of every split; ``""``
            where nothing says. Of a DICOM patient ID a one-way hash, salted anew in each process,
            of no use to anyone else. It is kept out of every record.
        digest: hash of the image's voxels; known after the scan.
        evidence: what tells whether the mask's values are classes; None where classes are declared.
        colours: pairs of a mask value that occurs and its colour; see ``pictures.Mask``.
        truth_digest: hash of its labels, object numbers and annotations; known after the scan.
    """

    name: str
    image: Path
    labels: Path | None = None
    annotations: Path | None = None
    channel: int | tuple[int, ...] | None = None
    shape: tuple[int, int, int] = (0, 0, 0)
    spacing_mm: tuple[float, float, float] | None = None
    axis: int | None = None
    values: tuple[int, ...] = ()
    presence: Array | None = field(default=None, repr=False, compare=False)
    zeros: Array | None = field(default=None, repr=False, compare=False)
    named: tuple[str, ...] = ()
    files: tuple[Path, ...] = field(default=(), repr=False)
    patient: str = field(default="", repr=False, compare=False)
    digest: str = field(default="", repr=False, compare=False)
    evidence: MaskEvidence | None = field(default=None, repr=False, compare=False)
    colours: tuple[tuple[int, int], ...] = field(default=(), repr=False, compare=False)
    truth_digest: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True)
class SourceGrid:
    """What is needed to write a prediction back on the grid of a volume's file.

    Attributes:
        header: the file's NIfTI header, or one made for its grid.
        shape: the file's spatial shape, 2 or 3 axes.
        affine: (4, 4) voxel to RAS+ mm.
        orientation: (3, 2) nibabel orientation of the file's axes.
        axis: canonical axis that became the last one of the volume.
    """

    header: Any
    shape: tuple[int, ...]
    affine: Array
    orientation: Array
    axis: int


@dataclass(frozen=True)
class Annotation:
    """Prompts that a person gave with an image, in pixels of the original image.

    Attributes:
        boxes: (n, 4) float32 XYXY, or None.
        points: (k, 2) float32 (x, y), or None.
        point_labels: (k,) int64, 1 foreground, 0 background, or None without points.
        labels: class name of each box, or of each point where there are no boxes, or None.
    """

    boxes: Array | None = None
    points: Array | None = None
    point_labels: Array | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Volume:
    """An image as read, before the intensity rule.

    Attributes:
        image: (h, w, d) float32 or uint8, slices along the last axis; (h, w, d, c) of several
            channels; (h, w, 3) if ``is_color`` (then there is one slice).
        labels: (h, w, d) integers, the values of the mask file, or None.
        spacing_mm: (row, column, slice) in mm; None for pictures.
        source: the file's grid; None for pictures.
        is_color: the last axis of ``image`` is RGB.
        annotation: prompts given with the image, or None.
        instances: (h, w) int32 object numbers of a picture, (h, w, d) of a volume, 0 none, where
            the data set tells objects apart.
        files: the files that it was read from, where a folder holds others too.
        findings: warnings of the reader.
        colours: pairs of a mask value that occurs and its colour; see ``pictures.Mask``.
    """

    image: Array
    labels: Array | None = None
    spacing_mm: tuple[float, float, float] | None = None
    source: SourceGrid | None = None
    is_color: bool = False
    annotation: Annotation | None = None
    instances: Array | None = None
    files: tuple[Path, ...] = ()
    findings: tuple[Finding, ...] = ()
    colours: tuple[tuple[int, int], ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, d) with d the number of slices."""
        height, width, last = self.image.shape[:3]
        return height, width, 1 if self.is_color else last

    @property
    def channels(self) -> int:
        """Channels of the image, before they become the model's three; 3 of a colour picture."""
        return 3 if self.is_color else (*self.image.shape, 1)[3]


@dataclass(frozen=True, order=True)
class SliceRef:
    """One slice of one case, or one tile of a picture."""

    case: str
    index: int


@dataclass(frozen=True)
class Sample:
    """One slice, ready for the model's geometry, in the original frame.

    Attributes:
        case: the case's name.
        index: the slice's number; 0 for pictures, or the tile's number.
        image: (h, w, 3) uint8 after the intensity rule; more channels with an input projection.
        labels: (h, w) int16, 0 background, 1..K in the order of ``Dataset.classes``; ``IGNORED``
            where the class is not known. With ``members`` they number what classes are made of.
        boxes: (n, 4) float32 XYXY pixels given by annotations, or None.
        points: (k, 2) float32 (x, y) pixels given by annotations, or None.
        point_labels: (k,) int64, 1 foreground, 0 background; None without points.
        prompt_classes: (n,) int64 class id of each box (of each point where there are no
            boxes); None where the annotations name no classes. Prompts that name a class which
            ``data.classes`` leaves out are not here.
        instances: (h, w) int32 object numbers, 0 none, where the data set tells objects apart.
        tile: where it lies in its picture, if it is a tile of one; all else is in its frame.
        known: (K,) bool: which classes are annotated in this slice; None: all.
        members: (K, n + 1) bool: which of the labels 0..n are of which class, where classes
            overlap; None: label k is class k.
    """

    case: str
    index: int
    image: Array
    labels: Array
    boxes: Array | None = None
    points: Array | None = None
    point_labels: Array | None = None
    prompt_classes: Array | None = None
    instances: Array | None = None
    tile: Tile | None = None
    known: Array | None = None
    members: Array | None = None

    @property
    def truth(self) -> Array:
        """What is known of each pixel.

        (h, w) class ids 0..K or ``IGNORED``, where one map says all. Where classes overlap or
        are not all annotated (K, h, w) int8, a plane a class: 1 inside, 0 outside, ``IGNORED``.
        """
        members = self.members
        if members is None:
            if self.known is None:
                return self.labels
            members = np.eye(len(self.known) + 1, dtype=bool)[1:]
        planes: Array = members[:, np.maximum(self.labels, 0)].astype(np.int8)
        planes[:, self.labels == IGNORED] = IGNORED
        if self.known is not None:
            planes[~self.known] = IGNORED
        return planes

    @property
    def maps(self) -> Array:
        """Class ids of what may be prompted: (h, w), or (K, h, w) with a map a class."""
        truth = self.truth
        if truth.ndim == 2:
            return truth
        ids = np.arange(1, len(truth) + 1, dtype=np.int16)[:, None, None]
        return np.where(truth == 1, ids, 0).astype(np.int16)

    @property
    def shown(self) -> Array:
        """(h, w) class ids for drawing: the last of overlapping classes, ``IGNORED`` if all are."""
        truth = self.truth
        if truth.ndim == 2:
            return truth
        return np.where((truth == IGNORED).all(axis=0), IGNORED, self.maps.max(axis=0))

    def mask_of(self, class_id: int) -> Array:
        """Return (h, w) bool: where a class is known to be."""
        truth = self.truth
        found: Array = truth == class_id if truth.ndim == 2 else truth[class_id - 1] == 1
        return found

    def unknown(self, class_id: int) -> Array:
        """Return (h, w) bool: where it is not known whether a pixel is of a class."""
        truth = self.truth
        found: Array = (truth if truth.ndim == 2 else truth[class_id - 1]) == IGNORED
        return found

    @property
    def part(self) -> str:
        """What the index counts: ``"slice"`` or ``"tile"``."""
        return "slice" if self.tile is None else "tile"
