"""Readers: one file a format; each registers itself beside its code.

A reader lists the cases of a data set (``discover``), reads and checks one (``examine``) and
writes a prediction back on the grid of its source (``write``). ``scan`` puts these together.
"""

from __future__ import annotations

import hashlib
import os
import pkgutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from samadapt.data.channels import Channel, Choice, parse_channel
from samadapt.data.checks.mask_values import AS_CLASSES, MaskRules, measure_mask
from samadapt.data.classes import ClassChoice
from samadapt.data.formats.shared.exif import Exif
from samadapt.data.formats.shared.foreign import by_name
from samadapt.data.formats.shared.time_limit import TookTooLongError, each, within_limit
from samadapt.data.tiles import Tiling
from samadapt.data.types import Case, Finding, FindingError, Volume
from samadapt.errors import ConfigError, DataError, MissingExtraError, nearest
from samadapt.system.arrays import Array
from samadapt.system.limits import max_seconds
from samadapt.system.out_of_memory import explain

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}

_READERS: dict[str, type[Reader]] = {}
_ReaderType = TypeVar("_ReaderType", bound="type[Reader]")


@dataclass(frozen=True)
class ReaderOptions:
    """Where and how to read.

    Attributes:
        root: the data set's folder; None for data that come with a package.
        axis: canonical axis to slice along: 0 sagittal, 1 coronal, 2 axial; None: the one with
            the largest spacing, axial where they are equal.
        channel: index or name of the channel of a 4D or multi-channel image; a tuple of several.
        image: file name or pattern of the images; see ``volume_patterns.py``.
        label: file name or pattern of the masks.
        tiling: how pictures are cut into what counts as their slices; None: not at all.
        spacing: which voxel size of a NIfTI header is true where its affine and ``pixdim``
            differ: ``"affine"`` or ``"pixdim"``; None: such a file is refused.
        masks: how the values of masks are read.
        series: which of several DICOM series in a folder; see ``dicom/series_choice.py``.
        classes: the classes that will be used, where a format's masks may overlap otherwise.
        exif: whether the EXIF orientation of pictures is applied; None: it is, and masks must
            show that they are drawn so. See ``orientation.py``.
    """

    root: Path | None = None
    axis: int | None = None
    channel: Choice = None
    image: str | None = None
    label: str | None = None
    tiling: Tiling | None = None
    spacing: str | None = None
    masks: MaskRules = AS_CLASSES
    series: str | None = None
    classes: ClassChoice = None
    exif: Exif | None = None


@dataclass
class Layout:
    """What a data set's folder declares, before any image is read.

    Attributes:
        cases: all cases, also those of which a file is missing.
        findings: problems of the layout itself.
        classes: name to label values, as declared; None where nothing is.
        modality: name of the channel read, such as ``"CT"``; None where nothing says.
        ambiguous: files that share a name with another, or folders in which a file is broken;
            their cases are left out, as the findings say.
        suffixes: file name endings of the format, the first for the names of missing files.
        ignored: mask values that are declared to be no class and not background either.
        regions: name to label values of classes that overlap, as declared, instead of
            ``classes``; None where nothing is.
    """

    cases: list[Case] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    classes: Mapping[str, tuple[int, ...]] | None = None
    modality: str | None = None
    ambiguous: set[Path] = field(default_factory=set)
    suffixes: tuple[str, ...] = ()
    ignored: tuple[int, ...] = ()
    regions: Mapping[str, tuple[int, ...]] | None = None


@dataclass
class Scan(Layout):
    """A layout after its images were read: ``cases`` are those that can be used.

    Attributes:
        left_out: names of the cases that have an error finding.
    """

    left_out: list[str] = field(default_factory=list)


