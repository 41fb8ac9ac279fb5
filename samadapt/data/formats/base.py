"""What a reader of a file format is, how readers are registered, and the scan of a data set.

There is one file or folder for each format beside this one, and each registers its reader beside
its code. A reader lists the cases of a data set (``discover``), reads and checks one case
(``examine``), and writes a prediction back on the grid of its source (``write``). ``scan`` puts
these together: it reads every case once, in threads, and collects all findings.
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

from samadapt.data.case_index import CaseIndex, KnownCase, stamps_of
from samadapt.data.channels import Channel, Choice, parse_channel
from samadapt.data.checks.mask_values import measure_mask
from samadapt.data.classes import ClassChoice
from samadapt.data.findings import Finding, FindingError, error_finding
from samadapt.data.formats.shared.exif import Exif
from samadapt.data.formats.shared.time_limit import TookTooLongError, each, within_limit
from samadapt.data.formats.shared.unsupported_files import by_name
from samadapt.data.mask_rules import AS_CLASSES, MaskRules
from samadapt.data.tiles import Tiling
from samadapt.data.types import Case, Volume
from samadapt.errors import ConfigError, DataError, MissingExtraError, nearest
from samadapt.system.arrays import Array
from samadapt.system.limits import max_bytes, max_seconds
from samadapt.system.out_of_memory import explain

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Canonical axes by the slices that cut them: RAS+ x runs to the right, y forward, z up."""

_READERS: dict[str, type[FormatReader]] = {}
_ReaderType = TypeVar("_ReaderType", bound="type[FormatReader]")


