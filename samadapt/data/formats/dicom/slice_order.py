"""The order of the frames of a DICOM series, and the affine of the stack.

Slices are sorted by their place along the slice normal, which is the row direction crossed with the
column direction of ImageOrientationPatient. File names and InstanceNumber are not used, because
they need not follow the geometry. Tolerances are a tenth of a slice or voxel, because rounding of
decimal text moves a slice far less, and a missing slice is a gap of a whole step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samadapt.data.findings import Finding, fault, warning_finding
from samadapt.data.formats.dicom.frames import (
    DicomFrame,
    check_spacing,
    colour_fault,
    plane_affine,
)
from samadapt.system.arrays import Array


def order_frames(
    folder: Path, frames: Sequence[DicomFrame]
) -> tuple[list[DicomFrame], Array, list[Finding]]:
    """Order the frames of a series and find the affine of the stack.

    Args:
        folder: the folder that findings of the whole series name.
        frames: the frames in any order.

    Returns:
        The frames from the first slice to the last, the (4, 4) affine (column, row, slice) to
        RAS+ mm, and warnings.

    Raises:
        FindingError: sizes, directions or spacing differ, or slices are double, missing or uneven.
    """
    first = frames[0]
    for frame in frames:
        if frame.is_colour:
            raise colour_fault(frame.file)
        if frame.shape != first.shape:
            message = f"it has {frame.shape} pixels (rows, columns); {first.file.name} has "
            message += f"{first.shape}"
            raise fault("mixed_sizes", frame.file, message, "keep slices of one size in a series")
    affines = {id(frame): plane_affine(frame) for frame in frames}
    base = affines[id(first)]
    least = min(check_spacing(first))
    for frame in frames:
        # A thousandth of a pixel: over 1,000 pixels this adds up to one pixel at most.
        if np.abs(affines[id(frame)][:3, :2] - base[:3, :2]).max() > 1e-3 * least:
            message = f"its orientation or spacing differs from that of {first.file.name}"
            fix = (
                "keep slices of one orientation in a series (localizers are a series of their own)"
            )
            raise fault("mixed_orientations", frame.file, message, fix)
    # LPS+ to RAS+ turns two signs, which is a rotation: the cross product is still DICOM's normal.
    normal = np.cross(base[:3, 0], base[:3, 1])
    normal /= np.linalg.norm(normal)
    heights = {id(frame): float(affines[id(frame)][:3, 3] @ normal) for frame in frames}
    ordered = sorted(frames, key=lambda frame: heights[id(frame)])
    affine = affines[id(ordered[0])].copy()
    if len(ordered) == 1:
        return ordered, affine, []
    origins = np.array([affines[id(frame)][:3, 3] for frame in ordered])
    _check_steps(folder, ordered, origins @ normal)
    # The step from slice to slice comes from the positions: SliceThickness may differ from it.
    affine[:3, 2] = (origins[-1] - origins[0]) / (len(ordered) - 1)
    return ordered, affine, _check_line(folder, origins, affine, normal)


def _check_steps(folder: Path, ordered: Sequence[DicomFrame], heights: Array) -> None:
    """Refuse double, missing and uneven slices.

    Args:
        folder: the folder of the series.
        ordered: the frames from the first slice to the last.
        heights: (n,) their rising places along the normal in mm.
    """
    steps = np.diff(heights)
    usual = float(np.median(steps))
    # Two slices at one place: less than a micrometre, or a hundredth of the usual step, apart.
    double = np.flatnonzero(steps < max(1e-3, 0.01 * usual))
    if double.size:
        a, b = ordered[double[0]], ordered[double[0] + 1]
        repeats = len({frame.acquisition for frame in ordered}) > 1
        code = "several_acquisitions" if repeats else "duplicate_position"
        message = f"{b.file.name} lies where {a.file.name} does ({heights[double[0]]:.3f} mm along "
        message += f"the slice normal); {double.size} of {len(ordered)} slices are double"
        message += "; the folder holds several acquisitions, echoes or times" if repeats else ""
        raise fault(code, b.file if repeats else a.file, message, "keep each slice once")
    places = (heights - heights[0]) / usual
    if np.abs(places - np.arange(len(heights))).max() <= 0.1:
        return
    worst = int(np.argmax(np.abs(steps - usual)))
    between = f"{ordered[worst].file.name} and {ordered[worst + 1].file.name}"
    message = f"{between} are {steps[worst]:.3f} mm apart; other slices are {usual:.3f} mm apart"
    count = steps / usual
    if np.abs(count - np.rint(count)).max() <= 0.1:
        message += f": {int(np.rint(count).sum()) - len(steps)} slices are missing"
        raise fault("missing_slices", folder, message, "export the whole series again")
    raise fault("uneven_spacing", folder, message, "resample the series to even slices")


def _check_line(folder: Path, origins: Array, affine: Array, normal: Array) -> list[Finding]:
    """Refuse slices that do not lie on one straight line, and warn of a tilted gantry.

    With a tilted gantry, the line through the slices' corners is not along their normal, so that
    the affine is sheared.
    """
    count = np.arange(len(origins))[:, None]
    away = np.linalg.norm(origins - (origins[0] + count * affine[:3, 2]), axis=1)
    if away.max() > 0.1 * float(np.linalg.norm(affine[:3, :3], axis=0).min()):
        message = f"its slices lie up to {away.max():.3f} mm away from a straight line"
        raise fault("uneven_spacing", folder, message, "resample the series to a straight stack")
    step = affine[:3, 2]
    angle = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
    if angle < 0.5:
        return []
    message = f"its slices are shifted along the stack (gantry tilt of {angle:.1f} degrees)"
    fix = "do nothing: the affine is sheared; resample it where a program needs right angles"
    return [warning_finding("gantry_tilt", folder, message, fix)]