class Reader(ABC):
    """Reads one format."""

    name: ClassVar[str]
    summary: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    """File name endings of the images that ``read_image`` accepts."""
    needs: ClassVar[tuple[str, str] | None] = None
    """Package that it imports and the extra that brings it."""
    output_suffixes: ClassVar[tuple[str, ...]] = (".png",)
    """File name endings by which predictions for these images are written."""
    default_intensity: ClassVar[str | None] = None
    """Intensity rule where neither user, card nor data set names one."""
    knows_colours: ClassVar[bool] = False
    """Whether classes can be named by the colours of masks."""
    annotation_suffixes: ClassVar[tuple[str, ...]] = ()
    """File name endings of annotations that stand for masks."""
    numbers_objects: ClassVar[bool] = False
    """Its annotations tell objects and classes apart, so that no mask values need reading."""
    takes_channels: ClassVar[bool] = False
    """Whether ``data.channel`` may name several."""
    file_keys: ClassVar[tuple[str, ...]] = ("root",)
    """Which of ``data.root``, ``data.image`` and ``data.label`` it reads; others are refused."""

    def __init__(self, options: ReaderOptions) -> None:
        """Keep the options.

        Raises:
            MissingExtraError: the format needs a package that is not installed.
            ConfigError: several channels are asked for of a format that has one.
        """
        if self.needs and find_spec(self.needs[0]) is None:
            raise MissingExtraError(*self.needs)
        if isinstance(options.channel, tuple) and not self.takes_channels:
            raise ConfigError(
                f"data.channel: the reader {self.name} reads one channel; several are read by "
                + ", ".join(sorted({r.name for r in _READERS.values() if r.takes_channels}))
            )
        self.options = options

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether ``read_image`` is for this file or folder; looks no further than needed."""
        return bool(cls.suffixes) and path.name.lower().endswith(cls.suffixes)

    @classmethod
    def holds_one(cls, folder: Path) -> bool | None:
        """Whether a folder that it accepts is one volume; None where the reader cannot tell."""
        return None

    @abstractmethod
    def discover(self) -> Layout:
        """List the cases without reading images; never raises for a fault of the data."""

    @abstractmethod
    def examine(self, case: Case) -> tuple[Volume | None, list[Finding]]:
        """Read image and labels of a case and report every problem; None if unusable."""

    @abstractmethod
    def read_image(self, path: Path) -> Volume:
        """Read an image without labels.

        Raises:
            FindingError: the file is missing, broken or of another kind.
        """

    def read_channels(self, paths: Sequence[Path]) -> Volume:
        """Read an image whose channels are files, in their order, without labels.

        Raises:
            FindingError: a file is missing or broken, or lies on another grid.
            DataError: in this format an image is one file.
        """
        raise DataError(f"{paths[0]}: several files, each a channel, are not read in this format")

    @abstractmethod
    def write(self, prediction: Array, volume: Volume, path: Path) -> None:
        """Write class ids (h, w, d) or (h, w), arranged as ``volume``, on the source's grid."""

    def read(self, case: Case) -> Volume:
        """Read image and labels of a case.

        Raises:
            FindingError: a file of the case is broken.
        """
        volume, findings = self._examine(case)
        if volume is None:
            raise FindingError(next(f for f in findings if f.severity == "error"))
        return volume

    def _examine(self, case: Case) -> tuple[Volume | None, list[Finding]]:
        """Return what ``examine`` does, with the mask's values read by ``options.masks``."""
        volume, findings = self.examine(case)
        if volume is None:
            return None, findings
        try:
            return self.options.masks.apply(volume, case.labels or case.image), findings
        except FindingError as error:
            return None, [*findings, error.finding]

    def scan(
        self, max_cases: int | None = None, look: Callable[[Case, Volume], None] | None = None
    ) -> Scan:
        """Read the first ``max_cases`` cases (by name), each file once, and check them.

        ``look`` is called with each usable case while its voxels are in memory, in threads.
        """
        layout = self.discover()
        _refuse_equal_names(layout)
        ordered = sorted(layout.cases, key=lambda case: case.name)[:max_cases]
        double = [case for case in ordered if {case.image, case.labels} & layout.ambiguous]
        ordered = [case for case in ordered if case not in double]
        scan = Scan([], list(layout.findings), layout.classes, layout.modality)
        scan.ignored, scan.regions = layout.ignored, layout.regions
        scan.left_out.extend(case.name for case in double)
        masks = self.options.masks
        if masks.ignored is None and layout.ignored:
            masks = replace(masks, ignored=layout.ignored)
        self.options = replace(self.options, masks=masks)
        judged = masks.judged and layout.classes is None and layout.regions is None
        inspect = partial(self._inspect, look=look, judged=judged)
        inspected = each(inspect, ordered, min(4, os.cpu_count() or 1))
        for case, found in zip(ordered, inspected, strict=True):
            if isinstance(found, TookTooLongError):
                found = None, [_too_late(case.image)]
            checked, findings = found
            scan.findings.extend(findings)
            if checked is None:
                scan.left_out.append(case.name)
            else:
                scan.cases.append(checked)
        self.compare_cases(scan)
        return scan

    def compare_cases(self, scan: Scan) -> None:
        """Add findings on how the cases differ, and leave out those that cannot be used so."""
        return

    def _inspect(
        self, case: Case, look: Callable[[Case, Volume], None] | None, judged: bool
    ) -> tuple[Case | None, list[Finding]]:
        try:
            volume, findings = self._examine(case)
        except Exception as error:  # one broken file must not end the scan
            reason = f"could not be read: {type(error).__name__}: {error}"
            fix = "check that the file opens in another program, or remove it"
            if message := explain(error, "check"):
                reason, fix = f"could not be read: {message}", "free memory, or cut it into parts"
            return None, [Finding("unreadable_image", "error", str(case.image), reason, fix)]
        if volume is None:
            return None, findings
        values, presence, zeros = label_presence(volume.labels, self._places(volume))
        checked = replace(
            case,
            shape=volume.shape,
            spacing_mm=volume.spacing_mm,
            axis=volume.source.axis if volume.source else None,
            values=values,
            presence=presence,
            zeros=zeros,
            named=(volume.annotation.labels or ()) if volume.annotation else (),
            digest=content_hash(volume.image),
            colours=volume.colours,
            truth_digest=truth_hash(volume, values),
        )
        if judged and volume.labels is not None:
            ignored = self.options.masks.ignored or ()
            checked = replace(checked, evidence=measure_mask(values, volume.labels, ignored))
        if look is not None:
            look(checked, volume)
        return checked, findings

    def _places(self, volume: Volume) -> list[Any]:
        """Return what cuts each slice, or each tile of a picture, out of the volume's labels."""
        height, width, depth = volume.shape
        if depth > 1 or self.options.tiling is None:
            return [np.s_[:, :, index] for index in range(depth)]
        tiles = self.options.tiling.tiles(height, width)
        return [np.s_[slice(*tile.rows[:2]), slice(*tile.columns[:2])] for tile in tiles]


