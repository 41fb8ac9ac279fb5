"""The options of a prediction: the one list that Python and the command line share."""

# ruff: noqa: RUF009  ``_option`` returns a field, not a default
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from samadapt.data.channels import Channel
from samadapt.data.formats.nifti.affine import SpacingSource
from samadapt.data.formats.shared.exif import Exif
from samadapt.errors import PromptError, nearest
from samadapt.prompts.user_prompts import SlicePrompts

Carry = Literal["prompt", "mask", "both"]


SMALLEST_TILE = 16
"""Side in pixels below which a tile shows nothing that could be recognised."""


def _option(default: Any, description: str, **bounds: float) -> Any:
    """Return a dataclass field with the help text and the bounds that the command line shows."""
    return field(default=default, metadata={"description": description, **bounds})


@dataclass(frozen=True)
class PredictionOptions:
    """Prompts and options of a prediction; ``Segmenter.segment`` explains each at length.

    ``samadapt predict`` takes its keys, help texts and bounds from these fields.

    Raises:
        PromptError: options contradict each other or have a value that does not exist.
    """

    boxes: SlicePrompts = _option(
        None, "[[x0,y0,x1,y1]], or {slice: [[x0,y0,x1,y1]]}; null: no box of that object here"
    )
    points: SlicePrompts = _option(
        None, "[[x,y]]: points of one object; [[[x,y]],[[x,y]]]: of two; or by slice"
    )
    point_labels: SlicePrompts = _option(None, "[1,0]: 1 in the object, 0 outside; null: all 1")
    labels: str | Sequence[str] | None = _option(
        None, "class of each object, [liver,spleen], or one for all; null: the only class"
    )
    propagate: bool = _option(False, "carry each object from slice to slice, in both directions")
    carry: Carry = _option(
        "prompt", "what a mask becomes on the next slice: a box or point, a mask prompt, or both"
    )
    slices: Sequence[int] | None = _option(None, "[first,last] slice to carry to; null: all")
    vanish: float = _option(
        0.1, "an object ends below this share of its area on the prompted slice", ge=0, lt=1
    )
    keep_largest: bool | Sequence[str] = _option(
        False, "keep only the largest component of each class, or of [classes]; 3D in volumes"
    )
    fill_holes: bool | Sequence[str] = _option(
        False, "fill the holes of each class, or of [classes], after keep_largest"
    )
    tile: int | None = _option(
        None,
        "side in pixels of the tiles that a picture is cut into; 0: it is seen whole; null: as in "
        "training",
        ge=0,
    )
    exif: Exif | None = _option(
        None,
        "apply: turn pictures as their EXIF orientation says; ignore: leave their pixels as "
        "stored; null: as in training, or apply",
    )
    probabilities: bool = _option(
        False, "also write OUTPUT_probabilities: 4D .nii.gz, or .npz for a picture"
    )
    channel: Channel | Sequence[Channel] | None = _option(
        None,
        "which volume of a 4D file: its index from 0, or its name in dataset.json; [a,b] for an "
        "adapter of several channels; null: as in training",
    )
    spacing: SpacingSource | None = _option(
        None,
        "which voxel size to trust if a NIfTI header contradicts itself; null: as in training",
    )
    series: str | None = _option(
        None,
        "which DICOM series of a folder with several: a modality (CT), a series number, largest, "
        "or the digits that the message shows; null: as in training",
    )

    def __post_init__(self) -> None:
        if self.carry not in get_args(Carry):
            raise PromptError(f"carry must be {', '.join(get_args(Carry))}; got {self.carry!r}")
        if self.tile is not None and 0 != self.tile < SMALLEST_TILE:
            raise PromptError(
                f"tile must be 0 (whole) or at least {SMALLEST_TILE} pixels; got {self.tile}"
            )
        if not 0 <= self.vanish < 1:
            raise PromptError(f"vanish must be a share from 0 to below 1; got {self.vanish}")
        if self.slices is not None and not self.propagate:
            raise PromptError("slices=[first, last] bounds propagate=true; give both or neither")

    @property
    def has_prompts(self) -> bool:
        """Whether any option is given that only makes sense for prompted objects."""
        given = (self.boxes, self.points, self.point_labels, self.labels)
        return self.propagate or any(value is not None for value in given)


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
