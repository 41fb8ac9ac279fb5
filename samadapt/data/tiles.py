"""Tiles: a large picture is cut into overlapping windows, and each pixel is owned by one of them.

The model's input is a square of 256 or 1024 pixels. If a picture 10,000 pixels wide is resized to
it, a cell becomes smaller than a pixel. So such a picture is cut into tiles. Each tile is trained
on, embedded and segmented like a slice of a volume. Then the parts that the tiles own are put
together, so scores and predictions are those of the whole picture. The rest of a tile is context.

Tiles overlap by at least the requested share of their side and are spread evenly, with the first
and the last at the edges of the picture. Between two neighbours the middle of their overlap is the
border of what they own. Along one axis::

    picture  |0                                                     length|
    tile 0   |ooooooooooooooooooooo+++|                 o: owned by the tile
    tile 1                       |+++ooooooooooooooo+++|          +: context
    tile 2                                        |+++oooooooooooooooooooo|
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from samadapt.errors import ConfigError
from samadapt.system.arrays import Array

OVERLAP = 0.125
"""Default for the smallest overlap of neighbouring tiles, as a share of a tile's side."""


class Span(NamedTuple):
    """One axis of a tile: it covers [start, stop) and owns [own_start, own_stop), in pixels."""

    start: int
    stop: int
    own_start: int
    own_stop: int


