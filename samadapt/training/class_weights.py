"""Weights of the classes in a loss: given by the user, or from how many pixels each class has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from samadapt.errors import ConfigError, nearest
from samadapt.system.arrays import Array

BACKGROUND = "background"


def given_weights(
    given: Sequence[float] | Mapping[str, float], classes: Sequence[str]
) -> list[float]:
    """Return K + 1 weights, that of the background first.

    Args:
        given: the weights of the K classes in order, or weights by the names of classes and of the
            background. What is not named weighs 1.
        classes: names of the K classes.

    Raises:
        ConfigError: a name is no class, or a list has another length.
    """
    if isinstance(given, Mapping):
        known = (BACKGROUND, *classes)
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"loss.class_weights: expected names among {', '.join(known)}; got {name!r}"
                    f"{nearest(name, known)}"
                )
        return [float(given.get(name, 1.0)) for name in known]
    if len(given) != len(classes):
        raise ConfigError(
            f"loss.class_weights: expected {len(classes)} numbers, one for each of "
            f"{', '.join(classes)}; got {len(given)}"
        )
    return [1.0, *map(float, given)]


def balanced_weights(truths: Iterable[Array], classes: int) -> list[float]:
    """Return K + 1 weights by which the background and each class count the same in sum.

    The weight is N / ((K + 1) n), for n of N known pixels, as scikit-learn's ``balanced``. A class
    without any pixel weighs 1.

    Args:
        truths: for each slice class ids (h, w) of 0..K and negative for ignored pixels, or planes
            (K, h, w) of 1, 0 and negative for ignored pixels.
        classes: number K of classes.
    """
    counts = np.zeros(classes + 1, np.int64)
    for truth in truths:
        if truth.ndim == 2:
            counts += np.bincount(truth[truth >= 0].astype(np.int64), minlength=classes + 1)
        else:
            counts[1:] += (truth > 0).sum(axis=(1, 2))
            # The background is what is known in some plane and lies in none.
            counts[0] += int(((truth >= 0).any(axis=0) & ~(truth > 0).any(axis=0)).sum())
    total = counts.sum()
    weights = np.where(counts > 0, total / ((classes + 1) * np.maximum(counts, 1)), 1.0)
    return [float(weight) for weight in weights]
