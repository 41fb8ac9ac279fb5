"""Clean up a predicted label map: keep the largest components, then fill holes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samadapt.system.arrays import Array


def postprocess(labels: Array, keep_largest: Sequence[int], fill_holes: Sequence[int]) -> None:
    """Drop small components of a label map, then fill its holes, in place.

    In this order an island inside a hole is gone before the hole is filled. Voxels of a component
    touch at faces, edges or corners (26 neighbours, 8 in a picture). A hole is background that no
    path through faces (6 neighbours, 4 in a picture) connects to the outside. The holes of a volume
    are therefore cavities, and a tunnel through all slices stays.

    Args:
        labels: (h, w, d) class ids; d = 1 for a picture.
        keep_largest: classes of which only the component with the most voxels stays, the first of
            equally large ones.
        fill_holes: classes whose holes are filled. Voxels of other classes in a hole stay.
    """
    from scipy.ndimage import binary_fill_holes, find_objects, label

    # `space` is a view: what is written to it changes `labels`.
    space = labels[:, :, 0] if labels.shape[2] == 1 else labels
    everywhere = np.ones((3,) * space.ndim, dtype=bool)
    # Each class is cropped to its box, because component numbers take four bytes per voxel.
    boxes = find_objects(space, max_label=max([0, *keep_largest, *fill_holes]))
    for class_id in keep_largest:
        if (box := boxes[class_id - 1]) is None:
            continue
        parts, count = label(space[box] == class_id, structure=everywhere)
        if count > 1:
            largest = 1 + int(np.bincount(parts.ravel())[1:].argmax())
            space[box][(parts > 0) & (parts != largest)] = 0
    for class_id in fill_holes:
        if (box := boxes[class_id - 1]) is not None:
            inside = space[box]
            holes = binary_fill_holes(inside == class_id)
            inside[holes & (inside == 0)] = class_id
