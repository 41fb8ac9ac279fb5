"""Train on some of the training cases, as if the others had no labels yet.

``data.train_cases=n`` keeps the first n training cases of an order that ``data.draw`` chooses.
Fewer cases are therefore always a part of more cases, and scores for rising n show what more labels
bring (``samadapt curve``). The held-out cases are the same for every n and every draw::

    order of draw 0    c  f  a  e  b  d        (held out: g, h)
    train_cases=2      c  f
    train_cases=4      c  f  a  e

The order goes patient by patient, as labels are made: the cases of one patient follow one another.
Where n ends inside a patient, his last cases stay unused, and the rule of ``splits.json`` says so.

The place of a patient, and of a case within its patient, is a hash of the draw and the name. It
does not depend on which other cases there are, so a case that is labelled later moves no other one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from samadapt.data.dataset import Dataset
from samadapt.data.types import Case
from samadapt.errors import ConfigError


def use_training_cases(dataset: Dataset, count: int | None, draw: int) -> Dataset:
    """Return the data set with ``count`` of its training cases; the others are unused.

    Args:
        dataset: as it was opened, with all of its training cases.
        count: number of training cases to keep, those that choose the best step included; None:
            all.
        draw: chooses the order. Of the same draw, fewer cases are a part of more.

    Raises:
        ConfigError: there are fewer training cases.
    """
    if count is None:
        return dataset
    splits = dataset.case_splits
    train, held_out = len(splits.train), len(splits.val)
    if count > train:
        raise ConfigError(
            f"data.train_cases={count}: there are {train} training cases beside {held_out} "
            f"held-out ones. Use at most {train}, or leave data.train_cases out to use all"
        )
    cases = [dataset.case(name) for name in splits.train]
    order = drawn_order([(case.patient, case.name) for case in cases], draw)
    used = set(order[:count])
    rule = f"{splits.rule}; {count} of {train} training cases are used (draw {draw})"
    return replace(
        dataset,
        case_splits=replace(
            splits,
            train=[name for name in splits.train if name in used],
            unused=[name for name in splits.train if name not in used],
            rule=rule + _divided(cases, used),
        ),
    )


def drawn_order(cases: Sequence[tuple[str, str]], draw: int) -> list[str]:
    """Return case names in the order of a draw.

    Args:
        cases: the patient and the name of each case; an empty patient makes a case its own.
        draw: chooses the order.
    """
    owners = {name: f"patient {patient}" if patient else f"case {name}" for patient, name in cases}

    def place(name: str) -> tuple[str, str, str]:
        # The owner itself stands between the hashes, so that no two patients are ever mixed.
        return _hash(draw, owners[name]), owners[name], _hash(draw, name)

    return sorted(owners, key=place)


def _hash(draw: int, name: str) -> str:
    # File names that are no UTF-8 hold surrogates.
    return hashlib.sha256(f"{draw} {name}".encode("utf-8", "surrogateescape")).hexdigest()


def _divided(cases: Sequence[Case], used: set[str]) -> str:
    """Return the remark about the patient in whom the number ends; empty if there is none."""
    patients: dict[str, list[bool]] = {}
    for case in cases:
        if case.patient:
            patients.setdefault(case.patient, []).append(case.name in used)
    for found in patients.values():
        if any(found) and not all(found):
            return f", of the last patient {sum(found)} of {len(found)} cases"
    return ""
