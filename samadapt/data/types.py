"""The values that pass through the data layer: cases, volumes as read, slices and samples.

The order is that of the data's way: a reader lists ``Case`` objects, reads each into a ``Volume``,
and the data set cuts it into ``Sample`` objects, which ``SliceRef`` names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from samadapt.data.findings import Finding
from samadapt.data.tiles import PictureTile
from samadapt.system.arrays import Array

Split = Literal["train", "val"]

IGNORED = -1
"""Id in a label map of a pixel whose class is not known: it has no loss and no score."""


@dataclass(frozen=True)
class MaskEvidence:
    """What was measured in one mask to tell grey levels and object numbers from classes.

    Attributes:
        numbers: n where the mask holds exactly the values 1 to n; 0: it was not measured.
        single: how many of these values are one connected component each.
        slope: share (0..1) of the pixels with middle values that lie between a lower and a higher
            neighbour; 0: not measured.
    """

    numbers: int = 0
    single: int = 0
    slope: float = 0.0


@dataclass(frozen=True)
class Case:
    """One image or volume with its ground truth, as files.

    ``discover`` fills what the folder says; the scan reads the files and adds the rest.

    Attributes:
        name: unique in the data set; splits consist of names.
        image: the image file; for a DICOM series its folder.
        labels: the mask file, or None where there is none.
        annotations: the JSON file of boxes and points, or None.
        channel: index into the last axis of a 4D image, several of them, or None.
        shape: (h, w, d) of the volume as sliced; known after the scan.
        spacing_mm: (row, column, slice) in mm; None for pictures.
        axis: the canonical axis that the slices cut: 0 sagittal, 1 coronal, 2 axial; None for
            pictures.
        values: label values other than 0 that occur in the mask, sorted.
        presence: (d, len(values)) bool: which value occurs in which slice, or tile.
        zeros: (d,) bool: whether the value 0 occurs in a slice, or tile.
        named: class names that the annotations use.
        files: the image's files where there are several. Of a DICOM series they are sorted by
            name; of channels they are in the order of ``data.channel``, and the first is ``image``.
        patient: equal for all cases of one patient, which stay in one split; ``""``
            where the data do not say. For DICOM this is a one-way hash of the patient ID with a
            salt that changes in each process, so it identifies nobody. No record contains it.
        digest: hash of the image's voxels; known after the scan.
        evidence: measurements that show whether the mask's values are classes; None where classes
            are declared.
        colours: pairs of a mask value that occurs and its colour; see ``pictures.Mask``.
        truth_digest: hash of labels, object numbers and annotations; known after the scan.
        stamps: bytes and time of modification in ns of the image files and the mask, when the scan
            read them.
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
    stamps: tuple[tuple[int, int], ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class SourceGrid:
    """What is needed to write a prediction back on the grid of a volume's file.

    Attributes:
        header: the file's NIfTI header, or one that was made for its grid.
        shape: the file's spatial shape, 2 or 3 axes.
        affine: (4, 4) from voxel indices to RAS+ mm.
        orientation: (3, 2) nibabel orientation of the file's axes.
        axis: the canonical axis that became the last one of the volume.
    """

    header: Any
    shape: tuple[int, ...]
    affine: Array
    orientation: Array
    axis: int


@dataclass(frozen=True)
class Annotation:
    """Prompts that a person drew, in pixels of the original image.

    Attributes:
        boxes: (n, 4) float32 XYXY, or None.
        points: (k, 2) float32 (x, y), or None.
        point_labels: (k,) int64, 1 foreground, 0 background; None without points.
        labels: class name of each box, or of each point where there are no boxes; None where the
            file names no classes.
    """

    boxes: Array | None = None
    points: Array | None = None
    point_labels: Array | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Volume:
    """An image as read, before the intensity rule.

    Attributes:
        image: (h, w, d) float32 or uint8 with the slices along the last axis; (h, w, d, c) for
            several channels; (h, w, 3) if ``is_color``, which is a single slice.
        labels: (h, w, d) integers, the values of the mask file, or None.
        spacing_mm: (row, column, slice) in mm; None for pictures.
        source: the file's grid; None for pictures.
        is_color: the last axis of ``image`` is RGB.
        annotation: prompts that come with the image, or None.
        instances: int32 object numbers where the data set separates objects, 0 for none: (h, w)
            for a picture, (h, w, d) for a volume.
        files: the files that it was read from, where the folder contains others too.
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
        """(h, w, d) where d is the number of slices."""
        height, width, last = self.image.shape[:3]
        return height, width, 1 if self.is_color else last

    @property
    def channels(self) -> int:
        """Number of channels before they become the model's three; 3 for a colour picture."""
        return 3 if self.is_color else (*self.image.shape, 1)[3]


@dataclass(frozen=True, order=True)
class SliceRef:
    """Names one slice of a case, or one tile of a picture."""

    case: str
    index: int


@dataclass(frozen=True)
class Sample:
    """One slice in the original frame, before it is resized for the model.

    Attributes:
        case: the case's name.
        index: the slice's number; 0 for pictures, or the tile's number.
        image: (h, w, 3) uint8 after the intensity rule; more channels with an input projection.
        labels: (h, w) int16 class ids: 0 background, 1..K in the order of ``Dataset.classes``,
            ``IGNORED`` where the class is not known. With ``members`` the ids number the label
            values that classes consist of.
        boxes: (n, 4) float32 XYXY in pixels, from annotations, or None.
        points: (k, 2) float32 (x, y) in pixels, from annotations, or None.
        point_labels: (k,) int64, 1 foreground, 0 background; None without points.
        prompt_classes: (n,) int64 class id of each box, or of each point where there are no boxes;
            None where the annotations name no classes. Prompts of classes that ``data.classes``
            leaves out are removed.
        instances: (h, w) int32 object numbers, 0 none, where the data set separates objects.
        tile: where it lies in its picture, if it is a tile. Everything else is in its own frame.
        known: (K,) bool: which classes are annotated in this slice; None: all of them.
        members: (K, n + 1) bool: which of the label ids 0..n belong to which class, where classes
            overlap; None: id k is class k.
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
    tile: PictureTile | None = None
    known: Array | None = None
    members: Array | None = None

    @property
    def truth(self) -> Array:
        """What is known about each pixel.

        (h, w) class ids 0..K or ``IGNORED`` where one map is enough. Where classes overlap, or are
        not all annotated, (K, h, w) int8 with one plane for each class: 1 inside, 0 outside,
        ``IGNORED`` unknown.
        """
        members = self.members
        if members is None:
            if self.known is None:
                return self.labels
            # Row k of the identity without its first row: class k + 1 consists of the id k + 1.
            members = np.eye(len(self.known) + 1, dtype=bool)[1:]
        # members is (K, n + 1), so indexing it by an (h, w) map of ids gives (K, h, w).
        planes: Array = members[:, np.maximum(self.labels, 0)].astype(np.int8)
        planes[:, self.labels == IGNORED] = IGNORED
        if self.known is not None:
            planes[~self.known] = IGNORED
        return planes

    @property
    def maps(self) -> Array:
        """Class ids that may be prompted: (h, w), or (K, h, w) with one map for each class."""
        truth = self.truth
        if truth.ndim == 2:
            return truth
        # (K, 1, 1) class ids, one for each plane of (K, h, w).
        ids = np.arange(1, len(truth) + 1, dtype=np.int16)[:, None, None]
        return np.where(truth == 1, ids, 0).astype(np.int16)

    @property
    def shown(self) -> Array:
        """(h, w) class ids for drawing.

        Where classes overlap the last one is shown; ``IGNORED`` where no class is known.
        """
        truth = self.truth
        if truth.ndim == 2:
            return truth
        return np.where((truth == IGNORED).all(axis=0), IGNORED, self.maps.max(axis=0))

    def mask_of(self, class_id: int) -> Array:
        """Return (h, w) bool: the pixels that are known to belong to a class (1..K)."""
        truth = self.truth
        found: Array = truth == class_id if truth.ndim == 2 else truth[class_id - 1] == 1
        return found

    def unknown(self, class_id: int) -> Array:
        """Return (h, w) bool: the pixels whose membership in a class (1..K) is not known."""
        truth = self.truth
        found: Array = (truth if truth.ndim == 2 else truth[class_id - 1]) == IGNORED
        return found

    @property
    def part(self) -> str:
        """What the index counts: ``"slice"`` or ``"tile"``."""
        return "slice" if self.tile is None else "tile"
