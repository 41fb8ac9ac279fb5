"""A data set as the rest of samadapt sees it: classes, cases, splits, slices and samples."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from samadapt.data.annotations import classes_under
from samadapt.data.cards import Card
from samadapt.data.case_index import CaseIndex
from samadapt.data.channels import Channel, check_channels
from samadapt.data.checks.class_values import decide_classes
from samadapt.data.checks.leaks import mark_patients
from samadapt.data.checks.refusals import (
    check_copies,
    check_kind,
    check_options,
    check_usable,
    share_of,
)
from samadapt.data.classes import ClassChoice, ClassTable, Ignore
from samadapt.data.findings import Finding
from samadapt.data.formats.base import AXES, FormatReader, Layout, Scan
from samadapt.data.intensity import IntensityRule
from samadapt.data.opening import (
    Intensity,
    decide_intensity,
    mask_rules,
    open_reader,
)
from samadapt.data.partial_labels import PartialLabels, read_partial_labels
from samadapt.data.splits import Splits, divide
from samadapt.data.stacks import Stacks, decide_stack
from samadapt.data.tiles import OVERLAP, PictureTile, Tiling, tiling
from samadapt.data.types import Annotation, Case, Sample, SliceRef, Split
from samadapt.data.volume_cache import (
    ALIGNED,
    MEMORY_LIMIT,
    PreparedVolume,
    ScannedVolumes,
    Scratch,
    VolumeCache,
    make_scratch,
    stored_arrays,
)
from samadapt.errors import ConfigError, DataError, nearest
from samadapt.system.arrays import Array


class SliceList(list[SliceRef]):
    """Slices in order, and in ``left_out`` how many were left out for which reason.

    The reasons are ``"empty"``, ``"step"``, ``"gap"`` and ``"not annotated"``.
    """

    left_out: dict[str, int]


@dataclass
class Dataset:
    """The usable cases of a data set.

    Attributes:
        name: card or reader.
        classes: class names; id i + 1 is ``classes[i]``.
        cases: usable cases by name.
        findings: all problems that were found.
        left_out: names of cases that were left out because of errors (``on_error="skip"``).
        note: what the data are good for, and how a single volume was split.
        intensity: the rule that maps values of the files to 0-255.
        axis: ``"axial"``, ``"coronal"`` or ``"sagittal"``; ``"auto"`` where it differs between
            cases; None for pictures.
        reader: reads the files.
        table: maps label values to classes.
        case_splits: which cases, or which slices of a single volume, belong to each split.
        empty_slices, slice_step: policy of ``slices("train")``.
        seed: chooses the empty slices that are kept.
        cache_dir: folder for prepared volumes, memory-mapped; None: memory only.
        scratch_dir: folder of a temporary file for cases that do not fit into memory together;
            None: they are read again whenever they are needed.
        card: the card, where the name is one.
        tiling: how pictures are cut into tiles, which then count as their slices; None: not at all.
        shown_names: maps the name of a case to the pseudonym that everything else uses; empty where
            cases keep their own names.
        partial: which classes and slices are annotated; None: all of them.
        stack: number of neighbouring slices that are seen together.
        scanned: volumes that the scan has read and that are not used yet.
    """

    name: str
    classes: list[str]
    cases: list[Case]
    findings: list[Finding]
    left_out: list[str]
    note: str
    intensity: IntensityRule
    axis: str | None
    reader: FormatReader = field(repr=False)
    table: ClassTable = field(repr=False)
    case_splits: Splits = field(repr=False)
    empty_slices: str | float = "drop"
    slice_step: int = 1
    seed: int = 0
    cache_dir: Path | None = None
    scratch_dir: Path | None = None
    card: Card | None = None
    tiling: Tiling | None = None
    shown_names: Mapping[str, str] = field(default_factory=dict, repr=False)
    partial: PartialLabels | None = None
    stack: int = 1
    scanned: ScannedVolumes = field(default_factory=lambda: ScannedVolumes(None), repr=False)

    def __post_init__(self) -> None:
        """Index the cases by name, and make the caches."""
        self._by_name = {self.shown_names.get(case.name, case.name): case for case in self.cases}
        self.scanned.keep_only({case.name for case in self.cases}, self.intensity)
        self._cache = VolumeCache(scanned=self.scanned)
        # Training draws slices at random. Of cases that memory cannot hold together, it would read
        # a whole one for nearly every slice, so they lie in a temporary file.
        needed = self.scratch_dir is not None and self.prepared_bytes > MEMORY_LIMIT
        self._scratch: Scratch | None = None
        if self.scratch_dir is not None and needed:
            self._scratch = make_scratch(self.scratch_dir, self.prepared_bytes)
        self.lacks_room = needed and self._scratch is None

    @property
    def prepared_bytes(self) -> int:
        """Upper bound of the bytes of all cases after the intensity rule and the class table."""
        rule, labels = self.intensity, np.dtype(_label_type(self.table)).itemsize
        channels = 3 if rule.channels else max(1, len(rule.inputs))
        found = 0
        for case in self.cases:
            image = max(3, channels) if case.axis is None else channels
            each = image + labels + 4 * self.numbers_objects
            found += math.prod(case.shape) * each + 3 * ALIGNED
        return found

    @property
    def unread_bytes(self) -> int:
        """Upper bound of the bytes by which the volumes in memory will still grow."""
        if self._scratch is not None:
            return 0
        return max(0, min(MEMORY_LIMIT, self.prepared_bytes) - self._cache.nbytes)

    @property
    def train(self) -> list[str]:
        """Names of the training cases."""
        return self.case_splits.train

    @property
    def numbers_objects(self) -> bool:
        """Whether the data set separates objects, so that samples have ``instances``."""
        return self.reader.numbers_objects or self.reader.options.masks.instances

    def longest_side(self) -> int:
        """Return the longest side, in pixels, of the training pictures or slices as they are read.

        A picture that is cut into tiles counts with the side of its tiles. Where no case trains,
        all of them count.
        """
        sides = [max(self.case(name).shape[:2]) for name in self.train or self._by_name]
        return max(sides) if self.tiling is None else min(max(sides), self.tiling.side)

    @property
    def val(self) -> list[str]:
        """Names of the validation cases."""
        return self.case_splits.val

    @property
    def stacks(self) -> Stacks:
        """How the volumes are cut into stacks of slices that are seen together."""
        return Stacks(self.stack, lambda name: self.case(name).shape[2])

    def splits(self) -> dict[str, Any]:
        """Return the content of ``splits.json``.

        These are the rule, the case names of both splits, the slices of a slab, the names that were
        left out, and hashes of images and labels.
        """
        return {
            **self.case_splits.to_dict(),
            "left_out": list(self.left_out),
            "images": {name: case.digest for name, case in self._by_name.items()},
            "labels": {name: self._truth_digest(name) for name in self._by_name},
        }

    def _truth_digest(self, name: str) -> str:
        """Return the hash of a case's mask and of which parts of it count as annotated."""
        digest, known = self.case(name).truth_digest, self.known(name)
        if known is None:
            return digest
        return hashlib.sha256(digest.encode() + np.packbits(known).tobytes()).hexdigest()

    def case(self, name: str) -> Case:
        """Return a case by name.

        Raises:
            DataError: no usable case has that name.
        """
        if name not in self._by_name:
            raise DataError(f"{self.name}: no case {name!r}{nearest(name, self._by_name)}")
        return self._by_name[name]

    def presence(self, name: str) -> Array:
        """Return (d, K) bool: which class occurs in which slice, or tile, of a case."""
        case = self.case(name)
        if case.presence is None:
            raise DataError(f"{self.name}: case {name!r} was not scanned")
        found = self.table.presence(case.values, case.presence)
        if (known := self.known(name)) is not None:
            found[~known] = False
        return found

    @property
    def overlapping(self) -> bool:
        """Whether a pixel may belong to several classes."""
        return self.table.overlapping

    def known(self, name: str) -> Array | None:
        """Return (d, K) bool: which class is annotated in which slice, or tile; None: all are."""
        if self.partial is None:
            return None
        case = self.case(name)
        known = self.partial.known(case.name, case.shape[2], self.table)
        count = known.shape[0] if case.presence is None else len(case.presence)
        # A picture has one row, which holds for each of its tiles.
        return known if len(known) == count else np.repeat(known, count, axis=0)

    def annotated(self, name: str) -> Array:
        """Return (d,) bool: whether anything in a slice, or tile, of a case is annotated."""
        case, known = self.case(name), self.known(name)
        if known is None:
            known = np.ones((len(self.presence(name)), 1), dtype=bool)
        listed: Array = np.any(known, axis=1)
        if case.presence is None or case.zeros is None:
            return listed
        return listed & self.table.annotated(case.values, case.presence, case.zeros)

    def slices(
        self, split: Split, empty: str | float | None = None, step: int | None = None
    ) -> SliceList:
        """Return the slices of a split, and in ``left_out`` how many were left out.

        Slices without any annotated pixel belong to no split.

        Args:
            split: ``"train"`` or ``"val"``.
            empty: what to do with slices in which no class occurs: ``"drop"``, ``"keep"``, or the
                share (0..1) to keep, chosen by the seed. None: the data set's policy for
                ``"train"``, ``"keep"`` for ``"val"``, so that scores include every slice.
            step: use every n-th slice of each volume, from the first. None: the data set's step for
                ``"train"``, 1 for ``"val"``.

        Raises:
            ConfigError: an unknown split, or a value of ``empty`` that does not exist.
        """
        if split not in ("train", "val"):
            raise ConfigError(f"split must be train or val; got {split!r}")
        if empty is None:
            empty = self.empty_slices if split == "train" else "keep"
        share = share_of(empty)
        step = step or (self.slice_step if split == "train" else 1)
        counts = {"empty": 0, "step": 0, "gap": 0}
        with_class: list[SliceRef] = []
        without_class: list[SliceRef] = []
        slab = self.case_splits.slab
        for name in getattr(self.case_splits, split):
            has_class = np.any(self.presence(name), axis=1).tolist()
            annotated = self.annotated(name).tolist()
            indices = slab.indices(split) if slab else list(range(len(has_class)))
            if slab:
                counts["gap"] += slab.depth - sum(len(slab.indices(s)) for s in ("train", "val"))
            taken = indices[::step]
            counts["step"] += len(indices) - len(taken)
            if unknown := sum(not annotated[index] for index in taken):
                counts["not annotated"] = counts.get("not annotated", 0) + unknown
            for index in (index for index in taken if annotated[index]):
                (with_class if has_class[index] else without_class).append(SliceRef(name, index))
        kept = random.Random(self.seed).sample(without_class, round(share * len(without_class)))
        counts["empty"] = len(without_class) - len(kept)
        result = SliceList(sorted([*with_class, *kept]))
        result.left_out = counts
        return result

    def classes_in(self, refs: Iterable[SliceRef]) -> list[str]:
        """Return the names of the classes that occur in the given slices, or tiles."""
        found = np.zeros(len(self.classes), dtype=bool)
        for case, own in groupby(sorted(refs), key=lambda ref: ref.case):
            found |= self.presence(case)[[ref.index for ref in own]].any(axis=0)
        return [name for name, occurs in zip(self.classes, found, strict=True) if occurs]

    def volume(self, name: str) -> PreparedVolume:
        """Return a case after the intensity rule and the class table.

        It comes from memory if it is still there, otherwise from the file.

        Raises:
            DataError: the file must be read again, but it changed or vanished after the scan; the
                message names it.
        """
        volume = self._cache.get(name, partial(self._prepare, self.case(name)))
        if self._scratch is not None:
            self._scratch.count_use(volume)
        return volume

    def volume_labels(self, name: str) -> Array:
        """Return the (h, w, d) int16 labels of a case; see ``Sample``."""
        return np.asarray(self.volume(name).labels, dtype=np.int16)

    def sample(self, ref: SliceRef) -> Sample:
        """Return one slice, or tile: its image, labels and the prompts of its annotations."""
        volume, tile = self.volume(ref.case), self.tile(ref)
        values, instances, index = volume.image, volume.instances, ref.index
        labels = volume.labels
        if instances is not None and instances.ndim == 3:
            instances = np.ascontiguousarray(instances[:, :, index])
        if tile is not None:  # then the volume is a picture, which has one slice
            values, labels, index = tile.cut(values), tile.cut(labels), 0
            instances = None if instances is None else np.array(tile.cut(instances))
        image = self.intensity.picture(values, index, is_color=volume.is_color)
        plane = np.array(labels[:, :, index], dtype=np.int16)
        known = self.known(ref.case)
        sample = Sample(
            ref.case,
            ref.index,
            np.ascontiguousarray(image),
            plane,
            instances=instances,
            tile=tile,
            known=None if known is None else known[ref.index],
            members=self.table.members,
        )
        return (
            sample if volume.annotation is None else self._with_prompts(sample, volume.annotation)
        )

    def tile(self, ref: SliceRef) -> PictureTile | None:
        """Return where a tile lies in its picture; None where pictures are not cut."""
        if self.tiling is None:
            return None
        height, width, _ = self.case(ref.case).shape
        return self.tiling.tiles(height, width)[ref.index]

    def samples(self, name: str) -> list[Sample]:
        """Return all slices, or tiles, of a case."""
        return [self.sample(SliceRef(name, index)) for index in range(len(self.presence(name)))]

    def _with_prompts(self, sample: Sample, drawn: Annotation) -> Sample:
        """Add the prompts that a person drew, except those of classes that are not used."""
        boxes, points, point_labels = drawn.boxes, drawn.points, drawn.point_labels
        ids = None
        if drawn.labels is None and self.overlapping:
            raise DataError(
                f"{sample.case}: its prompts name no classes, but a pixel may belong to several; "
                "name the class of each prompt in the annotation, or leave data.regions out"
            )
        if drawn.labels is not None:
            ids = np.array([self.table.id_of(label) for label in drawn.labels], dtype=np.int64)
            used = ids > 0
            ids = ids[used]
            # ``labels`` name the boxes, or the points where there are no boxes.
            if boxes is not None:
                boxes = boxes[used]
            elif points is not None and point_labels is not None:
                points, point_labels = points[used], point_labels[used]
            if not used.any():
                return sample
        if sample.tile is not None:
            # The class under a prompt without a name is found in the whole picture: a tile may
            # contain only a corner of the box, with another class under it.
            if ids is None:
                ids = classes_under(boxes, points, point_labels, self.volume(sample.case).labels)
            boxes, points, point_labels, ids = sample.tile.annotation(
                boxes, points, point_labels, ids
            )
        return replace(
            sample, boxes=boxes, points=points, point_labels=point_labels, prompt_classes=ids
        )

    def _prepare(self, case: Case) -> PreparedVolume:
        """Return a case ready for slicing: in memory, in the scratch file or in the disk cache."""
        has_objects = self.reader.options.masks.instances
        if self.cache_dir is None or case.axis is None or has_objects or not case.stamps:
            volume = self._read(case)
            return volume if self._scratch is None else self._scratch.put_volume(volume)
        # The cache key includes each file's size and modification time, so changed files are read
        # again. For a DICOM series it has only the number of files, the largest size and the latest
        # time.
        stamps = case.stamps
        stamp = stamps[0] if not case.files else (len(stamps), *map(max, zip(*stamps, strict=True)))
        key = repr((case, case.files, *stamp, self.intensity, self.table))

        def read_arrays() -> tuple[Array, Array]:
            volume = self._read(case)
            return volume.image, volume.labels

        image, labels = stored_arrays(self.cache_dir, key, read_arrays)
        # If the disk cache held the volume already, the scan's copy is not needed: free its memory.
        self.scanned.take(case.name)
        return PreparedVolume(image, labels, spacing_mm=case.spacing_mm)

    def _read(self, case: Case) -> PreparedVolume:
        """Return a case after the intensity rule and the class table.

        The scan has read and checked it already; the file is read again only if memory could not
        hold it until now.
        """
        volume = self.scanned.take(case.name)
        if volume is None:
            read = self.reader.read(case)
            if read.labels is None:
                raise DataError(
                    f"{self.name}: case {case.name!r} has no labels, so it cannot be trained on"
                )
            try:
                image = self.intensity(read)
            except DataError as error:
                raise DataError(f"{case.image}: {error}") from error
            volume = PreparedVolume(
                image, read.labels, read.is_color, read.spacing_mm, read.annotation, read.instances
            )
        labels = self.table.remap(volume.labels).astype(_label_type(self.table), copy=False)
        return replace(volume, labels=labels)


