"""Compare the palettes of masks: only if they agree can palette indices be class numbers.

Paint programs and GIF writers order palettes freely. The same colour may be index 1 in one file and
2 in the next, and the object may be index 0. Only colours that occur in a mask are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samadapt.data.colours import BLACK, Colours, show
from samadapt.data.findings import Finding, FindingError, error_finding
from samadapt.data.formats.base import Scan
from samadapt.data.mask_rules import MaskRules
from samadapt.data.types import Case

_BY_COLOUR = 'name the classes by colour, as data.classes={{NAME: "{}"}}'


def check_palettes(scan: Scan, masks: MaskRules) -> None:
    """Report palettes that disagree or whose index 0 is not the background.

    The affected cases are left out.

    Args:
        scan: its cases hold the colours that occur in their masks.
        masks: how masks are read. If the user named colours, they decide. Object numbers may have
            any colour, so only the index of the background is checked for them.
    """
    # Only masks with a palette, or with colours of which one may be the foreground.
    painted = [case for case in scan.cases if case.colours]
    if masks.colours is not None:
        _check_single_colour(scan, painted, masks.colours)
        return
    if not masks.one_class:
        for case in painted:
            if finding := _double(case):
                _leave_out(scan, [case], finding)
        # Cases whose palette has a colour twice have just been left out.
        painted = [case for case in scan.cases if case.colours]
        if finding := _conflict(painted):
            _leave_out(scan, painted, finding)
            return
    odd = [case for case in painted if _has_odd_background(case)]
    if odd:
        _leave_out(scan, odd, _background_finding(odd))


def check_palette(path: Path, colours: Sequence[tuple[int, int]]) -> None:
    """Refuse a single mask whose palette does not fit its indices.

    Args:
        path: the mask.
        colours: pairs of an index that occurs and its colour (0xRRGGBB).

    Raises:
        FindingError: two indices have the same colour, or index 0 is not black, or black is
            another index.
    """
    case = Case(path.stem, path, path, colours=tuple(colours))
    finding = _double(case) or (_background_finding([case]) if _has_odd_background(case) else None)
    if finding is not None:
        raise FindingError(finding)


def _check_single_colour(scan: Scan, painted: Sequence[Case], colours: Colours) -> None:
    """Refuse several foreground colours if the user named only the background's colour."""
    found = sorted({colour for case in painted for _, colour in case.colours})
    if len(found) < 2 or colours.values:
        return
    shown = ", ".join(map(show, found[:8])) + (", ..." if len(found) > 8 else "")
    message = f"expected one colour beside the background; the masks have {shown}"
    finding = _error("several_colours", painted[0], message, _BY_COLOUR.format(show(found[0])))
    _leave_out(scan, painted, finding)


def _double(case: Case) -> Finding | None:
    """Find two palette indices of one mask that occur and have the same colour."""
    seen: dict[int, int] = {}
    for index, colour in case.colours:
        if seen.setdefault(colour, index) != index:
            message = (
                f"the palette indices {seen[colour]} and {index} both occur and have the colour "
                f"{show(colour)}, so they cannot be told apart"
            )
            fix = "save class numbers as a grey PNG, or "
            return _error("palette_double", case, message, fix + _BY_COLOUR.format(show(colour)))
    return None


def _conflict(painted: Sequence[Case]) -> Finding | None:
    """Find two masks in which an index has two colours, or a colour has two indices."""
    # Remember for each index the first colour, and for each colour the first index.
    colour_of: dict[int, tuple[int, Case]] = {}
    index_of: dict[int, tuple[int, Case]] = {}
    for case in painted:
        for index, colour in case.colours:
            other, where = colour_of.setdefault(index, (colour, case))
            place, there = index_of.setdefault(colour, (index, case))
            if other != colour:
                reason = f"palette index {index} is {show(colour)}, but {show(other)} in "
                return _conflict_finding(case, reason + _file_name(where), painted)
            if place != index:
                reason = f"{show(colour)} is palette index {index}, but index {place} in "
                return _conflict_finding(case, reason + _file_name(there), painted)
    return None


def _conflict_finding(case: Case, reason: str, painted: Sequence[Case]) -> Finding:
    found = sorted({colour for one in painted for _, colour in one.colours} - {BLACK})
    shown = ", ".join(map(show, found[:12])) + (", ..." if len(found) > 12 else "")
    message = (
        f"{reason}, so indices have no common meaning. The colours are {shown}, and black if any"
    )
    fix = _BY_COLOUR.format(show(found[0]) if found else "#ff0000")
    fix += ', and the background with data.background="#000000" if it is not black'
    return _error("palette_conflict", case, message, fix)


def _has_odd_background(case: Case) -> bool:
    """Return whether index 0 occurs and is not black, or black occurs as another index."""
    return any((index == 0) is not (colour == BLACK) for index, colour in case.colours)


def _background_finding(odd: Sequence[Case]) -> Finding:
    first = odd[0]
    shown = ", ".join(f"{index} is {show(colour)}" for index, colour in first.colours[:6])
    others = f" (and in {len(odd) - 1} more masks)" if len(odd) > 1 else ""
    message = (
        f"index 0 is read as background, but in this palette{others} another index is black, or "
        f"none is: index {shown}"
    )
    dark = next((colour for _, colour in first.colours if colour == BLACK), first.colours[0][1])
    fix = f'name the background\'s colour, as data.background="{show(dark)}"'
    fix += "; if there are several other colours, name the classes by colour in data.classes"
    return _error("palette_background", first, message, fix)


def _leave_out(scan: Scan, cases: Sequence[Case], finding: Finding) -> None:
    scan.findings.append(finding)
    names = {case.name for case in cases}
    scan.left_out.extend(sorted(names))
    scan.cases = [case for case in scan.cases if case.name not in names]


def _file_name(case: Case) -> str:
    return (case.labels or case.image).name


def _error(code: str, case: Case, message: str, fix: str) -> Finding:
    return error_finding(code, case.labels or case.image, message, fix)
