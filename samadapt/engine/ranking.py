"""``rank``: in which order labelling images helps most, and why.

An image helps where the model is unsure of its masks (``quality.py``) and where it shows what no
labelled image shows. Unsureness is the mean, over the measurements that were made, of the share of
the other images of which the model is surer. Novelty is the distance of an image's embedding to the
nearest labelled or earlier ranked image, as a share of the largest such distance at the start. The
next image is the one with the highest weighted sum of the two, and the distances follow: a greedy
farthest-first order (Sener and Savarese 2018), weighted by unsureness. So ten slices of one strange
volume do not fill the first ten places.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from samadapt.data.types import Volume
from samadapt.engine.proposals import Proposer
from samadapt.engine.quality import Quality, measure
from samadapt.engine.workspace import RankedImage, Workspace
from samadapt.errors import AdapterError
from samadapt.inference.segmenter import Segmenter
from samadapt.inference.volumes import Progress, SlicePictures
from samadapt.sam.embed import to_pixels
from samadapt.sam.model import Sam
from samadapt.system import atomic
from samadapt.system.arrays import Array

CSV_NAME = "ranking.csv"

MOST_SLICES = 8
"""Slices of a volume that are embedded, evenly spaced."""

COLUMNS = ("predicted_iou", "stability", "disagreement", "novelty")

WORDS = {
    "predicted_iou": "predicted IoU {value:.2f}, lower than in {share:.0%} of the others",
    "stability": "stability {value:.2f}, lower than in {share:.0%} of the others",
    "disagreement": "views disagree by {value:.3f}, more than in {share:.0%} of the others",
    "novelty": "unlike what is labelled or ranked before it ({share:.0%} of the largest distance)",
}
"""Reasons in words, by measurement."""

NOTHING = "the model finds nothing here"

STRONG = 0.5
"""Share from which on a measurement is a reason."""


def embedding_of(segmenter: Segmenter, volume: Volume) -> Array:
    """Return the mean embedding (c,) of an image at unit length.

    Args:
        segmenter: the model, whose encoder embeds the slices.
        volume: the image; of a volume ``MOST_SLICES`` slices are embedded.

    Raises:
        AdapterError: the model has no encoder of SAM.
    """
    sam = segmenter.sam
    if not isinstance(sam, Sam):
        raise AdapterError("rank compares images by SAM's embedding, and this model is a U-Net")
    pictures, depth = SlicePictures(volume, segmenter.intensity, None), volume.shape[2]
    stack = min(segmenter.stack, depth)
    count = max(1, min(MOST_SLICES, depth) // stack)
    starts = np.linspace(0, depth - stack, count).round().astype(int)
    means = []
    with segmenter.precision.autocast(sam.device), torch.no_grad():
        for start in starts:
            slices = [pictures(int(start) + k) for k in range(stack)]
            # One slice at a time, because a large picture fills the memory of a small machine.
            means.append(sam.encode(to_pixels(sam, slices)).float().mean(dim=(0, 2, 3)).cpu())
    mean = torch.stack(means).mean(dim=0).double().numpy()
    unit: Array = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return unit


def rank_images(
    workspace: Workspace,
    proposer: Proposer,
    *,
    several: bool,
    diversity: float,
    progress: Callable[[str], Progress],
) -> list[RankedImage]:
    """Rank the images of a workspace without an accepted mask.

    Args:
        workspace: the workspace.
        proposer: draws masks, of which the model is more or less sure.
        several: whether there are several views, which can disagree.
        diversity: see ``rank``.
        progress: called with the name of each image; returns what is called when it is done.
    """
    names = workspace.unlabelled()
    if proposer.how == "prompts":
        names = [name for name in names if name in proposer.prompts]
    qualities, embeddings = {}, {}
    for name in names:
        show = progress(name)
        volume = workspace.read(name)
        qualities[name] = measure(proposer, name, volume, several=several)
        embeddings[name] = embedding_of(proposer.segmenter, volume)
        show(1, 1)
    labelled = []
    for name in [name for name in workspace.index.images if name not in workspace.unlabelled()]:
        show = progress(name)
        labelled.append(embedding_of(proposer.segmenter, workspace.read(name)))
        show(1, 1)
    return rank(qualities, embeddings, labelled, diversity)


def rank(
    qualities: Mapping[str, Quality],
    embeddings: Mapping[str, Array],
    labelled: Sequence[Array],
    diversity: float,
) -> list[RankedImage]:
    """Put images in the order in which their labels help most.

    Args:
        qualities: how sure the model is of each image.
        embeddings: (c,) of the same images, at unit length.
        labelled: (c,) of the images that are labelled.
        diversity: weight of novelty, 0..1; unsureness has the rest.
    """
    names = list(qualities)
    if not names:
        return []
    shares = _shares([qualities[name] for name in names])
    unsure = np.array([np.mean(list(one.values())) if one else 0.0 for one in shares])
    vectors = np.stack([embeddings[name] for name in names])
    # Half of the squared distance of unit vectors: 0 for equal ones, 1 for orthogonal ones.
    between = 1 - vectors @ vectors.T
    if labelled:
        nearest = (1 - vectors @ np.stack(labelled).T).min(axis=1)
    else:
        nearest = 1 - vectors @ _unit(vectors.mean(axis=0))  # the most typical one is known best
    scale = max(float(nearest.max()), float(between.max()), 1e-12)
    left, ranked = list(range(len(names))), []
    while left:
        novelty = np.clip(nearest / scale, 0, 1)
        scores = (1 - diversity) * unsure + diversity * novelty
        best = max(left, key=lambda k: (scores[k], -k))
        left.remove(best)
        values = {**qualities[names[best]].values, "novelty": float(novelty[best])}
        why = _reason(qualities[names[best]], {**shares[best], "novelty": float(novelty[best])})
        ranked.append(RankedImage(names[best], float(scores[best]), why, values))
        nearest = np.minimum(nearest, between[best])
    return ranked


def _unit(vector: Array) -> Array:
    unit: Array = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return unit


def _shares(qualities: Sequence[Quality]) -> list[dict[str, float]]:
    """Return for each image and measurement the share of the others of which the model is surer."""
    shares: list[dict[str, float]] = [{} for _ in qualities]
    for name in ("predicted_iou", "stability", "disagreement"):
        values = [getattr(one, name) for one in qualities]
        if all(value is None for value in values):
            continue
        # Nothing was found: the model is less sure than of any image with a mask.
        need = np.array(
            [
                np.inf if value is None else value if name == "disagreement" else -value
                for value in values
            ]
        )
        for one, own in zip(shares, need, strict=True):
            one[name] = float((need < own).sum() / max(len(need) - 1, 1))
    return shares


def _reason(quality: Quality, shares: Mapping[str, float]) -> str:
    """Return why an image has its place: its strong measurements, or the strongest one."""
    by_share = sorted(shares, key=lambda name: -shares[name])
    strong = [name for name in by_share if shares[name] >= STRONG][:2] or by_share[:1]
    values, parts = quality.values, []
    if quality.predicted_iou is None:
        parts.append(NOTHING)
    for name in strong:
        value = values.get(name, 0.0)
        if value is not None:
            parts.append(WORDS[name].format(value=value, share=shares[name]))
    return "; ".join(parts)


def write_ranking(path: Path, ranking: Sequence[RankedImage]) -> Path:
    """Write a ranking as CSV: place, image, score, measurements, reason."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["place", "image", "score", *COLUMNS, "reason"])
    for place, one in enumerate(ranking, start=1):
        cells = [one.values.get(name) for name in COLUMNS]
        numbers = ["" if value is None else f"{value:.6g}" for value in cells]
        writer.writerow([place, one.image, f"{one.score:.6g}", *numbers, one.reason])
    return atomic.write_text(path, stream.getvalue())
