"""Whether a resumed run finds the data that it was started with.

A run that goes on with other cases would divide them anew: a case that was trained on could become
held out, and be scored as if the model had never seen it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samadapt.data.dataset import Dataset
from samadapt.errors import DataError

_MOST_NAMES = 5


def check_unchanged(
    recorded: Mapping[str, Any], dataset: Dataset, origin: str, *, same_sides: bool = True
) -> list[str]:
    """Compare a data set with what ``splits.json`` recorded of it when the run was started.

    Args:
        recorded: the content of ``splits.json``.
        dataset: as it is read now.
        origin: the file, for messages.
        same_sides: whether each case must also be on the side where it was; another fold of a
            cross-validation holds out others.

    Returns:
        Warnings: what could not be compared.

    Raises:
        DataError: naming the cases that were added, removed, renamed or changed.
    """
    train, val = _names(recorded, "train", origin), _names(recorded, "val", origin)
    images, labels = _hashes(recorded, "images", origin), _hashes(recorded, "labels", origin)
    found = dataset.splits()
    truth = "with another mask" + (", or annotated otherwise" if dataset.partial else "")
    differences = _differences({*train, *val}, images, labels, found, truth)
    if not differences and same_sides:
        differences = _moved(recorded, found)
    if differences:
        raise DataError(
            f"{origin}: the data are not those that the run was started with: "
            f"{'; '.join(differences)}. A case that was trained on could be scored as unseen. Put "
            "the files back as they were, or start a new run"
        )
    if images is None:
        warning = f"{origin}: was written by an earlier version, without hashes of the images; "
        warning += "cases were compared by name alone: a file that was replaced goes unseen"
        return [warning]
    return []


def merge_trained_on(
    before: Mapping[str, list[int] | None] | None, now: Mapping[str, list[int] | None]
) -> dict[str, list[int] | None]:
    """Return the images of two records of what was trained on; it never shrinks.

    Args:
        before: the hash of each image with its slices, None for all of them; or None: not known.
        now: likewise.
    """
    merged = dict(now)
    for digest, slices in (before or {}).items():
        if digest not in merged:
            merged[digest] = slices
        elif slices is None or (other := merged[digest]) is None:
            merged[digest] = None
        else:
            merged[digest] = sorted({*slices, *other})
    return merged


def _differences(
    names: set[str],
    images: Mapping[str, str] | None,
    labels: Mapping[str, str] | None,
    found: Mapping[str, Any],
    truth: str,
) -> list[str]:
    now_images, now_labels = found["images"], found["labels"]
    added, removed = sorted(set(now_images) - names), sorted(names - set(now_images))
    renamed = []
    for old in list(removed):
        same = [new for new in added if images and images.get(old) == now_images[new]]
        if same:
            renamed.append(f"{old} is now {same[0]}")
            removed.remove(old)
            added.remove(same[0])
    both = sorted(names & set(now_images))
    changed = [name for name in both if images and images.get(name) != now_images[name]]
    masks = [name for name in both if labels and labels.get(name) != now_labels[name]]
    kinds = {
        "added": added,
        "removed": removed,
        "renamed": renamed,
        "with another image": changed,
        truth: [name for name in masks if name not in changed],
    }
    return [f"{len(listed)} {kind} ({_list(listed)})" for kind, listed in kinds.items() if listed]


def _moved(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Name the cases or slices that would change sides: patients or masks are marked otherwise."""
    moved = sorted(set(recorded["train"]) ^ set(found["train"]))
    moved = sorted({*moved, *(set(recorded["val"]) ^ set(found["val"]))})
    if moved:
        return [f"{len(moved)} on the other side of the split ({_list(moved)})"]
    if recorded.get("slices") != found.get("slices"):
        return ["other slices of the volume are held out"]
    return []


def _names(recorded: Mapping[str, Any], key: str, origin: str) -> list[str]:
    names = recorded.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{origin}: {key} must be a list of case names; restore the file")
    return names


def _hashes(recorded: Mapping[str, Any], key: str, origin: str) -> dict[str, str] | None:
    hashes = recorded.get(key)
    if hashes is None:
        return None
    if not isinstance(hashes, dict) or not all(isinstance(x, str) for x in hashes.values()):
        raise DataError(f"{origin}: {key} must map case names to hashes; restore the file")
    return hashes


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
