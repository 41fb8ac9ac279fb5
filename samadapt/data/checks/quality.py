"""Quality of a data set that can be read: each case is measured, then cases are compared.

Every problem here is a warning. The thresholds are wide, so a sound data set has none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from samadapt.data.classes import ClassTable
from samadapt.data.findings import Finding, warning_finding
from samadapt.data.formats.base import content_hash
from samadapt.data.splits import Splits
from samadapt.data.types import Case, SourceGrid, Volume
from samadapt.system.arrays import Array

TINY = 8
"""Objects of fewer voxels are tiny; 8 voxels are a cube with sides of 2."""
SATURATED = 0.05
"""Largest share of the voxels that may have the highest value."""
HU = (-1100.0, 4000.0)
"""Expected HU: air (-1000) to the densest metal in 12 bits (3071), with room for noise."""
ANISOTROPY = 5.0
"""Largest ratio of the voxel's longest to its shortest side."""
TURNED = 10.0
"""Largest angle in degrees between the grid and the axes of the body."""
SPACING_RATIO, SIZE_RATIO = 2.0, 3.0
"""Largest ratio to the median spacing, and to the median number of voxels along a side."""
ENOUGH = 5
"""Fewest cases for a comparison with what is usual."""


@dataclass(frozen=True)
class Region:
    """One label value in one case.

    Attributes:
        voxels, slices: number of voxels and slices with this label value.
        total, squares: sums of the image's values and of their squares in these voxels, averaged
            over the channels.
        low, high: the lowest and the highest image value.
        tiny: number of connected parts with fewer than 8 voxels.
    """

    voxels: int
    slices: int
    total: float
    squares: float
    low: float
    high: float
    tiny: int


@dataclass(frozen=True)
class CaseFacts:
    """What was measured in one case.

    Attributes:
        low, high: lowest and highest value of the image.
        saturated: share (0..1) of the voxels with the highest value; the largest of all channels.
        filled: share (0..1) of the voxels with a label other than 0.
        is_color: whether it is a colour image.
        axes: directions of the file's axes as RAS+ letters, such as ``"LPS"``; empty for pictures.
        turned: degrees between the grid and the axes of the body.
        unknown: whether the header does not state the orientation of the patient.
        apart: largest distance in mm between the places where sform and qform put a voxel.
        mask: hash of the labels; empty if all are 0.
        regions: measurements by label value.
    """

    low: float
    high: float
    saturated: float
    filled: float
    is_color: bool
    axes: str = ""
    turned: float = 0.0
    unknown: bool = False
    apart: float = 0.0
    mask: str = ""
    regions: Mapping[int, Region] = field(default_factory=dict)


def measure(case: Case, volume: Volume) -> CaseFacts:
    """Measure a case while its voxels are in memory.

    Args:
        case: with the values and presence from the scan.
        volume: as read.
    """
    image, labels = volume.image, volume.labels
    high = image.max()
    axes, turned, unknown = _pose(volume.source)
    filled = 0.0 if labels is None else np.count_nonzero(labels) / labels.size
    return CaseFacts(
        low=float(image.min()),
        high=float(high),
        saturated=_saturated(volume),
        filled=filled,
        is_color=volume.is_color,
        axes=axes,
        turned=turned,
        unknown=unknown,
        apart=_apart(volume.source),
        mask="" if labels is None or not filled else content_hash(labels),
        regions={} if labels is None else _regions(case, volume, labels),
    )


def case_findings(case: Case, facts: CaseFacts, table: ClassTable, *, is_ct: bool) -> list[Finding]:
    """Return warnings about one case.

    Args:
        case: after the scan.
        facts: what was measured.
        table: the classes.
        is_ct: whether the image should be in HU.
    """
    used = {value for values in table.values for value in values}
    image, mask = str(case.image), str(case.labels or case.image)
    found = []
    if facts.filled == 1 and not set(case.values) & set(table.ignored):
        message = "every voxel has a class, none is background"
        found.append(
            warning_finding("constant_mask", mask, message, "check that it is the right file")
        )
    if facts.saturated > SATURATED and not facts.is_color and not is_ct:
        message = f"{facts.saturated:.0%} of the voxels have the highest value, {facts.high:g}"
        found.append(
            warning_finding("saturated", image, message, "export it again without clipping")
        )
    if is_ct and facts.low >= 0:
        message = f"expected HU, where air is -1000; the values are {facts.low:g} to {facts.high:g}"
        fix = "subtract 1024, or apply the rescale slope and intercept of the source"
        found.append(warning_finding("hu_offset", image, message, fix))
    elif is_ct and (facts.low < HU[0] or facts.high > HU[1]):
        message = f"expected HU within -1100..4000; the values are {facts.low:g} to {facts.high:g}"
        fix = "leave it if this is padding or metal, which CT windows clip; otherwise convert to HU"
        found.append(warning_finding("hu_range", image, message, fix))
    tiny = sum(region.tiny for value, region in facts.regions.items() if value in used)
    if tiny:
        message = f"{tiny} separate objects of fewer than {TINY} voxels"
        fix = "clean the mask, or give them no prompt with prompts.min_area"
        found.append(warning_finding("tiny_objects", mask, message, fix))
    return found + _grid_findings(case, facts)


