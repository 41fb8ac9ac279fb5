"""What may be done to a label map afterwards: the largest component, then holes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samadapt.system.arrays import Array


def postprocess(labels: Array, keep_largest: Sequence[int], fill_holes: Sequence[int]) -> None:
    """Change a label map in place: first components are dropped, then holes filled.

    In this order an island inside a hole is gone before the hole is filled. Components touch at
    faces, edges or corners (26 neighbours, 8 in a picture); a hole is background that no path
    through faces (6 neighbours, 4) joins to the outside. So a volume's holes are cavities: a
    tunnel through all slices stays.

    Args:
        labels: (h, w, d) class ids; d = 1 is a picture.
        keep_largest: classes of which only the component with the most voxels stays (of equal
            ones the first).
        fill_holes: classes of which holes become the class; other classes in them stay.
    """
    from scipy.ndimage import binary_fill_holes, find_objects, label

    space = labels[:, :, 0] if labels.shape[2] == 1 else labels
    everywhere = np.ones((3,) * space.ndim, dtype=bool)
    # cropped to each class: the numbers of components take four bytes a voxel
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