def _too_late(path: Path) -> Finding:
    message = f"reading it took longer than {max_seconds():g} s, and was given up"
    fix = "check that it opens in another program; if it is right, raise data.max_seconds"
    return Finding("time_limit", "error", str(path), message, fix)


def _refuse_equal_names(layout: Layout) -> None:
    """Make cases of one name ambiguous: splits are made of names."""
    counts = Counter(case.name for case in layout.cases)
    for case in layout.cases:
        if counts[case.name] > 1 and not {case.image, case.labels} & layout.ambiguous:
            message = f"{counts[case.name]} files give a case of the name {case.name!r}"
            found = Finding(
                "duplicate_case", "error", str(case.image), message, "rename one of them"
            )
            layout.findings.append(found)
    layout.ambiguous |= {case.image for case in layout.cases if counts[case.name] > 1}


def content_hash(values: Array) -> str:
    """Return a hash of an array's shape and values, whichever type holds them exactly."""
    dtype = np.dtype(np.float32 if np.can_cast(values.dtype, np.float32) else values.dtype)
    content = hashlib.blake2b(f"{values.shape} {dtype.str}".encode(), digest_size=16)
    for plane in np.moveaxis(values, -1, 0):
        exact = np.ascontiguousarray(plane, dtype) + dtype.type(0)  # -0 and 0 are one value
        content.update(exact.data)
    return content.hexdigest()


def truth_hash(volume: Volume, values: Sequence[int]) -> str:
    """Return a hash of the labels, object numbers and annotations of a volume.

    Args:
        volume: as read.
        values: label values other than 0 that occur in it; they choose the type that is hashed.
    """
    content = hashlib.blake2b(digest_size=16)
    if volume.labels is not None:
        small = all(0 <= value < 256 for value in values)
        content.update(
            content_hash(_narrow(volume.labels, np.uint8 if small else np.int64)).encode()
        )
    if volume.instances is not None:
        content.update(content_hash(_narrow(volume.instances, np.int64)).encode())
    if (given := volume.annotation) is not None:
        for array in (given.boxes, given.points, given.point_labels):
            content.update(b"-" if array is None else f"{array.shape} {array.tolist()}".encode())
        content.update(repr(given.labels).encode())
    content.update(repr(volume.colours).encode())  # they may be what decides the class
    return content.hexdigest()


def _narrow(labels: Array, dtype: Any) -> Array:
    return labels.astype(dtype, copy=False)


def label_presence(
    labels: Array | None, places: Sequence[Any]
) -> tuple[tuple[int, ...], Array, Array]:
    """Return which values occur in which place of the labels.

    Returns:
        The n values other than 0; (places, n) bool, which of them occurs in which place; and
        (places,) bool, in which places the value 0 occurs.
    """
    if labels is None:
        return (), np.zeros((len(places), 0), dtype=bool), np.ones(len(places), dtype=bool)
    per_slice = [_values_of(labels[place]) for place in places]
    values = sorted(set().union(*per_slice) - {0})
    presence = np.array([[value in found for value in values] for found in per_slice], dtype=bool)
    zeros = np.array([0 in found for found in per_slice], dtype=bool)
    return tuple(values), presence.reshape(len(places), len(values)), zeros