def comparison_findings(
    cases: Sequence[Case],
    facts: Mapping[str, CaseFacts],
    table: ClassTable,
    parts: Splits,
    root: str,
) -> list[Finding]:
    """Return warnings from comparing the cases.

    Args:
        cases: the usable cases.
        facts: measurements by case name.
        table: the classes.
        parts: the division into training and validation.
        root: the folder that findings name where no single file is wrong.
    """
    found = _class_findings(cases, table, parts, root)
    if len(cases) < ENOUGH:
        plural = "s" if len(cases) > 1 else ""
        message = f"{len(cases)} usable case{plural}: scores say little about other patients"
        found.append(
            warning_finding("few_cases", root, message, "add cases, or state this with the scores")
        )
    found += _outliers(cases) if len(cases) >= ENOUGH else []
    known = [case for case in cases if case.name in facts]
    usual = Counter(facts[case.name].axes for case in known).most_common(1)
    for case in known:
        axes = facts[case.name].axes
        if axes and axes != usual[0][0] and not facts[case.name].unknown:
            message = f"its axes run {axes}; those of most files run {usual[0][0]}"
            fix = "check that left is on the same side as in the others"
            found.append(warning_finding("orientation_differs", str(case.image), message, fix))
    kinds = Counter(facts[case.name].is_color for case in known)
    if len(kinds) == 2:
        message = f"{kinds[True]} images have colours, {kinds[False]} are grey"
        found.append(warning_finding("mixed_colour", root, message, "convert them to one kind"))
    return found + _same_masks(known, facts)


def class_statistics(
    cases: Sequence[Case], facts: Mapping[str, CaseFacts], table: ClassTable
) -> list[dict[str, object]]:
    """Return one row for each class: cases, slices, voxels, volume in ml, intensity, spacing.

    Intensities are values of the files: mean and standard deviation over all voxels of the class
    (and all channels), minimum and maximum. Spacing is the range over the cases with the class,
    (row, column, slice) in mm; None for pictures.
    """
    rows: list[dict[str, object]] = []
    for name, values in zip(table.names, table.values, strict=True):
        holding, regions, slices, millilitres = [], [], 0, 0.0
        for case in cases:
            own = [r for value, r in facts[case.name].regions.items() if value in values]
            if not own:
                continue
            holding.append(case)
            regions += own
            # A slice with two values of the class counts once.
            columns = [index for index, value in enumerate(case.values) if value in values]
            if case.presence is not None:
                slices += int(case.presence[:, columns].any(axis=1).sum())
            millilitres += sum(r.voxels for r in own) * float(np.prod(case.spacing_mm or 0)) / 1e3
        row = {"class": name, "cases": len(holding), "slices": slices}
        rows.append({**row, **_pooled(regions), **_physical(holding, millilitres)})
    return rows


def ignored_share(
    cases: Sequence[Case], facts: Mapping[str, CaseFacts], table: ClassTable
) -> dict[str, float] | None:
    """Return the number of ignored voxels and their share (0..1) of all; None if there are none."""
    ignored = total = 0
    for case in cases:
        size = math.prod(case.shape)
        voxels = {value: region.voxels for value, region in facts[case.name].regions.items()}
        # ``regions`` has no entry for the value 0, which may be ignored too.
        voxels[0] = size - sum(voxels.values())
        ignored += sum(count for value, count in voxels.items() if value in table.ignored)
        total += size
    return {"voxels": ignored, "share": ignored / total} if ignored else None


