"""Classes that are named by colour (``data.classes={liver: "#ff0000"}``), and ``data.background``.

The colours of a mask become label values: the k-th colour in ``data.classes`` becomes k, and the
background becomes 0. From then on everything works as with numbers. Colours that no class uses
count as background, and a finding reports their share of the pixels. Inside this package a colour
is one integer, 0xRRGGBB.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from samadapt.errors import ConfigError
from samadapt.system.arrays import Array

BLACK = 0
REST = "rest"
"""``data.background=rest``: every colour that no class uses is background, without a finding."""


@dataclass(frozen=True)
class Colours:
    """What the colours of masks mean.

    Attributes:
        values: label value, from 1, of each colour (0xRRGGBB). Empty: every colour except the
            background's becomes 1, and all masks together may have only one such colour.
        background: colours that become label value 0.
        rest_is_background: other colours are background without being reported.
        ignored: label value of each colour whose pixels are not annotated. These values follow
            those of the classes.
    """

    values: Mapping[int, int] = field(default_factory=dict)
    background: frozenset[int] = frozenset({BLACK})
    rest_is_background: bool = False
    ignored: Mapping[int, int] = field(default_factory=dict)


def resolve_colours(classes: Any, background: Any) -> tuple[Any, Colours | None]:
    """Replace colours in the class choice by label values, and return what each colour means.

    Args:
        classes: ``data.classes``: names, ``{name: value or values}``, or ``{name: colour or
            colours}`` with colours as ``"#ff0000"``, ``"ff0000"``, ``"#f00"`` or a name.
        background: ``data.background``: a colour, colours, or ``rest``; None: black.

    Returns:
        The choice for ``classes.make_table``, and the meaning of colours; None where neither
        argument names a colour.

    Raises:
        ConfigError: numbers and colours are mixed, a colour cannot be parsed, or it has two
            meanings.
    """
    given = [background] if isinstance(background, str) else list(background or [])
    rest = REST in given
    behind = frozenset(parse_colour("data.background", text) for text in given if text != REST)
    named = _named(classes)
    if named is None:
        if background is None:
            return classes, None
        if isinstance(classes, Mapping) or not behind:
            raise ConfigError(
                "data.background says which colour is background; name the classes by colour too, "
                'as data.classes={liver: "#ff0000"}'
            )
        return classes, Colours({}, behind, rest)
    # Without data.background black is background, unless a class has this colour.
    behind = behind or frozenset({BLACK} - {colour for item in named.values() for colour in item})
    values: dict[int, int] = {}
    owners: dict[int, str] = {}
    for name, colours in named.items():
        for colour in colours:
            if colour in behind:
                raise ConfigError(
                    f"data.classes.{name}: {show(colour)} is the background's colour; name "
                    "another one with data.background"
                )
            if owners.setdefault(colour, name) != name:
                raise ConfigError(
                    f"data.classes: the colour {show(colour)} belongs to {owners[colour]!r} and to "
                    f"{name!r}; each colour may belong to one class"
                )
            values.setdefault(colour, len(values) + 1)
    # From here on each colour is its label value, so classes are chosen as with numbers.
    choice = {
        name: sorted({values[colour] for colour in colours}) for name, colours in named.items()
    }
    return choice, Colours(values, behind, rest)


def with_ignored(
    colours: Colours | None, ignore: Sequence[int | str] | None
) -> tuple[Colours | None, tuple[int, ...] | None]:
    """Add the colours of ``data.ignore``, and return the ignored label values as well.

    Raises:
        ConfigError: ``data.ignore`` names colours where classes are numbers, or numbers where
            classes are colours, or a colour has two meanings.
    """
    if ignore is None:
        return colours, None
    texts = [value for value in ignore if isinstance(value, str)]
    numbers = tuple(value for value in ignore if not isinstance(value, str))
    if (texts and colours is None) or (numbers and colours is not None):
        raise ConfigError(
            "data.ignore and data.classes must both use label values, or "
            f'both use colours such as "#ff0000"; got data.ignore={list(ignore)}'
        )
    if colours is None:
        return None, numbers
    # Ignored colours get the label values after those of the classes.
    first = max(colours.values.values(), default=1) + 1
    found = dict.fromkeys(parse_colour("data.ignore", text) for text in texts)
    for colour in found:
        if colour in colours.values or colour in colours.background:
            raise ConfigError(
                f"data.ignore: {show(colour)} is the colour of a class or of the background too"
            )
    ignored = {colour: first + place for place, colour in enumerate(found)}
    return replace(colours, ignored=ignored), tuple(ignored.values())


def parse_colour(key: str, text: object) -> int:
    """Return a colour such as ``"#ff0000"``, ``"ff0000"``, ``"#f00"`` or ``"red"`` as 0xRRGGBB.

    Raises:
        ConfigError: it is not a colour; the message names ``key``.
    """
    from PIL import ImageColor

    word = str(text).strip()
    # Pillow expects a # before hexadecimal digits.
    bare = re.fullmatch("[0-9a-fA-F]{6}", word)
    try:
        red, green, blue, *alpha = ImageColor.getrgb(f"#{word}" if bare else word)
    except ValueError:
        alpha = [0]
    if alpha not in ([], [255]):
        numbers = "label values or " if key.startswith("data.classes") else ""
        raise ConfigError(f'{key}: expected {numbers}a colour such as "#ff0000"; got {text!r}')
    return red << 16 | green << 8 | blue


def show(colour: int) -> str:
    """Return 0xRRGGBB as ``"#rrggbb"``."""
    return f"#{colour:06x}"


def pack(channels: Array) -> Array:
    """Return colours (..., 3) uint8 as one number each, (...) int32 0xRRGGBB."""
    red, green, blue = (channels[..., index].astype(np.int32) for index in range(3))
    return red << 16 | green << 8 | blue


def count_colours(packed: Array) -> dict[int, int]:
    """Return the number of pixels of each colour, the most frequent colour first."""
    found, counts = np.unique(packed, return_counts=True)
    # A stable order, so that equally frequent colours stay sorted by their value.
    order = np.argsort(-counts, kind="stable")
    return {int(found[place]): int(counts[place]) for place in order}


def list_colours(counts: Mapping[int, int], pixels: int, most: int = 8) -> str:
    """Return colours and their shares of a picture as text.

    Args:
        counts: pixels of each colour, the most frequent first.
        pixels: pixels of the whole picture.
        most: how many colours are listed; the others are summed.
    """
    shown = [f"{show(colour)} ({_share(n / pixels)})" for colour, n in list(counts.items())[:most]]
    rest = list(counts.values())[most:]
    if rest:
        shown.append(f"and {len(rest)} more ({_share(sum(rest) / pixels)})")
    return ", ".join(shown)


def recode(packed: Array, colours: Colours) -> tuple[Array, dict[int, int]]:
    """Return the label values of packed colours, and the pixels of each colour without a meaning.

    Args:
        packed: (h, w) 0xRRGGBB.
        colours: what they mean.

    Returns:
        (h, w) int32 label values, and the number of pixels of each colour that no class uses; these
        pixels have the value 0.
    """
    # Only the background is named: every other colour is foreground, with the value 1.
    if not colours.values:
        values = np.ones(packed.shape, np.int32)
        for colour, value in {**dict.fromkeys(colours.background, 0), **colours.ignored}.items():
            values[packed == colour] = value
        return values, {}
    values = np.zeros(packed.shape, np.int32)
    known = np.isin(packed, list(colours.background))
    for colour, value in {**colours.values, **colours.ignored}.items():
        here = packed == colour
        values[here] = value
        known |= here
    return values, {} if known.all() else count_colours(packed[~known])


def is_blend(unknown: Mapping[int, int], pixels: int) -> bool:
    """Return whether unnamed colours look like smoothed edges: many colours, most of them rare.

    More than 16 colours are too many for classes that somebody forgot to name. A colour is rare if
    less than a thousandth of the picture has it.
    """
    # Smoothing mixes two colours along edges, so each mixture has few pixels.
    rare = sum(count < 0.001 * pixels for count in unknown.values())
    return len(unknown) > 16 and 2 * rare > len(unknown)


def _named(classes: Any) -> dict[str, tuple[int, ...]] | None:
    """Return the colours of each class; None where the classes are numbers or names."""
    if not isinstance(classes, Mapping):
        return None
    items = {
        str(name): [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
        for name, value in classes.items()
    }
    texts = [isinstance(value, str) for values in items.values() for value in values]
    if not any(texts):
        return None
    if not all(texts):
        raise ConfigError(
            "data.classes mixes label values and colours; use one of them for all. A colour "
            'of digits alone needs its #: "#112233"'
        )
    return {
        name: tuple(parse_colour(f"data.classes.{name}", value) for value in values)
        for name, values in items.items()
    }


def _share(share: float) -> str:
    return f"{share:.2%}" if share >= 0.0001 else "below 0.01%"
