"""The options of a prediction: the one list that Python and the command line share.

An option that is added here is a key of ``samadapt predict`` and reaches the predictor. If it shall
be an argument of ``Segmenter.segment`` as well, it is named there once more.
"""
# ruff: noqa: RUF009  ``option`` returns a field, not a default

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from samadapt.data.formats.nifti.affine import SpacingSource
from samadapt.data.formats.shared.exif import Exif
from samadapt.errors import PromptError, nearest
from samadapt.prompts.user_drawings import SliceMasks, SliceScribbles
from samadapt.prompts.user_prompts import SlicePrompts
from samadapt.system.settings import Whole

Carry = Literal["prompt", "mask", "both"]

Propagate = bool | Literal["memory"]
"""Whether objects are carried through a volume, and whether by prompts or by SAM 2's memory."""

Tta = Literal["flip"]
"""Test-time augmentation: the copies of an image that a prediction is averaged over."""

SecondPassBy = Literal["base"]
"""The model that is prompted with what another one found without prompts."""

SMALLEST_TILE = 16
"""Side in pixels below which a tile shows nothing that could be recognised."""


def option(default: Any, description: str, **bounds: float) -> Any:
    """Return a field with its help text and bounds, which pydantic reads from the metadata."""
    return field(default=default, metadata={"description": description, **bounds})