def _pooled(regions: Sequence[Region]) -> dict[str, object]:
    voxels = sum(region.voxels for region in regions)
    if not voxels:
        return {"voxels": 0, "intensity": None}
    # Var(x) = E(x^2) - E(x)^2, from sums that add up over cases.
    mean = sum(region.total for region in regions) / voxels
    variance = sum(region.squares for region in regions) / voxels - mean**2
    intensity = {
        "mean": mean,
        "sd": max(variance, 0.0) ** 0.5,
        "min": min(region.low for region in regions),
        "max": max(region.high for region in regions),
    }
    return {"voxels": voxels, "intensity": intensity}


def _physical(cases: Iterable[Case], millilitres: float) -> dict[str, object]:
    spacings = np.array([case.spacing_mm for case in cases if case.spacing_mm])
    if not len(spacings):
        return {"ml": None, "spacing_mm": None}
    low, high = spacings.min(axis=0).tolist(), spacings.max(axis=0).tolist()
    return {"ml": millilitres, "spacing_mm": {"min": low, "max": high}}


def _regions(case: Case, volume: Volume, labels: Array) -> dict[int, Region]:
    """Measure every label value, within the slices and the box that contain it."""
    from scipy.ndimage import label

    found = {}
    for index, value in enumerate(case.values):
        planes = np.flatnonzero(case.presence[:, index] if case.presence is not None else [])
        mask = labels[:, :, planes] == value
        # Work inside the box of the value: labelling a whole volume for each value is slow.
        rows, columns = np.flatnonzero(mask.any((1, 2))), np.flatnonzero(mask.any((0, 2)))
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        inside = mask[window]
        image = volume.image[window] if volume.is_color else volume.image[:, :, planes][window]
        values = image[inside[:, :, 0]] if volume.is_color else image[inside]
        values = values.astype(np.float64)  # (n,), or (n, channels)
        apart = np.zeros((*inside.shape[:2], int(planes[-1] - planes[0]) + 1), dtype=bool)
        # Put empty slices back between the others, since they separate connected parts.
        apart[:, :, planes - planes[0]] = inside
        sizes = np.bincount(label(apart, np.ones((3, 3, 3)))[0].ravel())[1:]
        found[value] = Region(
            voxels=int(np.count_nonzero(inside)),
            slices=len(planes),
            total=float(values.sum() / volume.channels),
            squares=float((values**2).sum() / volume.channels),
            low=float(values.min()),
            high=float(values.max()),
            tiny=int((sizes < TINY).sum()),
        )
    return found


def _saturated(volume: Volume) -> float:
    """Return the share (0..1) of the voxels with the highest value; the largest of all channels."""
    image = volume.image
    if image.ndim == 4:
        planes = image.reshape(-1, image.shape[3])
        return float(np.count_nonzero(planes == planes.max(axis=0), axis=0).max() / len(planes))
    return float(np.count_nonzero(image == image.max()) / image.size)


def _pose(source: SourceGrid | None) -> tuple[str, float, bool]:
    """Return the axes as letters, their angle in degrees to the body, and whether both are a guess.

    The columns of the affine are the directions of the voxel axes in RAS+. The largest component of
    a unit vector is the cosine of its angle to the nearest axis of the body.
    """
    if source is None:
        return "", 0.0, False
    names = ("LR", "PA", "IS")
    axes = "".join(names[int(axis)][int(sign > 0)] for axis, sign in source.orientation)
    directions = source.affine[:3, :3] / np.linalg.norm(source.affine[:3, :3], axis=0)
    straightest = float(np.abs(directions).max(axis=0).min())
    codes = [int(source.header[key]) for key in ("sform_code", "qform_code")]
    return axes, float(np.degrees(np.arccos(min(straightest, 1.0)))), not any(codes)


def _apart(source: SourceGrid | None) -> float:
    """Return the largest distance in mm between corners as sform and qform place them.

    It is 0 if the header does not set both.
    """
    if source is None or not all(int(source.header[k]) > 0 for k in ("sform_code", "qform_code")):
        return 0.0
    header, reach = source.header, np.array(source.shape) - 1
    # Both maps are affine, so they differ most at a corner of the volume.
    corners = np.array([(*(reach * corner), 1) for corner in np.ndindex(2, 2, 2)])
    try:
        moved = corners @ (header.get_sform() - header.get_qform()).T
    except ValueError:  # HeaderDataError of nibabel: the qform is not a rotation
        return 0.0
    return float(np.linalg.norm(moved[:, :3], axis=1).max())


