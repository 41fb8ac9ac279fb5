"""Scribbles and masks that a user gives as files, read for the image that is predicted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.data.formats.base import reader_for
from samadapt.data.formats.shared.pictures import load_mask
from samadapt.data.formats.shared.volume_values import whole_labels
from samadapt.errors import PromptError
from samadapt.inference.options import PredictionOptions

if TYPE_CHECKING:
    from samadapt.data.formats.base import ReaderOptions
    from samadapt.data.types import Volume


def with_drawn_files(
    options: PredictionOptions, volume: Volume, how: ReaderOptions, stem: str | None = None
) -> PredictionOptions:
    """Return the options of one image, with the files of scribbles and masks read.

    Args:
        options: prompts and options.
        volume: the image.
        how: how images are read.
        stem: name of the image without its suffix, by which its mask is found if ``masks`` is a
            folder; None: a folder is refused.

    Raises:
        PromptError: a file is missing, or is not what its option takes; names it.
        DataError: a mask cannot be read.
    """
    # The arguments of the command line are options too, but take no arrays.
    plain = {item.name: getattr(options, item.name) for item in fields(PredictionOptions)}
    options = PredictionOptions(**plain)
    if isinstance(options.scribbles, str | Path):
        scribbles, labels = _read_scribbles(Path(options.scribbles).expanduser())
        if options.scribble_labels is not None:
            labels = options.scribble_labels
        options = replace(options, scribbles=scribbles, scribble_labels=labels)
    if isinstance(options.masks, str | Path):
        path = _mask_file(Path(options.masks).expanduser(), stem)
        options = replace(options, masks=_read_masks(path, volume, how))
    return options


def drawn_files(options: PredictionOptions, stem: str | None) -> list[Path]:
    """Return the files of scribbles and masks that ``with_drawn_files`` reads for an image.

    Args:
        options: prompts and options.
        stem: name of the image without its suffix.

    Raises:
        PromptError: the file of the mask is missing.
    """
    found = []
    if isinstance(options.scribbles, str | Path):
        found.append(Path(options.scribbles).expanduser())
    if isinstance(options.masks, str | Path):
        found.append(_mask_file(Path(options.masks).expanduser(), stem))
    return found


def _read_scribbles(path: Path) -> tuple[Any, Any]:
    """Return what a JSON file holds as ``scribbles`` and ``scribble_labels``."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PromptError(f"{path}: scribbles cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{path}: expected JSON with scribbles; got {error}") from error
    labels = None
    if isinstance(found, dict) and "scribbles" in found:
        found, labels = found["scribbles"], _by_slice(path, found.get("scribble_labels"))
    found = _by_slice(path, found)
    if not isinstance(found, list | dict):
        raise PromptError(
            f"{path}: expected a list of scribbles, {{slice: list}}, or "
            f'{{"scribbles": ..., "scribble_labels": ...}}; got {found!r}'
        )
    return found, labels


def _by_slice(path: Path, values: Any) -> Any:
    """Return values with whole numbers as keys, which JSON writes as text."""
    if not isinstance(values, Mapping):
        return values
    wrong = [key for key in values if not str(key).isdecimal()]
    if wrong:
        raise PromptError(
            f'{path}: expected slice indices as keys, or "scribbles" and "scribble_labels"; got '
            f"{wrong[0]!r}"
        )
    return {int(key): value for key, value in values.items()}


def _mask_file(path: Path, stem: str | None) -> Path:
    """Return the file of an image's mask; in a folder the one with the image's stem."""
    if not path.is_dir():
        if not path.is_file():
            raise PromptError(f"masks: {path}: the file does not exist")
        return path
    found = sorted(path.glob(f"{stem}.*")) if stem else []
    if len(found) != 1:
        raise PromptError(
            f"masks: {path}: expected one mask named {stem or 'as the image'}.SUFFIX; found "
            f"{', '.join(one.name for one in found) or 'none'}"
        )
    return found[0]


def _read_masks(path: Path, volume: Volume, how: ReaderOptions) -> Any:
    """Return the object numbers (h, w) of a picture, or by slice for a volume."""
    height, width, depth = volume.shape
    if volume.source is None and depth == 1:
        values = load_mask(path, how.exif).values[:, :, None]
    else:
        plain = replace(how, channel=None, series=None)
        mask = reader_for(path, plain).read_image(path)
        values = whole_labels(path, mask.image)
        if volume.source is not None and mask.source is not None:
            is_same = np.allclose(mask.source.affine, volume.source.affine, atol=1e-2)
            if mask.source.shape == volume.source.shape and not is_same:
                raise PromptError(
                    f"masks: {path}: its affine differs from that of the image; resample it to "
                    "the image's grid"
                )
    if values.shape != volume.shape:
        size = f"{width} x {height} pixels" + (f", {depth} slices" if depth > 1 else "")
        found = f"{values.shape[1]} x {values.shape[0]}, {values.shape[2]} slices"
        raise PromptError(f"masks: {path}: expected the size of the image, {size}; got {found}")
    if not (values > 0).any():
        raise PromptError(f"masks: {path}: expected numbers of objects; every value is 0")
    if depth == 1 and volume.source is None:
        return values[:, :, 0]
    slices = np.flatnonzero((values > 0).any(axis=(0, 1))).tolist()
    return {index: values[:, :, index] for index in slices}
