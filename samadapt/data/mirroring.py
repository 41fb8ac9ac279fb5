"""Which mirrored copies of an image a prediction may be averaged over.

A mirrored copy must be an image that could have been taken, and its labels must mean the same:

- Every image is mirrored from left to right. A mirrored photograph is a photograph, and a mirrored
  slice is that of a body whose sides are exchanged. In sagittal slices front and back are.
- A picture under a microscope (``data.intensity=microscopy``) has no upper side. It is also turned
  upside down, and both. Photographs and slices of a patient are not: gravity and anatomy have a
  direction.
- Classes that name a side, such as ``kidney_left``, would change places. A model that predicts such
  classes without prompts is refused the mirroring. With prompts the user names the class of an
  object, so a mirrored mask is the same mask.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import permutations

from samadapt.data.intensity import IntensityRule
from samadapt.errors import PromptError
from samadapt.sam.mirror import AS_IT_IS, Mirror

SIDES = {
    *("left", "right", "lt", "rt", "lft", "rgt", "lh", "rh", "sin", "dex", "sinister", "dexter"),
    *("sinistra", "dextra", "sinistro", "destra", "destro", "links", "rechts", "linke", "rechte"),
    *("gauche", "droite", "droit", "izquierda", "izquierdo", "derecha", "derecho"),
}
"""Words that name a side, in the languages and abbreviations of anatomical label lists."""

_LETTERS = {"l", "r"}
_SHORT = 3
"""Longest word that may be an abbreviation such as LV, RV or RUL."""


def mirrors_of(rule: IntensityRule, *, is_picture: bool) -> tuple[Mirror, ...]:
    """Return the mirrorings of an image that a prediction is averaged over, itself first.

    Args:
        rule: the intensity rule, which tells microscopy from other pictures.
        is_picture: it is one picture, not a volume.
    """
    rules = rule.inputs or rule.channels or (rule,)
    if is_picture and all(one.kind == "all_percentile" for one in rules):
        return AS_IT_IS, (1,), (0,), (0, 1)
    return AS_IT_IS, (1,)


def refuse_sides(classes: Sequence[str], key: str) -> None:
    """Refuse to mirror images for a model that predicts classes which name a side.

    Args:
        classes: the class names.
        key: the key that asks for the mirroring, for the message.

    Raises:
        PromptError: naming the classes.
    """
    found = sided(classes)
    if found:
        raise PromptError(
            f"{key}: a mirrored image exchanges left and right, and the class"
            f"{'es' * (len(found) > 1)} {', '.join(found)} name{'s' * (len(found) == 1)} a side; "
            f"leave {key.partition('=')[0]} out"
        )


def sided(classes: Sequence[str]) -> list[str]:
    """Return the classes that name a side of the body or of the image.

    A class names a side if one of its words is in ``SIDES`` or begins with "left" or "right"; if
    one of several words is the letter L or R (``lung_l``, ``L-kidney``, ``kidneyR``); or if another
    class has the same name except for one abbreviation that begins with L in the one and with R in
    the other (``LV`` and ``RV``). When in doubt a name counts: that costs a mirrored copy, and
    mirrored sides would cost the labels.
    """
    words = {name: words_of(name) for name in classes}
    found = {name for name, parts in words.items() if _names_side(parts)}
    for one, other in permutations(classes, 2):
        if _are_sides(words[one], words[other]):
            found |= {one, other}
    return [name for name in classes if name in found]


def words_of(name: str) -> list[str]:
    """Return the words of a class name in lower case: ``leftLung_2`` is left, lung and 2."""
    # A capital letter begins a word after a small one, and before one after other capitals.
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return [word.lower() for word in re.split(r"[\W_]+", apart) if word]


def _names_side(words: Sequence[str]) -> bool:
    return any(
        word in SIDES or word.startswith(("left", "right")) or (len(words) > 1 and word in _LETTERS)
        for word in words
    )


def _are_sides(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two names differ in one short word alone, and there in L against R at the start."""
    if len(one) != len(other):
        return False
    apart = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    if len(apart) != 1:
        return False
    first, second = apart[0]
    short = len(first) == len(second) <= _SHORT and first[1:] == second[1:]
    return short and {first[0], second[0]} == _LETTERS