def _grid_findings(case: Case, facts: CaseFacts) -> list[Finding]:
    found, image = [], str(case.image)
    if case.spacing_mm and facts.apart > max(case.spacing_mm):
        message = f"its sform and qform place voxels up to {facts.apart:.3g} mm apart"
        fix = "the sform is used; write the right one to both"
        found.append(warning_finding("two_grids", image, message, fix))
    if facts.unknown:
        message = "sform_code and qform_code are 0: left and right are a guess"
        fix = "convert it from its source again"
        found.append(warning_finding("no_orientation", image, message, fix))
    if facts.turned > TURNED:
        message = f"its grid is turned by {facts.turned:.0f} degrees against the body's axes"
        fix = "leave it if all cases are like this; otherwise resample it to straight axes"
        found.append(warning_finding("oblique", image, message, fix))
    is_stack = case.shape[2] > 1  # a single picture has no spacing between slices
    if is_stack and case.spacing_mm and max(case.spacing_mm) > ANISOTROPY * min(case.spacing_mm):
        shown = " x ".join(f"{side:.3g}" for side in case.spacing_mm)
        message = f"its voxels are {shown} mm (row, column, slice)"
        fix = "slice along the axis with the largest spacing (data.axis=auto)"
        found.append(warning_finding("anisotropic", image, message, fix))
    return found


def _class_findings(
    cases: Sequence[Case], table: ClassTable, splits: Splits, root: str
) -> list[Finding]:
    found = []
    for name, values in zip(table.names, table.values, strict=True):
        holding = [case for case in cases if set(values) & set(case.values)]
        names = {case.name for case in holding}
        if not holding:
            message = f"class {name} ({', '.join(map(str, values))}) occurs in no case"
            fix = "check the values in data.classes, or leave the class out"
            found.append(warning_finding("class_absent", root, message, fix))
        elif len(holding) == 1 and len(cases) > 1:
            message = f"class {name} occurs only in this case, of {len(cases)}"
            fix = "add cases with it, or leave the class out"
            found.append(warning_finding("rare_class", str(holding[0].image), message, fix))
        parts = ("train", "val") if splits.val else ("train",)
        for split in parts if holding and splits.rule and not splits.slab else ():
            if not names & set(getattr(splits, split)):
                does = "not learned" if split == "train" else "not scored"
                message = f"class {name} occurs in no case of {split}, so it is {does}"
                fix = "use more cases, or another split (data.val_every)"
                found.append(warning_finding("class_missing_in_split", root, message, fix))
    return found


def _outliers(cases: Sequence[Case]) -> list[Finding]:
    found = []
    spaced = [case for case in cases if case.spacing_mm]
    kinds = (
        ("spacing_outlier", "spacing", spaced, [case.spacing_mm for case in spaced], SPACING_RATIO),
        ("size_outlier", "size", cases, [case.shape for case in cases], SIZE_RATIO),
    )
    for code, what, members, sides, most in kinds:
        if not members:
            continue
        # The ratio to the median is at least 1, whether a side is larger or smaller.
        measured = np.array(sides, dtype=float)
        usual = np.median(measured, axis=0)
        ratios = np.maximum(measured / usual, usual / measured).max(axis=1)
        for case, own, ratio in zip(members, measured.tolist(), ratios.tolist(), strict=True):
            if ratio > most:
                shown, median = (
                    " x ".join(f"{v:.3g}" for v in side) for side in (own, usual.tolist())
                )
                message = f"its {what} is {shown}; the median is {median} (row, column, slice)"
                fix = "check the header, and that the case belongs here"
                found.append(warning_finding(code, str(case.image), message, fix))
    return found


def _same_masks(cases: Sequence[Case], facts: Mapping[str, CaseFacts]) -> list[Finding]:
    first: dict[str, Case] = {}
    found = []
    for case in cases:
        mask = facts[case.name].mask
        # Empty masks (no hash) are equal without a mistake, and so are copies of an image.
        other = first.setdefault(mask, case) if mask else case
        if other is not case and other.digest != case.digest:
            together = case.labels == other.labels  # one JSON file holds the masks of many pictures
            known = other.image if together or other.labels is None else other.labels
            message = f"equals the mask of another image, {known}"
            fix = "check that each mask belongs to its image"
            where = str(case.image if together or case.labels is None else case.labels)
            found.append(warning_finding("same_mask", where, message, fix))
    return found
