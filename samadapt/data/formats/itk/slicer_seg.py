"""Read the segmentations of 3D Slicer (``.seg.nrrd``) as masks.

They differ from other masks in three ways:

- Segments have names. The header gives the name, layer and value of each segment.
- Segments that overlap are stored in layers, which are a first axis of kind ``list``.
- Slicer stores only the extent that the segments fill, which is often smaller than the image. The
  grid of the file says where it lies.

See https://slicer.readthedocs.io/en/latest/user_guide/modules/segmentations.html
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samadapt.data.channels import mask_with_channels
from samadapt.data.findings import fault
from samadapt.data.formats.shared.stored_volume import SAME_PLACE, StoredVolume, with_axes_of
from samadapt.system.arrays import Array

ENDINGS = (".seg.nrrd", ".seg.nhdr")
_KEY = re.compile(r"Segment(\d{1,6})_(Name|LabelValue|Layer):=(.*)")
_LONGEST_HEADER = 1 << 22
"""Bytes of a header that are read; the text of hundreds of segments has less than 1 MB."""
_SEPARATE = (
    "separate them in Slicer's Segment Editor (Masking, Modify other segments: Overwrite all) and "
    "save again"
)
_CHOOSE = f"choose segments that do not overlap with data.classes=[NAME], or {_SEPARATE}"


@dataclass(frozen=True)
class SlicerSegment:
    """One segment of a file.

    Attributes:
        name: as its user wrote it.
        value: the value of its voxels in its layer.
        layer: the index of the layer that holds it.
    """

    name: str
    value: int
    layer: int


def read_segments(path: Path) -> list[SlicerSegment]:
    """Return the segments that a NRRD header names; none for other files."""
    fields: dict[int, dict[str, str]] = defaultdict(dict)
    try:
        with path.open("rb") as file:
            if file.read(4) != b"NRRD":
                return []
            head = file.read(_LONGEST_HEADER).replace(b"\r\n", b"\n").split(b"\n\n", 1)[0]
    except OSError:
        return []  # the reader reports what is wrong with the file
    for line in head.decode("utf-8", errors="replace").splitlines():
        if found := _KEY.fullmatch(line.strip()):
            fields[int(found[1])][found[2]] = found[3].strip()
    segments = []
    for index, field in sorted(fields.items()):
        if "Name" in field:
            # Before Slicer 4.11 each segment had a layer of its own, with the value 1.
            value, layer = field.get("LabelValue", "1"), field.get("Layer", str(index))
            if value.isdigit() and layer.isdigit():
                segments.append(SlicerSegment(field["Name"], int(value), int(layer)))
    return segments


def number_segments(
    files: Mapping[Path, Sequence[SlicerSegment]], declared: Mapping[str, Sequence[int]] | None
) -> dict[str, int] | None:
    """Return one label value for each segment name, the same in every file.

    Args:
        files: the segments of each mask; empty for a file that names none.
        declared: values of the classes of ``dataset.json``.

    Returns:
        The values of ``declared`` where it knows all names; else those of the files where they
        agree; else numbers in the order of the names. None where some files have no names, so that
        other numbers would be ambiguous.
    """
    pairs = {(one.name, one.value) for segments in files.values() for one in segments}
    names = sorted({name for name, _ in pairs})
    if declared is not None and set(names) <= set(declared):
        return {name: int(declared[name][0]) for name in names}
    if len(pairs) == len(names) == len({value for _, value in pairs}):  # one to one
        return dict(sorted(pairs, key=lambda pair: pair[1]))
    if not all(files.values()):
        return None
    return {name: index for index, name in enumerate(names, start=1)}


def label_map(
    path: Path, layers: Array, segments: Sequence[SlicerSegment], values: Mapping[str, int] | None
) -> Array:
    """Return one label value for each voxel, (x, y, z).

    Args:
        path: the file, for the messages.
        layers: (x, y, z, layer) as stored.
        segments: the segments that the header names; if it names none, the stored values are the
            labels.
        values: label value of each segment that is used, by name; None: no numbering fits all
            files.

    Raises:
        FindingError: segments that are used overlap, a value has no segment, or the label values
            are ambiguous.
    """
    if not segments:
        if layers.shape[3] > 1:
            raise mask_with_channels(path, layers.shape[3])
        return np.asarray(layers[..., 0])
    _check_values(path, layers, segments)
    labels = np.zeros(layers.shape[:3], dtype=np.int32)
    owners: dict[int, str] = {}
    for number, segment in enumerate(segments, start=1):
        if values is not None and segment.name not in values:
            continue
        mask = layers[..., segment.layer] == segment.value
        taken = labels[mask]
        if taken.any():
            other = owners[int(taken[taken != 0][0])]
            message = (
                f"its segments {other!r} and {segment.name!r} overlap in "
                f"{np.count_nonzero(taken)} voxels (layers of a segmentation)"
            )
            raise fault(
                "overlapping_segments", path, message, _SEPARATE if values is None else _CHOOSE
            )
        value = number if values is None else values[segment.name]
        labels[mask], owners[value] = value, segment.name
    if values is None:
        message = "its segments have names and layers, and other masks have values without a name"
        raise fault("mixed_labels", path, message, "save all masks as segmentations, or none")
    return labels


def placed(path: Path, mask: StoredVolume, image: StoredVolume) -> StoredVolume:
    """Return a mask that covers a part of its image on the grid of the whole image.

    Voxels outside of the part are 0. If the voxels of the mask are not voxels of the image, the
    mask is returned unchanged; the comparison of the grids reports it later.

    Args:
        path: the mask, for the messages.
        mask: as stored, labels (x, y, z).
        image: the image.

    Raises:
        FindingError: voxels with a label lie outside the image.
    """
    mask = with_axes_of(mask, image.affine)
    relative = np.linalg.inv(image.affine) @ mask.affine  # mask voxel to image voxel
    shape, whole = np.array(mask.values.shape), np.array(image.values.shape[:3])
    start = np.rint(relative[:3, 3]).astype(int)
    # The largest distance of a voxel of the mask from the voxel of the image that it stands for.
    drift = np.abs(relative[:3, :3] - np.eye(3)) @ shape + np.abs(relative[:3, 3] - start)
    if drift.max() > SAME_PLACE:
        return mask
    # The part of the image that the mask covers, and the part of the mask that lies in the image.
    low, high = np.clip(start, 0, whole), np.clip(start + shape, 0, whole)
    inside = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
    kept = mask.values[inside]
    outside = np.count_nonzero(mask.values) - np.count_nonzero(kept)
    if outside:
        message = f"{outside} voxels of its segments lie outside the image"
        raise fault("grid_mismatch", path, message, "check that it belongs to this image")
    values = np.zeros(whole, dtype=mask.values.dtype)
    values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = kept
    return StoredVolume(values, image.affine, findings=mask.findings)


def _check_values(path: Path, layers: Array, segments: Sequence[SlicerSegment]) -> None:
    """Refuse segments in layers that do not exist, and values that no segment has."""
    count = layers.shape[3]
    for segment in segments:
        if segment.layer >= count:
            message = (
                f"its segment {segment.name!r} is in layer {segment.layer}; it has {count} layers"
            )
            raise fault("bad_segmentation", path, message, "save it again in Slicer")
    for layer in range(count):
        known = {0, *(one.value for one in segments if one.layer == layer)}
        unknown = sorted(set(np.unique(layers[..., layer]).tolist()) - known)
        if unknown:
            message = f"its layer {layer} holds the value {unknown[0]:g}, which no segment has"
            raise fault("bad_segmentation", path, message, "save it again in Slicer")