@dataclass(frozen=True)
class PictureTile:
    """One window of a picture.

    Attributes:
        rows, columns: what it covers and what it owns.
        picture: (h, w) of the whole picture.
    """

    rows: Span
    columns: Span
    picture: tuple[int, int]

    def cut(self, picture: Array) -> Array:
        """Return the tile's window (th, tw, ...) of a picture (h, w, ...), as a view."""
        rows, columns = self.rows, self.columns
        return picture[rows.start : rows.stop, columns.start : columns.stop]

    def put(self, part: Array, picture: Array) -> None:
        """Copy what the tile owns from its window (..., th, tw) into a picture (..., h, w)."""
        picture[..., *self._own] = part[..., *self._own_in_window]

    @property
    def _own(self) -> tuple[slice, slice]:
        rows, columns = self.rows, self.columns
        return (
            slice(rows.own_start, rows.own_stop),
            slice(columns.own_start, columns.own_stop),
        )

    @property
    def _own_in_window(self) -> tuple[slice, slice]:
        rows, columns = self.rows, self.columns
        return (
            slice(rows.own_start - rows.start, rows.own_stop - rows.start),
            slice(columns.own_start - columns.start, columns.own_stop - columns.start),
        )

    def boxes(self, boxes: Array) -> tuple[Array, Array]:
        """Move boxes into the frame of the window.

        Args:
            boxes: (n, 4) XYXY in pixels of the picture.

        Returns:
            (n, 4) XYXY in pixels of the window, clipped to it, and (n,) bool: whether any area is
            left.
        """
        # x belongs to columns and y to rows, so corner is (x, y, x, y).
        corner = np.array([self.columns.start, self.rows.start] * 2, boxes.dtype)
        size = np.array([self.columns.stop, self.rows.stop] * 2, boxes.dtype) - corner
        moved = np.clip(boxes - corner, 0, size)
        return moved, (moved[:, 0] < moved[:, 2]) & (moved[:, 1] < moved[:, 3])

    def points(self, points: Array) -> tuple[Array, Array]:
        """Move points into the frame of the window.

        Args:
            points: (..., 2) (x, y) in pixels of the picture.

        Returns:
            (..., 2) in pixels of the window, and (...) bool: whether they are in it. Points on the
            right or lower edge of the picture are in the last tile.
        """
        spans, sides = (self.columns, self.rows), self.picture[::-1]
        moved = points - np.array([span.start for span in spans], points.dtype)
        size = np.array([span.stop - span.start for span in spans])
        # A point on the far edge of the picture has the coordinate ``side``: the last tile has it.
        last = np.array([span.stop == side for span, side in zip(spans, sides, strict=True)])
        within = (moved < size) | (last & (moved == size))
        return moved, ((moved >= 0) & within).all(axis=-1)

    def overlaps(self, other: PictureTile) -> bool:
        """Return whether the windows of two tiles of a picture share a pixel."""
        return all(
            one.start < two.stop and two.start < one.stop
            for one, two in ((self.rows, other.rows), (self.columns, other.columns))
        )

    def annotation(
        self,
        boxes: Array | None,
        points: Array | None,
        point_labels: Array | None,
        classes: Array | None,
    ) -> tuple[Array | None, Array | None, Array | None, Array | None]:
        """Move the prompts of an annotation into the frame of the window.

        Boxes are clipped, and removed if no area is left. Points outside are removed. Where there
        are no boxes, the points of a class without a foreground point in the window are removed
        too. Arguments and results are ``boxes``, ``points``, ``point_labels`` and
        ``prompt_classes`` of ``Sample``.
        """
        if boxes is not None:
            boxes, seen = self.boxes(boxes)
            boxes, classes = boxes[seen], None if classes is None else classes[seen]
        if points is None or point_labels is None:
            return boxes, points, point_labels, classes
        points, inside = self.points(points)
        if boxes is None:
            # Without a foreground point in the window, background points have no object to correct.
            owner = np.zeros(len(points), np.int64) if classes is None else classes
            inside &= np.isin(owner, owner[inside & (point_labels == 1)])
            classes = None if classes is None else classes[inside]
        return boxes, points[inside], point_labels[inside], classes


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut into tiles.

    Attributes:
        side: of a tile, in pixels of the picture.
        overlap: smallest overlap of two neighbours, as a share of the side.

    Raises:
        ConfigError: the side is below 16 pixels, or the share is outside 0 to 0.5.
    """

    side: int
    overlap: float = OVERLAP

    def __post_init__(self) -> None:
        if self.side < 16:
            raise ConfigError(f"data.tile must be at least 16 pixels; got {self.side}")
        if not 0 <= self.overlap <= 0.5:
            raise ConfigError(f"data.tile_overlap must be a share of 0 to 0.5; got {self.overlap}")

    @lru_cache(maxsize=64)  # noqa: B019  (a few values for as long as the program runs)
    def tiles(self, height: int, width: int) -> tuple[PictureTile, ...]:
        """Return the tiles of a picture, row by row; a picture that fits into one is one tile."""
        return tuple(
            PictureTile(rows, columns, (height, width))
            for rows in self._spans(height)
            for columns in self._spans(width)
        )

    def _spans(self, length: int) -> list[Span]:
        if length <= self.side:
            return [Span(0, length, 0, length)]
        # count tiles cover count * side - (count - 1) * overlap pixels, which must reach length.
        least = round(self.overlap * self.side)
        count = -(-(length - least) // (self.side - least))
        starts = [round(i * (length - self.side) / (count - 1)) for i in range(count)]
        # The overlap of two neighbours is [second, first + side); its middle is the border.
        middles = [(first + self.side + second) // 2 for first, second in pairwise(starts)]
        borders = [0, *middles, length]
        return [
            Span(start, start + self.side, borders[i], borders[i + 1])
            for i, start in enumerate(starts)
        ]


def tiling(side: int | None, overlap: float | None = None) -> Tiling | None:
    """Return how pictures are cut; None where they are not cut (a side of None or 0).

    Raises:
        ConfigError: see ``Tiling``.
    """
    if not side:
        return None
    return Tiling(side) if overlap is None else Tiling(side, overlap)


def recorded_tiling(options: Mapping[str, Any]) -> Tiling | None:
    """Return how the training pictures of an adapter were cut, from its record's ``data_options``.

    Raises:
        ConfigError: see ``Tiling``; also if the values are not numbers.
    """
    side, overlap = options.get("tile"), options.get("tile_overlap", OVERLAP)
    if not isinstance(side, int | None) or not isinstance(overlap, int | float):
        raise ConfigError(
            "the adapter's data_options: tile must be a whole number and tile_overlap a share; got "
            f"{side!r} and {overlap!r}"
        )
    try:
        return tiling(side, overlap)
    except ConfigError as error:
        raise ConfigError(f"the adapter's data_options: {error}") from error


def assemble(parts: Sequence[Array], tiles: Sequence[PictureTile]) -> Array:
    """Put the windows (..., th, tw) of tiles together into a picture (..., h, w).

    Pixels that no tile owns are 0.
    """
    whole = np.zeros((*parts[0].shape[:-2], *tiles[0].picture), parts[0].dtype)
    for part, tile in zip(parts, tiles, strict=True):
        tile.put(part, whole)
    return whole