@dataclass(frozen=True)
class ReaderOptions:
    """Where the files are and how to read them.

    Attributes:
        root: the data set's folder; None for data that come with a package.
        axis: canonical axis to slice along: 0 sagittal, 1 coronal, 2 axial; None: the one with
            the largest spacing, axial where they are equal.
        channel: index or name of the channel of a 4D or multi-channel image; a tuple for several.
        image: file name or pattern of the images; see ``volume_patterns.py``.
        label: file name or pattern of the masks.
        tiling: how pictures are cut into tiles, which count as their slices; None: not at all.
        spacing: which voxel size of a NIfTI header is true where its affine and ``pixdim``
            differ: ``"affine"`` or ``"pixdim"``; None: such a file is refused.
        masks: how the values of masks are read.
        series: which of several DICOM series in a folder; see ``dicom/series_choice.py``.
        classes: the classes that will be used. A format whose masks may overlap reads only these.
        exif: whether the EXIF orientation of pictures is applied. None: it is applied, and masks
            must show that they are drawn on the turned picture. See ``shared/exif.py``.
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
        cases: all cases, including those with a missing file.
        findings: problems of the layout itself.
        classes: name to label values, as declared; None where nothing is declared.
        modality: name of the channel that is read, such as ``"CT"``; None where it is not stated.
        ambiguous: files that share a name with another, or folders that contain a broken file.
            Their cases are left out, and the findings say so.
        suffixes: file name endings of the format; messages use the first for missing files.
        ignored: mask values that are declared to be neither a class nor background.
        regions: name to label values of classes that overlap, instead of ``classes``; None where
            no such classes are declared.
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
    """A layout after its images were read: ``cases`` holds only those that can be used.

    Attributes:
        left_out: names of the cases that have an error finding.
    """

    left_out: list[str] = field(default_factory=list)


class FormatReader(ABC):
    """Reads one file format."""

    name: ClassVar[str]
    summary: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    """File name endings of the images that ``read_image`` accepts."""
    needs: ClassVar[tuple[str, str] | None] = None
    """A package that it imports and the extra that installs the package."""
    output_suffixes: ClassVar[tuple[str, ...]] = (".png",)
    """File name endings of the predictions that can be written for these images."""
    default_intensity: ClassVar[str | None] = None
    """Intensity rule where neither the user nor the card nor the data set names one."""
    knows_colours: ClassVar[bool] = False
    """Whether classes can be named by the colours of masks."""
    annotation_suffixes: ClassVar[tuple[str, ...]] = ()
    """File name endings of annotation files that take the place of masks."""
    numbers_objects: ClassVar[bool] = False
    """Its annotations separate objects and classes, so mask values need no interpretation."""
    takes_channels: ClassVar[bool] = False
    """Whether ``data.channel`` may name several."""
    file_keys: ClassVar[tuple[str, ...]] = ("root",)
    """Which of ``data.root``, ``data.image`` and ``data.label`` it reads; others are refused."""
    _index: CaseIndex | None = None

    def __init__(self, options: ReaderOptions) -> None:
        """Keep the options.

        Raises:
            MissingExtraError: the format needs a package that is not installed.
            ConfigError: the options name several channels, but the format has only one.
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
        """Return whether ``read_image`` can read this file or folder, judged as cheaply as it can.

        Most formats look only at the name; DICOM and TIFF look into the file.
        """
        return bool(cls.suffixes) and path.name.lower().endswith(cls.suffixes)

    @classmethod
    def holds_one(cls, folder: Path) -> bool | None:
        """Return whether an accepted folder is a single volume; None where it cannot be said."""
        return None

    @abstractmethod
    def discover(self) -> Layout:
        """List the cases without reading images; problems of the data become findings."""

    @abstractmethod
    def examine(self, case: Case) -> tuple[Volume | None, list[Finding]]:
        """Read image and labels of a case and report every problem; None if it is unusable."""

    @abstractmethod
    def read_image(self, path: Path) -> Volume:
        """Read an image without labels.

        Raises:
            FindingError: the file is missing, broken or of another kind.
        """

    def sources(self, case: Case) -> Sequence[Path] | None:
        """Return all files that decide what ``examine`` finds in a case.

        None where they are not known: then the files are read whenever the data set is opened.
        """
        return None

    def read_channels(self, paths: Sequence[Path]) -> Volume:
        """Read an image without labels whose channels are separate files.

        Args:
            paths: the files in the order of the channels.

        Raises:
            FindingError: a file is missing or broken, or is on another grid.
            DataError: this format keeps an image in one file.
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
        """Call ``examine`` and apply ``options.masks`` to the values of the mask."""
        volume, findings = self.examine(case)
        if volume is None:
            return None, findings
        try:
            return self.options.masks.apply(volume, case.labels or case.image), findings
        except FindingError as error:
            return None, [*findings, error.finding]

    def use_index(self, index: CaseIndex, layout: Layout) -> None:
        """Take cases whose files are unchanged from an index, and add the others to it.

        Args:
            index: what earlier programs found.
            layout: what ``discover`` returned. Its classes decide how masks are checked.
        """
        root = None if self.options.root is None else str(self.options.root.absolute())
        declared = (layout.classes, layout.regions, layout.ignored, layout.modality)
        index.open(repr((self.name, root, self.options, declared, max_bytes())))
        self._index = index

    def lowest(self, case: Case) -> float:
        """Return the smallest value of a case's image.

        Raises:
            FindingError: a file of the case is broken.
        """
        known = self._from_index(case)
        return known.lowest if known else float(self.read(case).image.min())

    def _from_index(self, case: Case) -> KnownCase | None:
        """Return what the index says about a case; None where its files must be read."""
        files = self.sources(case) if self._index else None
        return self._index.find(case, files) if self._index and files else None

    def scan(
        self,
        max_cases: int | None = None,
        look: Callable[[Case, Volume], None] | None = None,
        layout: Layout | None = None,
    ) -> Scan:
        """Read and check the cases, each file once, or not at all where the index knows them.

        Args:
            max_cases: read only the first ones by name.
            look: called in threads with each usable case that is read, while its voxels are in
                memory.
            layout: what ``discover`` returned, if it was called already.
        """
        layout = self.discover() if layout is None else layout
        _refuse_equal_names(layout)
        ordered = sorted(layout.cases, key=lambda case: case.name)[:max_cases]
        double = [case for case in ordered if {case.image, case.labels} & layout.ambiguous]
        ordered = [case for case in ordered if case not in double]
        scan = Scan([], list(layout.findings), layout.classes, layout.modality)
        scan.ignored, scan.regions = layout.ignored, layout.regions
        scan.left_out.extend(case.name for case in double)
        # ``examine`` needs the ignored values that the folder declares, unless the user named some.
        masks = self.options.masks
        if masks.ignored is None and layout.ignored:
            masks = replace(masks, ignored=layout.ignored)
        self.options = replace(self.options, masks=masks)
        judged = masks.judged and layout.classes is None and layout.regions is None
        inspect = partial(self._inspect, look=look, judged=judged)
        known = {case.name: entry for case in ordered if (entry := self._from_index(case))}
        unknown = [case for case in ordered if case.name not in known]
        # Four threads: unpacking releases the interpreter's lock, and each one holds a volume.
        inspected = each(inspect, unknown, min(4, os.cpu_count() or 1))
        for case in ordered:
            if entry := known.get(case.name):
                checked, findings = entry.case, list(entry.findings)
            elif isinstance(found := next(inspected), TookTooLongError):
                checked, findings = None, [_too_late(case.image)]
            else:
                checked, findings = found
            scan.findings.extend(findings)
            if checked is None:
                scan.left_out.append(case.name)
            else:
                scan.cases.append(checked)
        if self._index is not None:
            self._index.save({case.name for case in layout.cases})
        self.compare_cases(scan)
        return scan

    def compare_cases(self, scan: Scan) -> None:
        """Add findings on how the cases differ, and leave out those that cannot be used for it."""
        return

    def _inspect(
        self, case: Case, look: Callable[[Case, Volume], None] | None, judged: bool
    ) -> tuple[Case | None, list[Finding]]:
        """Read a case and return it with what the scan learns about it; None if it is unusable."""
        try:
            stamps = file_stamps(case)
            sources = (self.sources(case) if self._index else None) or ()
            source_stamps = stamps_of(sources)
            volume, findings = self._examine(case)
        except Exception as error:  # one broken file must not end the scan
            reason = f"could not be read: {type(error).__name__}: {error}"
            fix = "check that the file opens in another program, or remove it"
            if message := explain(error, "check"):
                reason, fix = f"could not be read: {message}", "free memory, or cut it into parts"
            return None, [error_finding("unreadable_image", case.image, reason, fix)]
        if volume is None:
            return None, findings
        # All that later steps ask about a case is collected now, while its voxels are in memory.
        values, presence, zeros = label_presence(volume.labels, self._places(volume.shape))
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
            stamps=stamps,
        )
        if judged and volume.labels is not None:
            ignored = self.options.masks.ignored or ()
            checked = replace(checked, evidence=measure_mask(values, volume.labels, ignored))
        if self._index is not None and source_stamps:
            found = KnownCase(checked, tuple(findings), float(volume.image.min()))
            self._index.add(case, source_stamps, found)
        if look is not None:
            look(checked, volume)
        return checked, findings

    def _places(self, shape: tuple[int, int, int]) -> list[Any]:
        """Return the index that cuts each slice, or each tile of a picture, out of the labels."""
        height, width, depth = shape
        if depth > 1 or self.options.tiling is None:
            return [np.s_[:, :, index] for index in range(depth)]
        # The first two entries of a Span are start and stop.
        tiles = self.options.tiling.tiles(height, width)
        return [np.s_[slice(*tile.rows[:2]), slice(*tile.columns[:2])] for tile in tiles]


def file_stamps(case: Case) -> tuple[tuple[int, int], ...]:
    """Return bytes and time of modification in ns of a case's image files and its mask.

    The result is empty where one of them is missing.
    """
    files = [*(case.files or (case.image,)), *([case.labels] if case.labels else [])]
    try:
        stats = [path.stat() for path in files]
    except (OSError, ValueError):  # ValueError: a null character in the name
        return ()
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)


def _too_late(path: Path) -> Finding:
    message = f"reading it took longer than {max_seconds():g} s, and was given up"
    fix = "check that it opens in another program; if it is right, raise data.max_seconds"
    return error_finding("time_limit", path, message, fix)


def _refuse_equal_names(layout: Layout) -> None:
    """Mark cases that share a name as ambiguous, because splits consist of names."""
    counts = Counter(case.name for case in layout.cases)
    for case in layout.cases:
        if counts[case.name] > 1 and not {case.image, case.labels} & layout.ambiguous:
            message = f"{counts[case.name]} files give a case of the name {case.name!r}"
            layout.findings.append(
                error_finding("duplicate_case", case.image, message, "rename one of them")
            )
    layout.ambiguous |= {case.image for case in layout.cases if counts[case.name] > 1}


def content_hash(values: Array) -> str:
    """Return a hash of an array's shape and values.

    The hash is the same for every type that holds the values exactly, and does not depend on the
    memory layout.
    """
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
        values: label values other than 0 that occur in it. They decide whether the labels are
            hashed as 8-bit or as 64-bit numbers, so the hash does not depend on the file's type.
    """
    content = hashlib.blake2b(digest_size=16)
    if volume.labels is not None:
        small = all(0 <= value < 256 for value in values)
        labels = volume.labels.astype(np.uint8 if small else np.int64, copy=False)
        content.update(content_hash(labels).encode())
    if volume.instances is not None:
        content.update(content_hash(volume.instances.astype(np.int64, copy=False)).encode())
    if (drawn := volume.annotation) is not None:
        for array in (drawn.boxes, drawn.points, drawn.point_labels):
            content.update(b"-" if array is None else f"{array.shape} {array.tolist()}".encode())
        content.update(repr(drawn.labels).encode())
    content.update(repr(volume.colours).encode())  # the colour may decide the class
    return content.hexdigest()