def open_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    axis: str | int | None = None,
    intensity: Intensity | None = None,
    classes: ClassChoice = None,
    merge_classes: bool = False,
    ignore: Ignore = None,
    annotated: str | Path | None = None,
    regions: Mapping[str, int | Sequence[int]] | None = None,
    empty_slices: str | float = "drop",
    slice_step: int = 1,
    val_every: int = 5,
    fold: int | None = None,
    folds: int = 5,
    max_cases: int | None = None,
    on_error: str = "stop",
    seed: int = 0,
    cache_dir: str | Path | None = None,
    scratch_dir: str | Path | None = None,
    channel: Channel | Sequence[Channel] | None = None,
    image: str | None = None,
    label: str | None = None,
    split: Mapping[str, Any] | None = None,
    neighbours: int = 0,
    patient: str | None = None,
    tile: int | None = None,
    tile_overlap: float = OVERLAP,
    stack: int | Literal["auto"] = 1,
    spacing: str | None = None,
    instances: bool = False,
    mask_threshold: float | None = None,
    series: str | None = None,
    exif: str | None = None,
    background: str | Sequence[str] | None = None,
    input_channels: int | None = None,
    index: CaseIndex | None = None,
) -> Dataset:
    """Open a data set: find its cases, read and check each file once, and split the cases.

    Args:
        name: a card (``datasets/<name>.yaml``) or a reader (``nifti``, ``folder``, ...).
        root: the data set's folder; None: that of the card, which is downloaded if necessary.
        axis: ``"axial"``, ``"coronal"``, ``"sagittal"``, 0 (sagittal), 1, 2 or ``"auto"``: the
            axis with the largest spacing, axial where they are equal. None: the card's, or auto.
        intensity: see ``intensity.py``; None or ``"auto"``: the card's, or that of the modality.
        classes: see ``classes.make_table``; None: those that the data set declares.
        merge_classes: merge all listed classes into one, ``foreground``.
        ignore: mask value or values whose pixels have no loss and no score; None: those that the
            data set declares.
        annotated: CSV or JSON file that lists what is annotated; see ``partial_labels.py``.
        regions: classes that may overlap, ``{name: value or [values]}``, instead of ``classes``;
            None: those that the data set declares.
        empty_slices: ``"drop"``, ``"keep"`` or the share (0..1) of training slices without a class
            that is kept.
        slice_step: train on every n-th slice.
        val_every: every n-th case, by name and from the first, is validation; 0: none is.
        fold: hold out this fold of a cross-validation instead; see ``splits.py``.
        folds: how many folds there are.
        max_cases: read only the first ``max_cases`` cases by name.
        on_error: ``"stop"``: refuse the data set if there is any error; ``"skip"``: leave out the
            cases with errors.
        seed: chooses the empty slices that are kept.
        cache_dir: keep prepared volumes in this folder, so that later programs need not prepare
            them again.
        scratch_dir: where cases are kept while the program runs, in a temporary file, if they need
            more than ``MEMORY_LIMIT`` together and the disk has room for them.
        channel: index or name of the channel of multi-channel images, or up to three of them,
            which become red, green and blue; see ``channels.py``.
        image: file name or pattern of the images; see ``volume_patterns.py``.
        label: file name or pattern of the masks.
        split: ``{"val": [names]}`` or a slab; see ``splits.py``. None: the card's.
        neighbours: red shows the slice this many before, green the slice itself, blue the slice
            this many after; 0: all three show the slice itself.
        patient: pattern for case names; its group is the patient. See ``checks/leaks.py``.
        tile: side in pixels of the tiles that pictures are cut into; see ``tiles.py``. None or 0:
            they are not cut.
        tile_overlap: smallest overlap of neighbouring tiles, as a share of the side.
        stack: number of neighbouring slices that are seen together; ``"auto"``: see
            ``stacks.decide_stack``. No stack has slices of both splits.
        spacing: ``"affine"`` or ``"pixdim"``: which is true where a NIfTI header contradicts
            itself; None: such a file is an error.
        instances: each number of a mask is one object of one class.
        mask_threshold: this value of a mask and higher ones are foreground, lower ones background.
        series: which of several DICOM series in a folder is used; see ``dicom/series_choice.py``.
        exif: ``"apply"`` or ``"ignore"``; see ``formats/shared/exif.py``.
        background: the colour of the masks' background, or colours; see ``colours.py``.
        input_channels: channels of a model with an input projection
            (``Sam.add_input_projection``); None: three.
        index: what earlier programs found in the files; unchanged files are then not read. None:
            every file is read.

    Raises:
        ConfigError: a name, an option or a class does not exist.
        DataError: the data set has errors; the message lists the first twenty.
        DownloadError: the data set of a card could not be downloaded.
    """
    # 1. Refuse wrong options before any file is read.
    check_options(on_error, slice_step, empty_slices, patient)
    check_channels(channel, input_channels)
    cut = tiling(tile, tile_overlap)
    masks = mask_rules(classes, instances, mask_threshold, ignore, background, regions)
    given = (image, label, cut, spacing, masks, series, classes, exif)
    name, card, reader = open_reader(name, root, axis, channel, *given)
    # 2. List the cases, then read and check them.
    layout = _discover(reader, index)
    # Each file is read once: what the scan reads is kept, after the intensity rule, for its use.
    scanned = ScannedVolumes(rule := _rule_before_scan(intensity, card, layout, reader, neighbours))
    scan = reader.scan(max_cases, scanned.keep, layout)
    # 3. Decide what the values mean. Cases that do not fit are left out, with a finding.
    mark_patients(scan, patient)
    table = decide_classes(scan, card, classes, merge_classes, masks, regions)
    partial = read_partial_labels(annotated, root, scan, table)
    check_usable(name, scan, on_error, reader)
    # 4. Decide how the model sees the images, and split the cases.
    if rule is None or scan.modality != layout.modality:
        rule = decide_intensity(intensity, card, scan, reader).with_neighbours(neighbours)
    stack = decide_stack(stack, [case.shape[2] for case in scan.cases])
    check_kind(scan.cases, rule, stack, cut)
    chosen, gap = split or (card.split if card else None), rule.neighbours + stack - 1
    splits = divide(scan.cases, chosen, val_every, fold, folds, least_gap=gap)
    policy = (empty_slices, slice_step, seed, (cache_dir, scratch_dir), stack)
    return _dataset(name, scan, table, rule, splits, reader, card, policy, cut, partial, scanned)


