"""``eval.keep_largest``: of which classes a prediction keeps only the largest component.

Most organs are one piece, and a network without prompts marks specks far from them. Whether a class
is one piece is read off the training volumes, as nnU-Net decides it from data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from samadapt.errors import ConfigError, nearest

if TYPE_CHECKING:
    from samadapt.data.dataset import Dataset

FEWEST_VOLUMES = 3
"""Training volumes that are needed to call a class one piece."""


def kept_classes(wanted: Literal["auto"] | Sequence[str] | None, dataset: Dataset) -> list[str]:
    """Return the classes of which only the largest component is kept.

    Args:
        wanted: ``eval.keep_largest``.
        dataset: its training volumes decide for ``auto``.

    Raises:
        ConfigError: a class is named that the data set does not have.
    """
    if wanted is None:
        return []
    if wanted == "auto":
        return classes_of_one_piece(dataset)
    for name in wanted:
        if name not in dataset.classes:
            raise ConfigError(
                f"eval.keep_largest: expected classes of the data set, "
                f"{', '.join(dataset.classes)}; got {name!r}{nearest(name, dataset.classes)}"
            )
    return list(wanted)


def classes_of_one_piece(dataset: Dataset) -> list[str]:
    """Return the classes with one 3D component in every training volume that has them.

    Pictures, a single volume of which a part is held out, and fewer than ``FEWEST_VOLUMES`` volumes
    give none: a picture shows any number of objects, and two volumes say little.
    """
    from scipy.ndimage import label

    volumes = [name for name in dataset.train if dataset.case(name).shape[2] > 1]
    if len(volumes) < len(dataset.train) or dataset.case_splits.slab is not None:
        return []
    seen = dict.fromkeys(dataset.classes, 0)
    touching = np.ones((3, 3, 3), dtype=bool)  # components touch at faces, edges or corners
    for name in volumes:
        truth = np.stack([sample.truth for sample in dataset.samples(name)], axis=-1)
        for class_id, class_name in enumerate(dataset.classes, start=1):
            own = truth == class_id if truth.ndim == 3 else truth[class_id - 1] == 1
            count = label(own, structure=touching)[1]
            if count > 1:
                seen.pop(class_name, None)
            elif count and class_name in seen:
                seen[class_name] += 1
    return [name for name, count in seen.items() if count >= FEWEST_VOLUMES]