def label_presence(
    labels: Array | None, places: Sequence[Any]
) -> tuple[tuple[int, ...], Array, Array]:
    """Return which values occur in which part of the labels.

    Args:
        labels: (h, w, d), or None.
        places: indices into ``labels``, one for each slice or tile.

    Returns:
        The n values other than 0, sorted; (places, n) bool, which of them occurs in which place;
        and (places,) bool, in which places the value 0 occurs.
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
    if low >= 0 and high < 65536:  # counting is much faster than sorting, but needs small values
        return {int(value) for value in np.flatnonzero(np.bincount(plane.ravel()))}
    return {int(value) for value in np.unique(plane)}


NOT_FORMATS = {"base", "shared"}
"""Modules of this folder that read no format."""


def register_reader(name: str, *aliases: str) -> Callable[[_ReaderType], _ReaderType]:
    """Return a class decorator that makes a reader known under a name and its aliases."""

    def register(reader: _ReaderType) -> _ReaderType:
        reader.name = name
        for key in (name, *aliases):
            _READERS[key] = reader
        return reader

    return register


def readers() -> dict[str, type[FormatReader]]:
    """Return all readers by name and alias.

    A new format needs no list: the module ``formats/NAME.py``, or ``formats/NAME/reader.py`` where
    a format needs several files, is found and imported.
    """
    package = import_module("samadapt.data.formats")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in NOT_FORMATS:
            name = f"{module.name}.reader" if module.ispkg else module.name
            import_module(f"{package.__name__}.{name}")
    return dict(_READERS)


def get_reader(name: str) -> type[FormatReader]:
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


def reader_for(path: Path, options: ReaderOptions | None = None) -> FormatReader:
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
        channel: index of the channel of a 4D volume, or its name where a ``dataset.json`` in the
            file's folder or its parent names the channels; or a list of up to three.
        spacing: ``"affine"`` or ``"pixdim"``: which is true where a NIfTI header contradicts
            itself; None: such a file is an error.
        exif: ``"ignore"``: a picture's pixels stay as they are stored; otherwise they are turned as
            its EXIF orientation says.

    Raises:
        DataError: the file is missing, broken or of an unknown kind, or reading it took longer than
            ``data.max_seconds``.
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
    format that stores a grid (``output_suffixes`` of the readers).

    Raises:
        DataError: the shape does not fit, or the format cannot hold the volume.
    """
    reader_for(path).write(prediction, volume, path)