def _discover(reader: FormatReader, index: CaseIndex | None) -> Layout:
    """List the cases of a folder, and let the reader take what it can from an index."""
    layout = reader.discover()
    if index is not None:
        reader.use_index(index, layout)
    return layout


def _rule_before_scan(
    intensity: Intensity | None,
    card: Card | None,
    layout: Layout,
    reader: FormatReader,
    neighbours: int,
) -> IntensityRule | None:
    """Return the intensity rule from what the user and the folder declare, or from a few volumes.

    None where nothing decides it, a file is broken, or the options contradict each other: that
    error is raised after the scan, since errors of the files come first.
    """
    try:
        return decide_intensity(intensity, card, layout, reader).with_neighbours(neighbours)
    except (ConfigError, DataError):
        return None


def _dataset(
    name: str,
    scan: Scan,
    table: ClassTable,
    rule: IntensityRule,
    splits: Splits,
    reader: FormatReader,
    card: Card | None,
    policy: tuple[str | float, int, int, Sequence[str | Path | None], int],
    cut: Tiling | None,
    partial: PartialLabels | None,
    scanned: ScannedVolumes,
) -> Dataset:
    """Return the data set of a scan and its splits.

    Raises:
        DataError: an image is in both splits.
    """
    check_copies(name, scan, splits)
    cache, scratch = (Path(folder) if folder else None for folder in policy[3])
    notes = [card.note if card else "", splits.rule if splits.slab else ""]
    return Dataset(
        name=name,
        classes=list(table.names),
        cases=scan.cases,
        findings=scan.findings,
        left_out=sorted(scan.left_out),
        note=" ".join(note.strip() for note in notes if note),
        intensity=rule,
        axis=_axis_name(scan.cases),
        reader=reader,
        table=table,
        case_splits=splits,
        empty_slices=policy[0],
        slice_step=policy[1],
        seed=policy[2],
        cache_dir=cache,
        scratch_dir=scratch,
        card=card,
        tiling=cut,
        partial=partial,
        stack=policy[4],
        scanned=scanned,
    )


def _label_type(table: ClassTable) -> type[np.integer[Any]]:
    """Return the smallest type that holds the class ids, and -1 (``IGNORED``) where it is used."""
    if table.ignored:
        return np.int8 if len(table.parts) < 128 else np.int16
    # Ids are 0 to the number of parts, so 255 parts still fit into uint8.
    return np.uint8 if len(table.parts) < 256 else np.int16


def _axis_name(cases: list[Case]) -> str | None:
    axes = {case.axis for case in cases}
    if axes == {None}:
        return None
    names = {index: name for name, index in AXES.items()}
    only = next(iter(axes))
    return names[only] if len(axes) == 1 and only is not None else "auto"