def _values_of(plane: Array) -> set[int]:
    low, high = int(plane.min()), int(plane.max())
    if low >= 0 and high < 65536:
        return {int(value) for value in np.flatnonzero(np.bincount(plane.ravel()))}
    return {int(value) for value in np.unique(plane)}


NOT_FORMATS = {"base", "shared"}
"""What lies in this folder and reads no format."""


def register_reader(name: str, *aliases: str) -> Callable[[_ReaderType], _ReaderType]:
    """Class decorator: make a reader known under a name and its aliases."""

    def register(reader: _ReaderType) -> _ReaderType:
        reader.name = name
        for key in (name, *aliases):
            _READERS[key] = reader
        return reader

    return register


def readers() -> dict[str, type[Reader]]:
    """Return all readers by name and alias.

    A new format is found without being listed: ``formats/NAME.py``, or ``formats/NAME/reader.py``
    where a format needs several files.
    """
    package = import_module("samadapt.data.formats")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in NOT_FORMATS:
            name = f"{module.name}.reader" if module.ispkg else module.name
            import_module(f"{package.__name__}.{name}")
    return dict(_READERS)


def get_reader(name: str) -> type[Reader]:
    """Return a reader by name or alias.

    Raises:
        ConfigError: no reader has that name.
    """
    known = readers()
    if name not in known:
        raise ConfigError(
            f"no reader is called {name!r}; known: {', '.join(sorted(known))}{nearest(name, known)}"
        )
    return known[name]


def parse_axis(axis: str | int | None) -> int | None:
    """Return 0 sagittal, 1 coronal, 2 axial, or None for ``"auto"`` and None.

    Raises:
        ConfigError: another value.
    """
    if axis is None or axis == "auto":
        return None
    if axis in (0, 1, 2):
        return int(axis)
    if isinstance(axis, str) and axis in AXES:
        return AXES[axis]
    if isinstance(axis, str) and axis in ("0", "1", "2"):
        return int(axis)
    raise ConfigError(
        f"data.axis must be one of auto, {', '.join(AXES)}, 0, 1, 2; got {axis!r}"
        + nearest(str(axis), AXES)
    )


def reader_for(path: Path, options: ReaderOptions | None = None) -> Reader:
    """Return a reader for one image file or series folder, chosen by its name or content.

    Args:
        path: the file or folder.
        options: how to read it; ``root`` is set to the file's folder.

    Raises:
        DataError: no reader reads such files.
    """
    options = replace(options or ReaderOptions(), root=path.parent)
    for reader in readers().values():
        if reader.accepts(path):
            return reader(options)
    if foreign := by_name(path):
        raise DataError(f"{path}: it is {foreign[0]}, which is not read; {foreign[1]}")
    known = sorted({suffix for reader in readers().values() for suffix in reader.suffixes})
    raise DataError(f"{path}: no reader for this kind of file; readable: {', '.join(known)}")


def read_image(
    path: Path,
    axis: str | int | None = None,
    channel: Channel | Sequence[Channel] | None = None,
    spacing: str | None = None,
    exif: Exif | None = None,
) -> Volume:
    """Read one image file without labels: a picture or a volume.

    Args:
        path: a file of any format that a reader knows, or the folder of a DICOM series.
        axis: what volumes are sliced along; None: the axis with the largest spacing.
        channel: index of the channel of a 4D volume, or its name where a ``dataset.json`` in
            the file's folder or the one above it names the channels; or a list of up to three.
        spacing: ``"affine"`` or ``"pixdim"``: which is true where a NIfTI header contradicts
            itself; None: such a file is an error.
        exif: ``"ignore"``: a picture's pixels stay as they are stored; else they are turned as its
            EXIF orientation says.

    Raises:
        DataError: the file is missing, broken or of an unknown kind.
    """
    chosen = parse_channel(channel)
    options = ReaderOptions(axis=parse_axis(axis), channel=chosen, spacing=spacing, exif=exif)
    try:
        return within_limit(reader_for(path, options).read_image, path)
    except TookTooLongError:
        raise FindingError(_too_late(path)) from None


def write_prediction(prediction: Array, volume: Volume, path: Path) -> None:
    """Write class ids (h, w, d) or (h, w), arranged as ``volume``, on its source's grid.

    The file name's ending chooses the format: PNG for pictures; for volumes NIfTI, or another
    that holds a grid (``output_suffixes`` of the readers).

    Raises:
        DataError: the shape does not fit, or the format cannot hold the volume.
    """
    reader_for(path).write(prediction, volume, path)
