"""The class table: which label values of the mask files belong to which class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samadapt.data.types import IGNORED
from samadapt.errors import ConfigError, nearest
from samadapt.system.arrays import Array

ClassValues = Mapping[str, tuple[int, ...]]
ClassChoice = Sequence[str] | Mapping[str, int | str | Sequence[int | str]] | None
"""Strings in a mapping are colours, which ``colours.resolve_colours`` turns into values."""
Ignore = int | str | Sequence[int | str] | None
"""Mask values without loss and score; strings are colours."""


@dataclass(frozen=True)
class ClassTable:
    """Maps the values of the mask files to class ids 1..K; 0 is background.

    Attributes:
        names: class names; class id i + 1 is ``names[i]``.
        values: the mask values of each class.
        complete: the table lists all values that may occur, and another value is an error. If
            False, other values are background.
        merged: names of the classes that were merged into one.
        ignored: mask values of pixels that are neither of a class nor background.
        overlapping: a value may belong to several classes. The ids of label maps then number the
            values instead of the classes.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    complete: bool = True
    merged: tuple[str, ...] = ()
    ignored: tuple[int, ...] = ()
    overlapping: bool = False

    @property
    def parts(self) -> tuple[tuple[int, ...], ...]:
        """The mask values of each id 1, 2, ... of a label map.

        These are the values of a class, or a single value where classes overlap.
        """
        if not self.overlapping:
            return self.values
        return tuple((value,) for value in sorted({v for values in self.values for v in values}))

    @property
    def members(self) -> Array | None:
        """(K, n + 1) bool: which ids 0..n of label maps belong to which class; None: no overlap."""
        if not self.overlapping:
            return None
        parts = [None, *(value for (value,) in self.parts)]
        return np.array([[value in values for value in parts] for values in self.values])

    def id_of(self, name: str) -> int:
        """Return the class id of a name that an annotation uses; 0 where no class has this name."""
        if name in self.merged:
            return 1
        return self.names.index(name) + 1 if name in self.names else 0

    def unknown(self, found: Iterable[int]) -> list[int]:
        """Return the values that neither belong to a class nor count as background, sorted."""
        if not self.complete:
            return []
        known = {0, *self.ignored}.union(*self.values)
        return sorted(set(found) - known)

    def remap(self, labels: Array) -> Array:
        """Map values of mask files to ids.

        Args:
            labels: integers of any shape.

        Returns:
            int16 in the same shape: ids of ``parts``, 0 for background, ``IGNORED``.
        """
        # Label value to id: ids start at 1, because 0 is background.
        lookup = {value: i + 1 for i, values in enumerate(self.parts) for value in values}
        lookup |= dict.fromkeys(self.ignored, IGNORED)
        low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
        if low >= 0 and high < 65536:  # one look-up for each voxel, whatever the number of classes
            table = np.zeros(high + 1, dtype=np.int16)
            for value, index in lookup.items():
                if 0 <= value <= high:
                    table[value] = index
            return table[labels]
        ids = np.zeros(labels.shape, dtype=np.int16)
        for value, index in lookup.items():
            ids[labels == value] = index
        return ids

    def annotated(self, values: Sequence[int], presence: Array, zeros: Array) -> Array:
        """Return (d,) bool: whether a slice contains any value that is not ignored.

        Args:
            values: n label values other than 0.
            presence: (d, n) bool: which of them occurs in which slice.
            zeros: (d,) bool: in which slices the value 0 occurs.
        """
        counted = np.array([value not in self.ignored for value in values], dtype=bool)
        found: Array = np.any(presence[:, counted], axis=1)
        return found if 0 in self.ignored else found | zeros

    def presence(self, values: Sequence[int], presence: Array) -> Array:
        """Turn (d, len(values)) presence of values into (d, K) presence of classes."""
        # Which columns of ``presence`` belong to which class; a class may have several values.
        columns = [np.isin(values, wanted) for wanted in self.values]
        return np.stack([presence[:, column].any(axis=1) for column in columns], axis=1)


