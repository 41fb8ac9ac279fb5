"""What clients of the plain interface send; the OpenAPI page is made of these classes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from samadapt.serving.bodies import Body

Number = Annotated[float, Field(ge=-1e7, le=1e7)]
Point = tuple[Number, Number]
Box = tuple[Number, Number, Number, Number]
Name = Annotated[str, Field(max_length=200)]
Index = Annotated[int, Field(ge=0, le=1_000_000)]


class MaskRuns(Body):
    """A mask as COCO's run lengths: down the columns, beginning with background."""

    size: tuple[Annotated[int, Field(ge=1, le=100_000)], Annotated[int, Field(ge=1, le=100_000)]]
    counts: list[Annotated[int, Field(ge=0, le=10_000_000_000)]] = Field(max_length=5_000_000)


class NewObject(Body):
    """An object to segment."""

    adapter: Name | None = Field(default=None, description="name of the model; null: the first one")
    label: Name = Field(default="", description="name of its class, one of those of the model")


class Labelled(Body):
    """The class of an object."""

    label: Name = Field(description="name of its class, one of those of the model")


class Prompt(Body):
    """A click, box, scribble or region on a slice, or a mask; coordinates are pixels (x, y)."""

    kind: Literal["points", "box", "scribble", "lasso", "mask"] = Field(
        description="points: clicks; box: a rectangle; scribble: a curve; lasso: the corners of a "
        "region around the object; mask: a rough mask, which the next prompts correct"
    )
    slice: Index = Field(default=0, description="the slice; 0 for a picture")
    last_slice: Index | None = Field(
        default=None, description="for box: last slice of an object that begins on slice"
    )
    points: list[Point] = Field(
        default_factory=list, max_length=10_000, description="for points, scribble and lasso"
    )
    box: Box | None = Field(default=None, description="for box: [x0, y0, x1, y1]")
    mask: MaskRuns | None = Field(default=None, description="for mask")
    inside: bool = Field(default=True, description="false: it marks the background")
    carry: bool = Field(default=False, description="carry the answer through the volume")


class ChosenAdapter(Body):
    """Which model is meant."""

    adapter: Name | None = Field(default=None, description="name of the model; null: the first one")


class Accepted(Body):
    """Masks that are finished."""

    objects: list[Index] | None = Field(
        default=None, max_length=255, description="numbers of the objects; null: all"
    )


class BatchPicture(Body):
    """A picture and the objects to segment in it."""

    name: Name = Field(description="name of the file, whose ending says how it is read")
    data: str = Field(description="the bytes of the file in base64")
    boxes: list[Box] = Field(default_factory=list, max_length=255, description="one a object")
    points: list[Point] = Field(
        default_factory=list, max_length=255, description="one a object, without boxes"
    )


class BatchBody(Body):
    """Pictures to segment: by boxes or points, or by their classes without prompts."""

    adapter: Name | None = Field(default=None, description="name of the model; null: the first one")
    pictures: list[BatchPicture] = Field(min_length=1, max_length=1000)
