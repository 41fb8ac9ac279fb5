"""Prompts that come with an image as annotations, and the ground truth of the objects they mean."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from samadapt.data.annotations import box_area, most_frequent
from samadapt.errors import DataError
from samadapt.prompts.simulate import boxes_of, objects_in, points_in
from samadapt.sam.types import ImagePrompts
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samadapt.data.types import Sample


def has_prompts(sample: Sample) -> bool:
    """Whether the sample comes with boxes or points as annotations."""
    return sample.boxes is not None or sample.points is not None


def lacks_prompts(sample: Sample) -> bool:
    """Whether the sample is a tile of an annotated picture, without any of its prompts."""
    given = sample.boxes if sample.boxes is not None else sample.points
    return given is not None and len(given) == 0


def given_prompts(sample: Sample) -> ImagePrompts:
    """Return the prompts of a sample's annotation, in pixels of the original image.

    Each box is an object, and the points that lie in a box belong to it. Without boxes, all points
    are one object, or one object for each class that they name. The class of a prompt is the one
    that it names, otherwise the most frequent class under it. The ground truth of an object are the
    components of its class that lie in the box with at least half of their pixels, or that contain
    a foreground point. Prompts of a class that is not annotated in the slice are left out.
    """
    if lacks_prompts(sample):
        none = np.zeros((0, *sample.labels.shape), dtype=bool)
        return ImagePrompts(np.zeros(0, np.int64), none, np.zeros((0, 4), np.float32))
    objects = _from_boxes(sample) if sample.boxes is not None else _from_points(sample)
    if sample.known is None:
        return objects
    # known[k - 1]: whether class k is annotated in this slice
    return objects.take(np.flatnonzero(sample.known[objects.class_ids - 1]))


def trainable_prompts(sample: Sample) -> ImagePrompts:
    """Return the annotated prompts that a model can learn from.

    In a tile these are the prompts with ground truth under them, because a tile may see only an
    empty corner of an object's box.
    """
    objects = given_prompts(sample)
    if sample.tile is None or objects.truth is None:
        return objects
    return objects.take(np.flatnonzero(objects.truth.any(axis=(1, 2))))


def with_box_and_point(objects: ImagePrompts, rng: np.random.Generator) -> ImagePrompts:
    """Return annotated objects with a box and a point each, one of which starts the rounds.

    An annotated box stays as it was drawn. The point is drawn from the ground truth; its label is
    -1 for an object without any. Without annotated boxes an object gets the box of its truth.
    """
    truth = objects.truth
    if truth is None:
        raise DataError("objects without ground truth cannot be trained on")
    exists = truth.any(axis=(1, 2))
    points = np.zeros((len(objects), 1, 2), np.float32)
    points[exists] = points_in(truth[exists], rng)
    return replace(
        objects,
        boxes=boxes_of(truth) if objects.boxes is None else objects.boxes,
        points=points,
        point_labels=np.where(exists, 1, -1)[:, None],
    )


def _from_boxes(sample: Sample) -> ImagePrompts:
    boxes = np.asarray(sample.boxes, dtype=np.float32)
    areas = [box_area(box, sample.labels.shape) for box in boxes]
    ids, truth = [], []
    for index, area in enumerate(areas):
        if sample.prompt_classes is not None:
            class_id = int(sample.prompt_classes[index])
        else:
            class_id = most_frequent(sample.labels[area])
        # A component belongs to the box if at least half of it lies in the box.
        parts = _components_of(sample, class_id)
        ids.append(class_id)
        truth.append(_union([part for part in parts if 2 * part[area].sum() >= part.sum()], sample))
    points = point_labels = None
    if sample.points is not None and sample.point_labels is not None:
        points = np.asarray(sample.points, np.float32)
        point_labels = np.asarray(sample.point_labels)
        # The right and lower sides of a box do not belong to it.
        inside = [((points >= box[:2]) & (points < box[2:])).all(axis=1) for box in boxes]
        points, point_labels = _pad([points[i] for i in inside], [point_labels[i] for i in inside])
    return ImagePrompts(
        class_ids=np.asarray(ids, dtype=np.int64),
        truth=np.stack(truth),
        boxes=boxes,
        points=points,
        point_labels=point_labels,
    )


def _from_points(sample: Sample) -> ImagePrompts:
    points = np.asarray(sample.points, dtype=np.float32)
    labels = np.asarray(sample.point_labels, dtype=np.int64)
    height, width = sample.labels.shape
    columns = np.clip(points[:, 0].astype(int), 0, width - 1)
    rows = np.clip(points[:, 1].astype(int), 0, height - 1)
    under = sample.labels[rows, columns]
    classes = sample.prompt_classes
    # Points that name the same class are one object; without names all points are one.
    owner = np.zeros(len(points), dtype=np.int64) if classes is None else np.asarray(classes)
    groups = [np.flatnonzero(owner == value) for value in np.unique(owner)]
    ids, truth = [], []
    for group in groups:
        hits = group[labels[group] == 1]
        class_id = most_frequent(under[hits]) if classes is None else int(owner[group[0]])
        parts = _components_of(sample, class_id)
        ids.append(class_id)
        truth.append(_union([p for p in parts if p[rows[hits], columns[hits]].any()], sample))
    padded, padded_labels = _pad([points[g] for g in groups], [labels[g] for g in groups])
    return ImagePrompts(
        class_ids=np.asarray(ids, dtype=np.int64),
        truth=np.stack(truth),
        points=padded,
        point_labels=padded_labels,
    )


def _pad(points: list[Array], labels: list[Array]) -> tuple[Array, Array]:
    """Stack lists of points; pad the shorter ones with points of label -1."""
    most = max(1, *(len(group) for group in points))
    stacked = np.zeros((len(points), most, 2), dtype=np.float32)
    marks = np.full((len(points), most), -1, dtype=np.int64)
    for i, (group, mark) in enumerate(zip(points, labels, strict=True)):
        stacked[i, : len(group)], marks[i, : len(group)] = group, mark
    return stacked, marks


def _components_of(sample: Sample, class_id: int) -> Array:
    """Return the connected components (p, h, w) of a class."""
    _, parts = objects_in(sample.mask_of(class_id).astype(np.int64), "component")
    return parts


def _union(parts: Sequence[Array], sample: Sample) -> Array:
    """Return the union (h, w) of masks; empty if there are none."""
    return np.logical_or.reduce(parts) if parts else np.zeros(sample.labels.shape, dtype=bool)
