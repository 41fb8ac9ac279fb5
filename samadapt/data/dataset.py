"""A data set as the rest of samadapt sees it: classes, cases, splits, slices and samples."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.data.annotated import Annotated, read_annotated
from samadapt.data.annotations import classes_under
from samadapt.data.cards import Card
from samadapt.data.channels import Channel, check_channels
from samadapt.data.checks.leaks import mark_patients, patient_pattern
from samadapt.data.checks.refusals import (
    check_copies,
    check_kind,
    check_options,
    check_usable,
    share_of,
)
from samadapt.data.classes import ClassChoice, ClassTable, Ignore
from samadapt.data.formats.base import AXES, Reader, Scan
from samadapt.data.intensity import IntensityRule
from samadapt.data.opening import (
    Intensity,
    decide_classes,
    decide_intensity,
    mask_rules,
    open_reader,
)
from samadapt.data.splits import Splits, divide
from samadapt.data.tiles import OVERLAP, Tile, Tiling, tiling
from samadapt.data.types import Annotation, Case, Finding, Sample, SliceRef, Split, Volume
from samadapt.data.volumes import (
    MEMORY_LIMIT,
    PreparedVolume,
    Scratch,
    VolumeCache,
    stored_arrays,
)
from samadapt.errors import ConfigError, DataError, nearest
from samadapt.system.arrays import Array

_BYTES_A_PIXEL = 10
"""Of a prepared picture at most: three colours, a label of two bytes, an object number of four."""


class SliceList(list[SliceRef]):
    """Slices in order, and how many were left out, by the reason.

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
        left_out: names of cases left out because of errors (``on_error="skip"``).
        note: what the data are good for, and how a single volume was divided.
        intensity: the rule that makes 0-255.
        axis: ``"axial"``, ``"coronal"``, ``"sagittal"``, ``"auto"`` where it differs between
            cases, None for pictures.
        reader, table, parts: what reads the files, maps their values, divides the cases.
        empty_slices, slice_step: policy of ``slices("train")``.
        seed: chooses the empty slices that are kept.
        cache_dir: folder for prepared volumes, memory-mapped; None: memory only.
        card: the card, where the name is one.
        tiling: how pictures are cut into tiles, which then are their slices; None: not at all.
        shown_names: by the name of a case, the pseudonym by which everything else knows it; empty
            where cases go by their own names.
        partial: which classes and slices are annotated; None: all of them.
        volumes: volumes in memory: those that the checks read, then prepared ones.
    """

    name: str
    classes: list[str]
    cases: list[Case]
    findings: list[Finding]
    left_out: list[str]
    note: str
    intensity: IntensityRule
    axis: str | None
    reader: Reader = field(repr=False)
    table: ClassTable = field(repr=False)
    parts: Splits = field(repr=False)
    empty_slices: str | float = "drop"
    slice_step: int = 1
    seed: int = 0
    cache_dir: Path | None = None
    card: Card | None = None
    tiling: Tiling | None = None
    shown_names: Mapping[str, str] = field(default_factory=dict, repr=False)
    partial: Annotated | None = None
    volumes: VolumeCache = field(default_factory=VolumeCache, repr=False)

    def __post_init__(self) -> None:
        """Index the cases by name."""
        self._by_name = {self.shown_names.get(case.name, case.name): case for case in self.cases}
        most = sum(case.shape[0] * case.shape[1] * _BYTES_A_PIXEL for case in self.cases)
        needed = self.tiling is not None and self.cache_dir is not None and most > MEMORY_LIMIT
        self._scratch = Scratch(self.cache_dir, most) if needed and self.cache_dir else None

    @property
    def train(self) -> list[str]:
        """Names of the training cases."""
        return self.parts.train

    @property
    def val(self) -> list[str]:
        """Names of the validation cases."""
        return self.parts.val

    def splits(self) -> dict[str, Any]:
        """Return what ``splits.json`` records: rule, names, slices of a slab, left out, hashes."""
        return {
            **self.parts.to_dict(),
            "left_out": list(self.left_out),
            "images": {name: case.digest for name, case in self._by_name.items()},
            "labels": {name: self._truth_digest(name) for name in self._by_name},
        }

    def _truth_digest(self, name: str) -> str:
        """Return the hash of the mask of a case, and of what of it counts as annotated."""
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
        """Whether a pixel may be of several classes."""
        return self.table.overlapping

    def known(self, name: str) -> Array | None:
        """Return (d, K) bool: which class is annotated in which slice, or tile; None: all are."""
        if self.partial is None:
            return None
        case = self.case(name)
        known = self.partial.known(case.name, case.shape[2], self.table)
        count = known.shape[0] if case.presence is None else len(case.presence)
        return known if len(known) == count else np.repeat(known, count, axis=0)

    def annotated(self, name: str) -> Array:
        """Return (d,) bool: whether anything of a slice, or tile, of a case is annotated."""
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
        """Return the slices of a side, and in ``left_out`` how many were not taken.

        A slice without any annotated pixel is on no side.

        Args:
            split: ``"train"`` or ``"val"``.
            empty: slices in which no class occurs: ``"drop"``, ``"keep"``, or the share (0..1)
                to keep, chosen by the seed. None: the data set's policy for ``"train"``,
                ``"keep"`` for ``"val"``, so that scores see every slice.
            step: take every such slice of each volume, from the first. None: the data set's
                for ``"train"``, 1 for ``"val"``.
        """
        if split not in ("train", "val"):
            raise ConfigError(f"split must be train or val; got {split!r}")
        if empty is None:
            empty = self.empty_slices if split == "train" else "keep"
        share = share_of(empty)
        step = step or (self.slice_step if split == "train" else 1)
        counts = {"empty": 0, "step": 0, "gap": 0}
        filled: list[SliceRef] = []
        bare: list[SliceRef] = []
        slab = self.parts.slab
        for name in getattr(self.parts, split):
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
                (filled if has_class[index] else bare).append(SliceRef(name, index))
        kept = random.Random(self.seed).sample(bare, round(share * len(bare)))
        counts["empty"] = len(bare) - len(kept)
        result = SliceList(sorted([*filled, *kept]))
        result.left_out = counts
        return result

    def classes_in(self, refs: Iterable[SliceRef]) -> list[str]:
        """Return the names of the classes that occur in some slices, or tiles."""
        found = np.zeros(len(self.classes), dtype=bool)
        for case, own in groupby(sorted(refs), key=lambda ref: ref.case):
            found |= self.presence(case)[[ref.index for ref in own]].any(axis=0)
        return [name for name, occurs in zip(self.classes, found, strict=True) if occurs]

    def volume(self, name: str) -> PreparedVolume:
        """Return a case after the intensity rule and class table, from memory where held.

        The first use takes the voxels that the checks read, while memory holds them; otherwise
        the files are read again.

        Raises:
            DataError: a file was damaged or removed after the checks; the message names it.
        """
        return self.volumes.get(name, lambda: self._prepare(self.case(name)))

    def volume_labels(self, name: str) -> Array:
        """Return the (h, w, d) int16 labels of a case; see ``Sample``."""
        return np.asarray(self.volume(name).labels, dtype=np.int16)

    def sample(self, ref: SliceRef) -> Sample:
        """Return one slice, or tile: image, labels and the prompts that annotations give."""
        volume, tile = self.volume(ref.case), self.tile(ref)
        values, instances, index = volume.image, volume.instances, ref.index
        labels = volume.labels
        if instances is not None and instances.ndim == 3:
            instances = np.ascontiguousarray(instances[:, :, index])
        if tile is not None:
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

    def tile(self, ref: SliceRef) -> Tile | None:
        """Return where a tile lies in its picture; None where pictures are not cut."""
        if self.tiling is None:
            return None
        height, width, _ = self.case(ref.case).shape
        return self.tiling.tiles(height, width)[ref.index]

    def samples(self, name: str) -> list[Sample]:
        """Return all slices, or tiles, of a case."""
        return [self.sample(SliceRef(name, index)) for index in range(len(self.presence(name)))]

    def _with_prompts(self, sample: Sample, given: Annotation) -> Sample:
        """Add the prompts that were given, without those of classes that are not used."""
        boxes, points, point_labels = given.boxes, given.points, given.point_labels
        ids = None
        if given.labels is None and self.overlapping:
            raise DataError(
                f"{sample.case}: its prompts name no classes, and a pixel may be of several; name "
                "the class of each in the annotation, or leave data.regions out"
            )
        if given.labels is not None:
            ids = np.array([self.table.id_of(label) for label in given.labels], dtype=np.int64)
            used = ids > 0
            ids = ids[used]
            if boxes is not None:
                boxes = boxes[used]
            elif points is not None and point_labels is not None:
                points, point_labels = points[used], point_labels[used]
            if not used.any():
                return sample
        if sample.tile is not None:
            if ids is None:  # of the whole picture: a tile may see a corner of the box alone
                ids = classes_under(boxes, points, point_labels, self.volume(sample.case).labels)
            boxes, points, point_labels, ids = sample.tile.annotation(
                boxes, points, point_labels, ids
            )
        return replace(
            sample, boxes=boxes, points=points, point_labels=point_labels, prompt_classes=ids
        )

    def _prepare(self, case: Case) -> PreparedVolume:
        if self.cache_dir is None or case.axis is None or self.reader.options.masks.instances:
            read = self._read(case)
            image, labels = self._arrays(case, read)
            instances = read.instances
            if self._scratch is not None:
                image, labels = self._scratch.put(image), self._scratch.put(labels)
                instances = None if instances is None else self._scratch.put(instances)
            return PreparedVolume(
                image, labels, read.is_color, read.spacing_mm, read.annotation, instances
            )
        files = [*(case.files or (case.image,)), *([case.labels] if case.labels else [])]
        stats = [path.stat() for path in files]
        stamps = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
        stamp = stamps[0] if not case.files else (len(stamps), *map(max, zip(*stamps, strict=True)))
        key = repr((case, case.files, *stamp, self.intensity, self.table))
        image, labels = stored_arrays(
            self.cache_dir, key, lambda: self._arrays(case, self._read(case))
        )
        self.volumes.take_checked(case.name)  # the files on the disk stand for it from now on
        return PreparedVolume(image, labels, spacing_mm=case.spacing_mm)

    def _read(self, case: Case) -> Volume:
        """Return a case as the checks read it; read its files again if memory holds it no more."""
        checked = self.volumes.take_checked(case.name)
        return self.reader.read(case) if checked is None else checked

    def _arrays(self, case: Case, read: Volume) -> tuple[Array, Array]:
        if read.labels is None:
            raise DataError(f"{self.name}: a volume without labels cannot be trained on")
        labels = self.table.remap(read.labels)
        try:
            image = self.intensity(read)
        except DataError as error:
            raise DataError(f"{case.image}: {error}") from error
        return image, labels.astype(_label_type(self.table), copy=False)


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
    channel: Channel | Sequence[Channel] | None = None,
    image: str | None = None,
    label: str | None = None,
    split: Mapping[str, Any] | None = None,
    neighbours: int = 0,
    patient: str | None = None,
    tile: int | None = None,
    tile_overlap: float = OVERLAP,
    stack: int = 1,
    spacing: str | None = None,
    instances: bool = False,
    mask_threshold: float | None = None,
    series: str | None = None,
    exif: str | None = None,
    background: str | Sequence[str] | None = None,
    input_channels: int | None = None,
) -> Dataset:
    """Open a data set: find its cases, read and check each file once, divide them.

    Args:
        name: a card (``datasets/<name>.yaml``) or a reader (``nifti``, ``folder`` …).
        root: the data set's folder; None: what the card says, downloaded if need be.
        axis: ``"axial"``, ``"coronal"``, ``"sagittal"``, 0 (sagittal), 1, 2 or ``"auto"``: the
            axis with the largest spacing, axial where they are equal. None: the card's, or auto.
        intensity: see ``intensity.py``; None or ``"auto"``: the card's, or by modality.
        classes: see ``classes.make_table``; None: those that the data set declares.
        merge_classes: all listed classes as one, ``foreground``.
        ignore: mask value or values whose pixels have no loss and no score; None: those that the
            data set declares.
        annotated: CSV or JSON file that lists what is annotated; see ``annotated.py``.
        regions: classes that may overlap, ``{name: value or [values]}``, instead of ``classes``;
            None: those that the data set declares.
        empty_slices: ``"drop"``, ``"keep"`` or the share kept of training slices without a class.
        slice_step: train on every such slice.
        val_every: every such case, by name and from the first, is validation.
        fold: hold out this fold of a cross-validation instead; see ``splits.py``.
        folds: how many folds there are.
        max_cases: read only the first of the sorted cases.
        on_error: ``"stop"``: any error finding ends it; ``"skip"``: leave those cases out.
        seed: chooses the empty slices that are kept.
        cache_dir: keep prepared volumes there instead of reading them again. Pictures that are
            cut into tiles lie there uncompressed as long as the program runs, if they may take
            more than ``MEMORY_LIMIT``.
        channel: index or name of the channel of multi-channel images, or up to three of them,
            which become red, green and blue; see ``channels.py``.
        image: file name or pattern of the images; see ``volume_patterns.py``.
        label: file name or pattern of the masks.
        split: ``{"val": [names]}`` or a slab; see ``splits.py``. None: the card's.
        neighbours: distance in slices of those that fill red and blue; 0: none.
        patient: pattern over case names whose group names the patient; see ``leaks.py``.
        tile: cut pictures into tiles of so many pixels a side; see ``tiles.py``. None or 0: whole.
        tile_overlap: of neighbouring tiles, at least this share of the side.
        stack: slices that the encoder sees together; none of one stack is on both sides.
        spacing: ``"affine"`` or ``"pixdim"``: which is true where a NIfTI header contradicts
            itself; None: such a file is an error.
        instances: each number of a mask is one object of one class.
        mask_threshold: values of a mask from here on are foreground, lower ones background.
        series: which of several DICOM series in a folder is used; see ``dicom/series_choice.py``.
        exif: ``"apply"`` or ``"ignore"``; see ``orientation.py``.
        background: the colour of the masks' background, or colours; see ``colours.py``.
        input_channels: of a model that takes more than three (``Sam.add_input_projection``).

    Raises:
        ConfigError: an unknown name, option or class.
        DataError: the data set has errors; the message lists the first twenty.
        DownloadError: a card's data set could not be fetched.
    """
    check_options(on_error, slice_step, empty_slices)
    check_channels(channel, input_channels)
    if patient is not None:
        patient_pattern(patient)
    cut = tiling(tile, tile_overlap)
    rules = (instances, mask_threshold, ignore, background, regions)
    masks = mask_rules(classes, *rules)
    given = (image, label, cut, spacing, masks, series, classes, exif)
    card, reader = open_reader(name, root, axis, channel, *given)
    volumes = VolumeCache()
    scan = reader.scan(max_cases, volumes.hold_checked)
    mark_patients(scan, patient)
    table = decide_classes(scan, card, classes, merge_classes, masks, regions)
    partial = read_annotated(annotated, root, scan, table)
    check_usable(name, scan, on_error, reader)
    rule = decide_intensity(intensity, card, scan, reader).with_neighbours(neighbours)
    check_kind(scan.cases, rule, stack, cut)
    chosen, gap = split or (card.split if card else None), rule.neighbours + stack - 1
    parts = divide(scan.cases, chosen, val_every, fold, folds, least_gap=gap)
    policy = (empty_slices, slice_step, seed, Path(cache_dir) if cache_dir else None)
    return _dataset(name, scan, table, rule, parts, reader, card, policy, cut, partial, volumes)


def _dataset(
    name: str,
    scan: Scan,
    table: ClassTable,
    rule: IntensityRule,
    parts: Splits,
    reader: Reader,
    card: Card | None,
    policy: tuple[str | float, int, int, Path | None],
    cut: Tiling | None,
    partial: Annotated | None,
    volumes: VolumeCache,
) -> Dataset:
    """Return the data set of a scan that was divided.

    Raises:
        DataError: an image is on both sides.
    """
    check_copies(name, scan, parts)
    volumes.retain_checked({case.name for case in scan.cases})
    notes = [card.note if card else "", parts.rule if parts.slab else ""]
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
        parts=parts,
        empty_slices=policy[0],
        slice_step=policy[1],
        seed=policy[2],
        cache_dir=policy[3],
        card=card,
        tiling=cut,
        partial=partial,
        volumes=volumes,
    )


def _label_type(table: ClassTable) -> type[np.integer[Any]]:
    """Return the smallest type that holds the class ids, and ``IGNORED`` where it is used."""
    if table.ignored:
        return np.int8 if len(table.parts) < 128 else np.int16
    return np.uint8 if len(table.parts) < 256 else np.int16


def _axis_name(cases: list[Case]) -> str | None:
    axes = {case.axis for case in cases}
    if axes == {None}:
        return None
    names = {index: name for name, index in AXES.items()}
    only = next(iter(axes))
    return names[only] if len(axes) == 1 and only is not None else "auto"
