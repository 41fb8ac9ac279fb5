"""Where a voxel of a file lies in the upright slices of a model, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samadapt.data.types import SourceGrid

Ranges = tuple[tuple[int, int], ...]
"""First index and the one after the last, along each axis."""


class FileAxes:
    """The axes of slices (row, column, slice) as axes of the file.

    ``data/formats/shared/volume_slices.py`` describes the steps from one to the other.

    Args:
        grid: the grid of the file; None: the axes are those of the slices; of a picture row and
            column.
        shape: (h, w, d) of the slices.
    """

    def __init__(self, grid: SourceGrid | None, shape: tuple[int, int, int]) -> None:
        # For each axis of the slices: the axis of the file, whether it runs the other way, and its
        # side. Row and column run from the last of a canonical axis to its first.
        self._axes: list[tuple[int, bool, int]] = []
        if grid is None:
            sides = shape if shape[2] > 1 else shape[:2]
            self._axes = [(axis, False, side) for axis, side in enumerate(sides)]
            return
        column, row = (axis for axis in range(3) if axis != grid.axis)
        of_canonical = {int(c): (a, int(step) < 0) for a, (c, step) in enumerate(grid.orientation)}
        for side, (axis, turned) in zip(
            shape, ((row, True), (column, True), (grid.axis, False)), strict=True
        ):
            file_axis, flipped = of_canonical[axis]
            self._axes.append((file_axis, turned != flipped, side))

    def described(self) -> list[dict[str, int | bool]]:
        """Return for rows, columns and slices the file's axis, and whether it runs the other way.

        Index i along a reversed axis of the slices is index ``side - 1 - i`` in the file.
        """
        return [
            {"axis": axis, "reversed": turned, "side": side} for axis, turned, side in self._axes
        ]

    def to_slices(self, ranges: Sequence[Sequence[int]]) -> Ranges:
        """Return ranges along the file's axes as ranges of rows, columns and slices."""
        return tuple(
            (side - ranges[axis][1], side - ranges[axis][0])
            if turned
            else (ranges[axis][0], ranges[axis][1])
            for axis, turned, side in self._axes
        )

    def to_file(self, ranges: Ranges) -> Ranges:
        """Return ranges of rows, columns and slices as ranges along the file's axes."""
        found: dict[int, tuple[int, int]] = {}
        for (first, end), (axis, turned, side) in zip(ranges, self._axes, strict=False):
            found[axis] = (side - end, side - first) if turned else (first, end)
        return tuple(found[axis] for axis in range(len(self._axes)))
