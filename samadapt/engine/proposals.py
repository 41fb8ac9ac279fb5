"""``propose``: masks for images without labels, by whichever way a model can draw them.

- ``semantic``: an adapter that was trained without prompts finds its classes.
- ``prompts``: the user's boxes and points, from a file, prompt the model.
- ``automatic``: a grid of points prompts it, and every mask is an object.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.adapters.record import sha256_of
from samadapt.adapters.store import WEIGHTS
from samadapt.data.formats.base import write_prediction
from samadapt.data.types import Volume
from samadapt.engine.workspace import MaskMaker, ProposedMask, Workspace
from samadapt.errors import AdapterError, ConfigError, DataError, UserError
from samadapt.inference.automatic import MaskFinder
from samadapt.inference.ensemble import member_directories
from samadapt.inference.mask_outputs import mask_numbers
from samadapt.inference.options import PredictionOptions, Tta
from samadapt.inference.segmenter import Segmenter
from samadapt.inference.volumes import Progress
from samadapt.system import atomic
from samadapt.system.arrays import Array
from samadapt.system.plain_yaml import read_plain_yaml

PROMPT_KEYS = (
    "boxes",
    "points",
    "point_labels",
    "scribbles",
    "scribble_labels",
    "labels",
    "propagate",
    "carry",
    "slices",
)
"""What a file of prompts may say about an image: keys of ``samadapt predict``."""

CORRECT = "correct"
"""Folder of the copies that people correct."""


@dataclass(frozen=True)
class Proposer:
    """Draws the masks of an image with a model.

    Attributes:
        segmenter: the adapter or the base model.
        how: ``"semantic"``, ``"prompts"`` or ``"automatic"``.
        prompts: the prompts of each image by name, for ``"prompts"``.
        finders: find masks without prompts, for ``"automatic"``: one for each adapter. One draws,
            and several tell how much they disagree.
        tta: test-time augmentation, for the other two.
        objects: number the objects, instead of naming classes.
        is_adapted: whether the segmenter has an adapter.
    """

    segmenter: Segmenter
    how: str
    prompts: Mapping[str, Mapping[str, Any]]
    finders: Sequence[MaskFinder]
    tta: Tta | None
    objects: bool
    is_adapted: bool

    def options_of(self, name: str, **further: Any) -> PredictionOptions:
        """Return the options of the prediction of an image, with its prompts."""
        return PredictionOptions(**self.prompts.get(name, {}), tta=self.tta, **further)

    def __call__(self, name: str, volume: Volume, progress: Progress | None = None) -> Array:
        """Return the mask (h, w, d) of an image: class numbers, or object numbers."""
        if self.finders:
            return mask_numbers(self.finders[0].in_volume(volume, progress), volume.shape)
        options = self.options_of(name)
        found = self.segmenter.segment_volume(volume, options, progress, instances=self.objects)
        mask = found.instances if self.objects else found.labels
        if mask is None:
            raise DataError(f"{name}: the model names no objects")
        return mask

    def maker(self, adapter: str | Path | Sequence[str | Path] | None) -> MaskMaker:
        """Return what the index says about the model, and about how it draws."""
        record = self.segmenter.record
        options: dict[str, Any] = {"tta": self.tta}
        if self.finders:
            options = {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in asdict(self.finders[0].options).items()
            }
        return MaskMaker(
            self.how,
            *adapters_of(adapter),
            base=record.base,
            base_sha256=record.base_sha256,
            options=options,
        )


def adapters_of(adapter: str | Path | Sequence[str | Path] | None) -> tuple[list[str], list[str]]:
    """Return the directories of adapters, and the sha256 of the weights of each.

    Raises:
        AdapterError: one of them is no adapter.
    """
    folders = [] if adapter is None else member_directories(adapter)
    for folder in folders:
        if not (folder / WEIGHTS).is_file():
            raise AdapterError(f"{folder}: expected an adapter directory; it has no {WEIGHTS}")
    digests = [sha256_of(folder / WEIGHTS) for folder in folders]
    return [str(folder.resolve()) for folder in folders], digests


def make_proposer(
    segmenter: Segmenter,
    *,
    prompts: Mapping[str, Mapping[str, Any]] | None,
    find: Callable[[], Sequence[MaskFinder]],
    tta: Tta | None,
    is_adapted: bool,
    objects: bool | None,
) -> Proposer:
    """Choose how a model draws masks.

    Args:
        segmenter: the adapter or the base model.
        prompts: the prompts of each image; None: the model finds its masks by itself.
        find: returns what finds masks without prompts, if the model finds no classes.
        tta: test-time augmentation.
        is_adapted: whether the segmenter has an adapter.
        objects: what the masks of the workspace hold; None: what fits the way.

    Raises:
        AdapterError: the model cannot draw such masks.
    """
    record = segmenter.record
    if record.overlapping:
        raise AdapterError(
            "the data engine keeps one mask an image, and the classes of this adapter overlap "
            "(data.regions); use one that was trained with data.classes"
        )
    finds_classes = segmenter.policy.finds_classes
    how = "prompts" if prompts is not None else "semantic" if finds_classes else "automatic"
    if objects is None:
        objects = how == "automatic"
    if how == "automatic" and not objects:
        raise AdapterError(
            "masks without prompts number objects, and the masks of this workspace hold class "
            "numbers. Give prompts=FILE, use an adapter that was trained with prompts=semantic, or "
            "begin a workspace with objects=true"
        )
    finders = find() if how == "automatic" else []
    return Proposer(segmenter, how, prompts or {}, finders, tta, objects, is_adapted)


def read_prompts(path: Path) -> dict[str, dict[str, Any]]:
    """Read the prompts of images from a YAML or JSON file.

    ::

        case_01: {boxes: {12: [[30, 40, 60, 70]]}, propagate: true}
        case_02: {points: [[[120, 80]], [[30, 44]]], labels: [liver, spleen]}

    Raises:
        ConfigError: the file is broken, or has a key that is not one of a prompt.
    """
    content = read_plain_yaml(path)
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise ConfigError(
            f"prompts={path}: expected the name of an image and its prompts in each line, such as "
            "case_01: {boxes: [[10, 20, 90, 80]]}"
        )
    prompts = {}
    for name, entry in content.items():
        for key in entry:
            if key not in PROMPT_KEYS:
                known = ", ".join(PROMPT_KEYS)
                raise ConfigError(f"prompts={path}: {name}: expected keys of {known}; got {key!r}")
        prompts[str(name)] = {key: _by_slice(value) for key, value in entry.items()}
    return prompts


def _by_slice(value: Any) -> Any:
    """Return prompts by slice with whole numbers as keys; JSON has text there."""
    if not isinstance(value, dict):
        return value
    return {int(k) if str(k).isdigit() else k: v for k, v in value.items()}


def check_workspace(workspace: Workspace, proposer: Proposer) -> None:
    """Refuse a model whose masks mean something else than those of the workspace.

    Raises:
        AdapterError: naming both.
    """
    workspace.check_reading(proposer.segmenter.reader_options(proposer.options_of("")))
    index, classes = workspace.index, proposer.segmenter.classes
    if proposer.how == "automatic" or index.objects:
        return
    if len(index.classes) == 1 and not proposer.is_adapted:
        return  # a base model draws what it is prompted with, whatever that is called
    if list(classes) != list(index.classes):
        raise AdapterError(
            f"the model draws {', '.join(classes)}, and the masks of the workspace hold "
            f"{', '.join(index.classes)}. Use a model of these classes, or begin a new workspace"
        )


def wanted_images(
    workspace: Workspace, proposer: Proposer, maker: MaskMaker, names: Sequence[str] | None
) -> list[str]:
    """Return the images that need a proposal of a model.

    Args:
        workspace: the workspace.
        proposer: draws the masks.
        maker: what the index says about it.
        names: images that the user names; None: all without an accepted mask.

    Returns:
        Those that have no proposal of the same model yet; with prompts only those that have some.
    """
    asked = workspace.unlabelled() if names is None else workspace.named(names)
    if proposer.how == "prompts":
        workspace.named(list(proposer.prompts))  # a misspelt name is no image without prompts
        return [name for name in asked if name in proposer.prompts]
    return [
        name
        for name in asked
        if (last := workspace.proposed(name)) is None
        or workspace.maker_of(last).identity != maker.identity
    ]


def propose(
    workspace: Workspace,
    proposer: Proposer,
    maker: MaskMaker,
    names: Sequence[str],
    progress: Callable[[str], Progress] | None = None,
) -> list[dict[str, Any]]:
    """Propose a mask for each of some images, and copy it for a person to correct.

    Args:
        workspace: the workspace.
        proposer: draws the masks.
        maker: what the index says about it.
        names: the images.
        progress: called with the name of each image; returns what is called after each slice.

    Returns:
        One row an image: ``"image"``, and ``"proposal"``, ``"correct"`` (None if a person has begun
        to correct an earlier proposal) and ``"foreground"``, the share of pixels; or ``"error"``.

    Raises:
        AdapterError: several adapters would draw without prompts.
    """
    if len(proposer.finders) > 1:
        raise AdapterError(
            f"masks without prompts are drawn by one model, and {len(proposer.finders)} adapters "
            "were given; give one, or use several to rank"
        )
    if not names:
        return []
    workspace.index.makers.append(maker)
    call = len(workspace.index.makers)
    rows = []
    for name in names:
        try:
            volume = workspace.read(name)
            show = None if progress is None else progress(name)
            mask = proposer(name, volume, show)
            rows.append({"image": name, **_keep(workspace, name, call, mask, volume)})
        except UserError as error:  # one broken image must not cost the others
            rows.append({"image": name, "error": str(error)})
    return rows


def _keep(
    workspace: Workspace, name: str, call: int, mask: Array, volume: Volume
) -> dict[str, Any]:
    """Write a proposal and its copy; return their row."""
    file = f"proposals/{call:04d}/{name}{workspace.ending(name)}"
    path = workspace.root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_prediction(as_small_as_possible(mask), volume, path)
    copy: Path | None = workspace.root / CORRECT / path.name
    known = {one.sha256 for one in workspace.index.proposals if one.image == name}
    if copy is not None and copy.is_file() and sha256_of(copy) not in known:
        copy = None
    workspace.index.proposals.append(ProposedMask(name, call, file, sha256_of(path)))
    if copy is not None:
        with atomic.file(copy) as part:
            shutil.copyfile(path, part)
    share = float(np.count_nonzero(mask) / max(mask.size, 1))
    return {
        "proposal": str(path),
        "correct": None if copy is None else str(copy),
        "foreground": share,
    }


def as_small_as_possible(mask: Array) -> Array:
    """Return numbers in 8 bits, or in 16 if there are more than 255."""
    most = int(mask.max(initial=0))
    if most > np.iinfo(np.uint16).max:
        raise DataError(f"{most} objects in one image, and a mask numbers at most 65535")
    return mask.astype(np.uint8 if most <= np.iinfo(np.uint8).max else np.uint16)