def make_table(
    declared: ClassValues | None,
    chosen: ClassChoice,
    found: Iterable[int],
    *,
    merge: bool = False,
    ignored: Iterable[int] = (),
    regions: Mapping[str, int | Sequence[int]] | None = None,
) -> ClassTable:
    """Decide which label values are which class.

    Args:
        declared: what the card or the data set's own file lists. Other values are an error.
        chosen: the user's choice. A mapping ``{name: value or [values]}`` lists the classes, and
            other values are background. A list of names chooses among declared classes, and the
            others are background. Where nothing is declared, name i in the list has the value
            i + 1; a single name takes the single value that was found, so a mask of 0 and 255 has
            one class.
        found: all values other than 0 that occur in the masks. Where nothing is declared or chosen
            each is a class: ``foreground`` if there is only one, else ``class_<value>``.
        merge: merge all listed classes into one, ``foreground``.
        ignored: values without loss and score; they belong to no class.
        regions: classes that may overlap, ``{name: value or [values]}``, instead of ``chosen``
            and ``declared``; other values are background.

    Raises:
        ConfigError: an unknown name, a value of 0, a value in two classes, no class at all, a
            value below 0 without a declared meaning, an ignored value that is also a class, or
            regions together with chosen or merged classes.
    """
    if regions is not None:
        return _overlapping(regions, chosen, merge, tuple(sorted(set(ignored))))
    complete = True
    # Ignored values are neither classes nor background.
    unused = tuple(sorted(set(ignored)))
    found = set(found) - set(unused)
    if isinstance(chosen, Mapping):
        table = {str(name): _as_values(name, value) for name, value in chosen.items()}
        complete = False
    elif chosen and declared is not None:
        table = {name: _pick(declared, name) for name in chosen}
        complete = set(table) == set(declared)
    elif chosen:
        table = _number(chosen, sorted(set(found)))
    elif declared is not None:
        table = dict(declared)
    else:
        table = _discover(sorted(set(found)))
    _check(table, unused)
    if merge:
        values = tuple(sorted({value for values in table.values() for value in values}))
        return ClassTable(("foreground",), (values,), complete, tuple(table), unused)
    return ClassTable(tuple(table), tuple(table.values()), complete, ignored=unused)


def _overlapping(
    regions: Mapping[str, int | Sequence[int]],
    chosen: ClassChoice,
    merge: bool,
    ignored: tuple[int, ...],
) -> ClassTable:
    if merge or isinstance(chosen, Mapping):
        key = "merge_classes" if merge else "classes"
        raise ConfigError(
            f"data.regions declares classes that may overlap, so data.{key} cannot be used; "
            f"leave out data.{key}"
        )
    table = {str(n): _as_values(n, value, "data.regions") for n, value in regions.items()}
    if chosen:
        table = {name: _pick(table, name) for name in chosen}
    _check(table, ignored, "data.regions")
    # The table is not complete: values of no region are background.
    return ClassTable(tuple(table), tuple(table.values()), False, (), ignored, True)


def values_of(value: Any) -> tuple[Any, ...]:
    """Return one label value, or several, as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _as_values(name: str, value: Any, key: str = "data.classes") -> tuple[int, ...]:
    values = values_of(value)
    if not values or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise ConfigError(f"{key}.{name} must be a label value or a list of them; got {value!r}")
    return values


def _pick(declared: ClassValues, name: str) -> tuple[int, ...]:
    if name not in declared:
        known = ", ".join(declared)
        raise ConfigError(
            f"data.classes: the data set has no class {name!r}; it has: {known}"
            + nearest(name, declared)
        )
    return declared[name]


def _number(names: Sequence[str], found: Sequence[int]) -> dict[str, tuple[int, ...]]:
    if len(names) == 1 and len(found) == 1:
        return {names[0]: (found[0],)}
    return {name: (index + 1,) for index, name in enumerate(names)}


def _discover(found: Sequence[int]) -> dict[str, tuple[int, ...]]:
    below = [value for value in found if value < 0]
    if below:  # for example -1 where nobody labelled
        raise ConfigError(
            f"data.classes: the masks hold values below 0 ({below[0]}), which are not taken as "
            "classes: list the classes with data.classes={name: value}, or leave these pixels out "
            f"of loss and scores with data.ignore={below[0]}"
        )
    if len(found) <= 1:
        return {"foreground": tuple(found) or (1,)}
    return {f"class_{value}": (value,) for value in found}


def _check(
    table: Mapping[str, tuple[int, ...]], ignored: Sequence[int], key: str = "data.classes"
) -> None:
    if not table:
        raise ConfigError(f"{key} names no class; give at least one, such as {{liver: 1}}")
    seen: dict[int, str] = {}
    for name, values in table.items():
        for value in values:
            if value == 0:
                raise ConfigError(f"{key}.{name}: the value 0 is background; leave it out")
            if value in ignored:
                raise ConfigError(
                    f"data.ignore: the value {value} belongs to the class {name!r}; a value is "
                    "either ignored or belongs to a class"
                )
            if seen.setdefault(value, name) != name and key == "data.classes":
                raise ConfigError(
                    f"data.classes: the value {value} belongs to {seen[value]!r} and to {name!r}; "
                    "each value may belong to one class. For classes that overlap use data.regions"
                )


def chosen_values(choice: ClassChoice, values: Mapping[str, int]) -> dict[str, int]:
    """Return the names and values that a choice of classes uses; all of them without a choice.

    Args:
        choice: names of the files, or the user's own names with values.
        values: label value of each name in the files.
    """
    if isinstance(choice, Mapping):
        listed = [[item] if isinstance(item, int | str) else item for item in choice.values()]
        used = {value for item in listed for value in item}
        return {name: value for name, value in values.items() if value in used}
    return {name: value for name, value in values.items() if not choice or name in choice}
