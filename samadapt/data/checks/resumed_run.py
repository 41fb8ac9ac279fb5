"""Check that a resumed run finds the same data as when it was started.

A run that continues with other cases would divide them anew. A case that was trained on could move
to the validation side and be scored as if the model had never seen it.
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
    """Compare a data set with what ``splits.json`` recorded when the run was started.

    Args:
        recorded: the content of ``splits.json``.
        dataset: as it is read now.
        origin: the file, named in messages.
        same_sides: whether each case must also be on the same side as before; another fold of a
            cross-validation holds out other cases.

    Returns:
        Warnings about what could not be compared.

    Raises:
        DataError: cases were added, removed, renamed or changed; the message names them.
    """
    train, val = _names(recorded, "train", origin), _names(recorded, "val", origin)
    # Runs that use all of their training cases record no unused ones.
    unused = _names(recorded, "unused", origin) if "unused" in recorded else []
    images, labels = _hashes(recorded, "images", origin), _hashes(recorded, "labels", origin)
    found = dataset.splits()
    truth = "with another mask" + (", or with other annotated parts" if dataset.partial else "")
    differences = _differences({*train, *val, *unused}, images, labels, found, truth)
    if not differences and same_sides:
        differences = _moved(recorded, found)
    if differences:
        raise DataError(
            f"{origin}: the data are not those that the run was started with: "
            f"{'; '.join(differences)}. A case that was trained on could be scored as unseen. "
            "Restore the files, or start a new run"
        )
    if images is None:
        warning = f"{origin}: was written by an earlier version, without hashes of the images; "
        warning += "cases were compared only by name, so a replaced file is not noticed"
        return [warning]
    return []


def merge_trained_on(
    before: Mapping[str, list[int] | None] | None, now: Mapping[str, list[int] | None]
) -> dict[str, list[int] | None]:
    """Combine two records of training images; the result contains everything of both.

    Args:
        before: maps the hash of each image to its slices, None for all slices; or None: no record.
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
        # The same voxels under another name: renamed, not removed and added.
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
    """Describe cases or slices that would change sides, because patients or masks changed."""
    # Symmetric differences: the cases that left a split or came to it.
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
