"""Prompts that a person gave with an image, with the ground truth of the object they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.data.annotations import box_area, most_frequent
from samadapt.prompts.simulate import objects_in
from samadapt.sam.types import ImagePrompts
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from samadapt.data.types import Sample


def has_prompts(sample: Sample) -> bool:
    """Whether the sample came with boxes or points of its own."""
    return sample.boxes is not None or sample.points is not None


def lacks_prompts(sample: Sample) -> bool:
    """Whether the sample is a tile of a picture that came with prompts, none of them here."""
    given = sample.boxes if sample.boxes is not None else sample.points
    return given is not None and len(given) == 0


def given_prompts(sample: Sample) -> ImagePrompts:
    """Return the prompts of a sample's annotation, in pixels of the original image.

    Each box is an object; points that lie in a box go with it. Without boxes the points are one
    object, or one for each class that they name. The class of a prompt is the one it names, else
    the one most frequent under it. Its mask is made of the components of that class of which at
    least half lies in the box, or which hold a foreground point. Prompts of a class that is not
    annotated in the slice are left out.
    """
    if lacks_prompts(sample):
        none = np.zeros((0, *sample.labels.shape), dtype=bool)
        return ImagePrompts(np.zeros(0, np.int64), none, np.zeros((0, 4), np.float32))
    objects = _from_boxes(sample) if sample.boxes is not None else _from_points(sample)
    if sample.known is None:
        return objects
    return objects.take(np.flatnonzero(sample.known[objects.class_ids - 1]))


def trainable_prompts(sample: Sample) -> ImagePrompts:
    """Return the given prompts that a model can learn from.

    In a tile these are the ones with something under them: what is seen of an object may be a
    corner of its box.
    """
    objects = given_prompts(sample)
    if sample.tile is None or objects.truth is None:
        return objects
    return objects.take(np.flatnonzero(objects.truth.any(axis=(1, 2))))


def _from_boxes(sample: Sample) -> ImagePrompts:
    boxes = np.asarray(sample.boxes, dtype=np.float32)
    areas = [box_area(box, sample.labels.shape) for box in boxes]
    ids = [
        int(sample.prompt_classes[i])
        if sample.prompt_classes is not None
        else most_frequent(sample.labels[area])
        for i, area in enumerate(areas)
    ]
    masks = [
        _components(sample, class_id, lambda part, area=area: 2 * part[area].sum() >= part.sum())
        for class_id, area in zip(ids, areas, strict=True)
    ]
    points, point_labels = _points_in_boxes(sample, boxes)
    return ImagePrompts(
        np.asarray(ids, dtype=np.int64), np.stack(masks), boxes, points, point_labels
    )


def _from_points(sample: Sample) -> ImagePrompts:
    points = np.asarray(sample.points, dtype=np.float32)
    labels = np.asarray(sample.point_labels, dtype=np.int64)
    height, width = sample.labels.shape
    columns = np.clip(points[:, 0].astype(int), 0, width - 1)
    rows = np.clip(points[:, 1].astype(int), 0, height - 1)
    under = sample.labels[rows, columns]
    classes = sample.prompt_classes
    owner = np.zeros(len(points), dtype=np.int64) if classes is None else np.asarray(classes)
    groups = [np.flatnonzero(owner == value) for value in np.unique(owner)]
    ids = [
        int(owner[group[0]])
        if classes is not None
        else most_frequent(under[group][labels[group] == 1])
        for group in groups
    ]
    masks = []
    for group, class_id in zip(groups, ids, strict=True):
        hits = group[labels[group] == 1]
        masks.append(
            _components(
                sample,
                class_id,
                lambda part, hits=hits: part[rows[hits], columns[hits]].any(),
            )
        )
    padded, padded_labels = _pad([points[g] for g in groups], [labels[g] for g in groups])
    return ImagePrompts(
        np.asarray(ids, dtype=np.int64), np.stack(masks), None, padded, padded_labels
    )


def _points_in_boxes(sample: Sample, boxes: Array) -> tuple[Array | None, Array | None]:
    if sample.points is None or sample.point_labels is None:
        return None, None
    points, labels = np.asarray(sample.points, np.float32), np.asarray(sample.point_labels)
    inside = [((points >= box[:2]) & (points < box[2:])).all(axis=1) for box in boxes]
    return _pad([points[hit] for hit in inside], [labels[hit] for hit in inside])


def _pad(points: list[Array], labels: list[Array]) -> tuple[Array, Array]:
    """Stack lists of points, the shorter ones padded with label -1."""
    most = max(1, *(len(group) for group in points))
    stacked = np.zeros((len(points), most, 2), dtype=np.float32)
    marks = np.full((len(points), most), -1, dtype=np.int64)
    for i, (group, mark) in enumerate(zip(points, labels, strict=True)):
        stacked[i, : len(group)], marks[i, : len(group)] = group, mark
    return stacked, marks


def _components(sample: Sample, class_id: int, keep: Any) -> Array:
    _, parts = objects_in(sample.mask_of(class_id).astype(np.int64), "component")
    kept = [part for part in parts if keep(part)]
    return np.logical_or.reduce(kept) if kept else np.zeros(sample.labels.shape, dtype=bool)
