"""Computing all scores of predicted label maps: many small volumes, and one large CT."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Call, Comparison
from samadapt.evaluation.case_scores import score_case, summarise
from samadapt.evaluation.comparison import compare_states
from samadapt.system.arrays import Array

HIPPOCAMPI = Path(__file__).parents[2] / "shared" / "data" / "msd_hippocampus" / "labelsTr"
"""Label maps of the Medical Segmentation Decathlon; where they are missing, ellipsoids are used."""

Pair = tuple[Array, Array]
HALVES = ("anterior", "posterior")


def rows() -> Iterator[Comparison]:
    """Yield 200 hippocampi with two classes, and a CT of 512 x 512 x 300 voxels with ten."""
    yield hippocampus_row(200)
    yield ct_row((512, 512, 300))


def hippocampus_row(count: int) -> Comparison:
    """Build the row of volumes with two classes; predictions are the truth, moved and thinned."""
    name = f"{count} hippocampi, 2 classes, all scores, intervals and comparison"
    pairs = [spoil(truth) for truth in hippocampi(count)]
    contenders = {
        "samadapt": lambda: scores_of(pairs),
        "surface-distance, HD95 and NSD alone": lambda: peer_of(pairs),
    }
    return Comparison(name, contenders, reference="surface-distance, HD95 and NSD alone")


def ct_row(shape: tuple[int, int, int]) -> Comparison:
    """Build the row of one CT with ten organs of all sizes; the largest is as large as a body."""
    name = f"CT of {' x '.join(map(str, shape))}, 10 classes, all scores"
    return Comparison(name, {"samadapt": lambda: one_volume(shape)})


def scores_of(pairs: list[Pair]) -> Call:
    """Build a call that scores two states as a run does, and returns HD95 and NSD of the first."""

    def call() -> torch.Tensor:
        states = []
        for perfect in (False, True):
            rows = []
            for case, (predicted, truth) in enumerate(pairs):
                given = truth if perfect else predicted
                rows += score_case(
                    str(case), given, truth, HALVES, spacing_mm=(1.0, 1.0, 1.0), tolerance=1.0
                )
            summarise(rows, HALVES, intervals=True)
            states.append(rows)
        compare_states(states[0], states[1], HALVES)
        return torch.tensor([[row.values["hd95"], row.values["nsd"]] for row in states[0]])

    return call


def peer_of(pairs: list[Pair]) -> Call:
    """Build a call that computes the same distances with DeepMind's package."""
    import surface_distance

    def call() -> torch.Tensor:
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # raised by scipy about old names
            for predicted, truth in pairs:
                for label in (1, 2):
                    distances = surface_distance.compute_surface_distances(
                        truth == label, predicted == label, (1.0, 1.0, 1.0)
                    )
                    hd95 = surface_distance.compute_robust_hausdorff(distances, 95)
                    nsd = surface_distance.compute_surface_dice_at_tolerance(distances, 1.0)
                    found.append([float(hd95), float(nsd)])
        return torch.tensor(found)

    return call


def one_volume(shape: tuple[int, int, int]) -> Call:
    """Build a call that scores one volume once."""
    truth = organs(shape)
    predicted = np.roll(truth, (5, -7, 3), (0, 1, 2))
    names = [f"organ {k}" for k in range(1, 11)]
    return lambda: score_case("ct", predicted, truth, names, spacing_mm=(0.8, 0.8, 1.0)) and None


def hippocampi(count: int) -> list[Array]:
    """Return label volumes of two classes."""
    files = sorted(HIPPOCAMPI.glob("hippocampus_*.nii.gz"))[:count]
    if len(files) == count:
        import nibabel

        images: list[Any] = [nibabel.load(file) for file in files]
        return [np.asarray(image.dataobj).astype(np.uint8) for image in images]
    return [_halves((35, 50, 36), seed) for seed in range(count)]


def spoil(truth: Array) -> Pair:
    """Return a label map that is a voxel off and thinner in places, and the truth itself."""
    from scipy.ndimage import binary_erosion

    moved = np.roll(truth, (1, -1, 1), (0, 1, 2))
    kept = binary_erosion(moved > 0) | (np.indices(truth.shape)[0] % 8 < 5)
    return np.where(kept, moved, 0).astype(np.uint8), truth


def organs(shape: tuple[int, int, int]) -> Array:
    """Return ten ellipsoids: one fills the volume, and the others are smaller."""
    labels = np.zeros(shape, np.uint8)
    rng = np.random.default_rng(0)
    for label in range(1, 11):
        half = np.array(shape) * (0.46 if label == 1 else rng.uniform(0.05, 0.2, 3))
        centre = np.array(shape) / 2 if label == 1 else rng.uniform(half, np.array(shape) - half)
        box = tuple(slice(int(c - h), int(c + h) + 1) for c, h in zip(centre, half, strict=True))
        grid = np.ogrid[box]
        inside = sum(((g - c) / h) ** 2 for g, c, h in zip(grid, centre, half, strict=True)) < 1
        labels[box][inside] = label
    return labels


def _halves(shape: tuple[int, int, int], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    half = np.array(shape) * rng.uniform(0.15, 0.35, 3)
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    middle = [n / 2 for n in shape]
    inside = sum(((g - c) / h) ** 2 for g, c, h in zip(grid, middle, half, strict=True)) < 1
    return (inside * np.where(grid[1] < middle[1], 1, 2)).astype(np.uint8)