@dataclass(frozen=True)
class PredictionOptions:
    """Prompts and options of a prediction; ``Segmenter.segment`` explains each at length.

    Raises:
        PromptError: options contradict each other or have a value that does not exist.
    """

    boxes: SlicePrompts = option(
        None,
        "boxes in pixels, [[x0,y0,x1,y1]], or by slice, {slice: [[x0,y0,x1,y1]]}; null in the "
        "place of a box: the object has none here",
    )
    points: SlicePrompts = option(
        None,
        "points in pixels, [[x,y]] for one object and [[[x,y]],[[x,y]]] for two, or by slice, "
        "{slice: ...}",
    )
    point_labels: SlicePrompts = option(
        None,
        "label of each point, such as [1,0]: 1 is inside the object and 0 outside; null: all "
        "points are inside",
    )
    scribbles: SliceScribbles | str | Path = option(
        None,
        "scribbles as lists of points in pixels: [[x,y],...] for one object, a list of them for "
        "several, a list of lists where objects have several scribbles, by slice {slice: ...}, or "
        "a JSON file with any of these",
    )
    scribble_labels: SliceScribbles = option(
        None,
        "in the place of each scribble 1, inside the object, or 0, in the background; null: all "
        "scribbles are inside",
    )
    masks: SliceMasks | str | Path = option(
        None,
        "rough masks: a file in the format and size of the input whose values number the objects, "
        "or are the classes of an adapter of several; for a folder a folder with the same stems",
    )
    labels: str | Sequence[str] | None = option(
        None,
        "class of each object, such as [liver,spleen], or one class for all; null: the only class "
        "of the adapter",
    )
    propagate: Propagate = option(
        False,
        "carry each object from slice to slice through a volume, both ways; true: by prompts made "
        "from its mask; memory: by the memory of SAM 2",
    )
    carry: Carry = option(
        "prompt",
        "what prompts the next slice: prompt, a box or point made from the mask; mask, the mask "
        "itself; or both",
    )
    slices: Sequence[Whole] | None = option(
        None, "first and last slice to carry objects to, [first,last]; null: all slices"
    )
    vanish: float = option(
        0.1,
        "an object ends where its area falls below this share of its prompted area",
        ge=0,
        lt=1,
    )
    keep_largest: bool | Sequence[str] | None = option(
        None,
        "keep only the largest component of each class, or of the listed classes; in a volume the "
        "components are 3D; null: of the classes that the adapter records, in volumes",
    )
    fill_holes: bool | Sequence[str] = option(
        False, "fill the holes of each class, or of the listed classes, after keep_largest"
    )
    tile: Whole | None = option(
        None,
        "side in pixels of the tiles that a picture is cut into; null: as in training; 0: pictures "
        "stay whole",
        ge=0,
    )
    exif: Exif | None = option(
        None,
        "apply: turn pictures as their EXIF orientation says; ignore: use the stored pixels; null: "
        "as in training, or apply",
    )
    probabilities: bool = option(
        False, "also write OUTPUT_probabilities, a 4D .nii.gz or, for a picture, an .npz"
    )
    tta: Tta | None = option(
        None,
        "flip: average over mirrored copies too: left-right, in microscopy also upside down; null: "
        "the image alone",
    )
    second_pass: SecondPassBy | None = option(
        None,
        "base: prompt the base model with the components that were found without prompts, and "
        "average with its masks where the two agree; null: the first pass alone",
    )
    uncertainty: bool | Literal["mutual_information"] = option(
        False,
        "also write OUTPUT_uncertainty, the entropy of the probabilities from 0 to 1; "
        "mutual_information: and how much adapters or mirrored copies disagree",
    )
    objects: bool = option(
        False, "list the objects in the result: class, box, area and calibrated confidence"
    )
    channel: Annotated[Whole, Field(ge=0)] | str | Sequence[Whole | str] | None = option(
        None,
        "which volume of a 4D file: its index from 0, or its name in dataset.json; [a,b]: for an "
        "adapter of several channels; null: as in training",
    )
    spacing: SpacingSource | None = option(
        None,
        "which voxel size to trust where a NIfTI header holds two that differ; null: as in "
        "training",
    )
    series: str | None = option(
        None,
        "which DICOM series to read from a folder of several: a modality such as CT, a series "
        "number, largest, or the digits that an error message shows; null: as in training",
    )

    def __post_init__(self) -> None:
        if self.carry not in get_args(Carry):
            raise PromptError(f"carry must be {', '.join(get_args(Carry))}; got {self.carry!r}")
        if self.propagate not in (True, False, "memory"):
            raise PromptError(f"propagate must be true, false or memory; got {self.propagate!r}")
        if self.propagate == "memory" and self.carry != "prompt":
            raise PromptError(
                f"carry={self.carry} says what prompts the next slice, and with propagate=memory "
                "nothing does; leave it out"
            )
        if self.tta is not None and self.tta not in get_args(Tta):
            raise PromptError(f"tta must be flip, or left out; got {self.tta!r}")
        if self.second_pass is not None and self.second_pass not in get_args(SecondPassBy):
            raise PromptError(f"second_pass must be base, or left out; got {self.second_pass!r}")
        if self.uncertainty not in (True, False, "mutual_information"):
            raise PromptError(
                f"uncertainty must be true, false or mutual_information; got {self.uncertainty!r}"
            )
        if self.tile is not None and 0 != self.tile < SMALLEST_TILE:
            raise PromptError(
                f"tile must be 0 (whole) or at least {SMALLEST_TILE} pixels; got {self.tile}"
            )
        if not 0 <= self.vanish < 1:
            raise PromptError(f"vanish must be a share from 0 to below 1; got {self.vanish}")
        if self.slices is not None and not self.propagate:
            raise PromptError(
                "slices=[first, last] bounds propagate=true and propagate=memory; give one of them"
            )

    @property
    def has_prompts(self) -> bool:
        """Whether any option is given that only makes sense for prompted objects."""
        given = (self.point_labels, self.scribble_labels, self.labels)
        carries = self.propagate is not False
        return carries or self.has_objects or any(value is not None for value in given)

    @property
    def has_objects(self) -> bool:
        """Whether any object is prompted."""
        return any(value is not None for value in self._of_objects)

    @property
    def names_slices(self) -> bool:
        """Whether the prompts say on which slices of a volume they are."""
        return any(isinstance(value, Mapping) for value in self._of_objects)

    @property
    def _of_objects(self) -> tuple[Any, ...]:
        return self.boxes, self.points, self.scribbles, self.masks


def class_ids(wanted: bool | Sequence[str], classes: Sequence[str], option: str) -> list[int]:
    """Return the ids of the classes that an option names; ``True`` means all.

    Raises:
        PromptError: there is no such class.
    """
    if isinstance(wanted, bool):
        return list(range(1, len(classes) + 1)) if wanted else []
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name not in classes:
            raise PromptError(
                f"{option}: the adapter has no class {name!r}; it has {', '.join(classes)}"
                f"{nearest(str(name), classes)}"
            )
    return sorted({classes.index(name) + 1 for name in names})
