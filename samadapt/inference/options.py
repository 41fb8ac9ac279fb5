"""What a caller asks of a prediction, checked before any image is embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from samadapt.errors import PromptError, nearest
from samadapt.prompts.user_prompts import SlicePrompts

Carry = Literal["prompt", "mask", "both"]


@dataclass(frozen=True)
class Options:
    """Prompts and options of a prediction; ``Segmenter.segment`` says what each means.

    Attributes:
        boxes: boxes of objects, for an image or by slice.
        points: points of objects, likewise.
        point_labels: 1, 0 or -1 for each point.
        labels: class name of each object, or one for all.
        propagate: carry each object from the slices where it is prompted to the others.
        carry: what the mask of a slice becomes on the next one.
        slices: first and last slice to which objects are carried.
        vanish: share of its area on the prompted slice below which an object has ended.
        keep_largest: all classes, none, or those named.
        fill_holes: likewise.
        probabilities: also return the probability of each class.
        instances: also return which object each pixel belongs to.
        tile: side of the tiles that pictures are cut into, in pixels; None: as the adapter was
            trained; 0: not at all.

    Raises:
        PromptError: for options that contradict each other or have no such value.
    """

    boxes: SlicePrompts = None
    points: SlicePrompts = None
    point_labels: SlicePrompts = None
    labels: str | Sequence[str] | None = None
    propagate: bool = False
    carry: Carry = "prompt"
    slices: Sequence[int] | None = None
    vanish: float = 0.1
    keep_largest: bool | Sequence[str] = False
    fill_holes: bool | Sequence[str] = False
    probabilities: bool = False
    instances: bool = False
    tile: int | None = None

    def __post_init__(self) -> None:
        if self.carry not in get_args(Carry):
            raise PromptError(f"carry must be {', '.join(get_args(Carry))}; got {self.carry!r}")
        if self.tile is not None and 0 != self.tile < 16:
            raise PromptError(f"tile must be 0 (whole) or at least 16 pixels; got {self.tile}")
        if not 0 <= self.vanish < 1:
            raise PromptError(f"vanish must be a share from 0 to below 1; got {self.vanish}")
        if self.slices is not None and not self.propagate:
            raise PromptError("slices=[first, last] bounds propagate=true; give both or neither")

    @property
    def has_prompts(self) -> bool:
        """Whether anything tells objects apart."""
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
