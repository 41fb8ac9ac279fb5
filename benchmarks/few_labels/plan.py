"""Which cells are measured, and in which order.

A cell is one training: an arm on a data set with a number of labels, a draw and a budget. First
come the cells of 4 minutes on 2 cores with three seeds, then the large budget for the U-Net and the
better new arm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.few_labels.arms import ARMS, BASELINE, BUDGET, CANDIDATES, NO_OTHER_END
from benchmarks.few_labels.domains import DOMAINS, FOLDER, Domain
from samadapt.config.compose import read_yaml, recipe_path

SMALL, LARGE = 480, 1920
"""CPU-seconds: 4 and 16 minutes on 2 cores."""
SEEDS = 3
FIRST = "msd_hippocampus"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        arm, domain: names.
        labels: number of labels, in the unit of the data set.
        draw: which labels, and the seed.
        budget: CPU-seconds.
    """

    arm: str
    domain: str
    labels: int
    draw: int
    budget: int

    @property
    def keys(self) -> tuple[str, ...]:
        """The arguments of ``samadapt finetune`` that do not depend on the machine."""
        arm, domain = ARMS[self.arm], DOMAINS[self.domain]
        patient = [f"data.patient={domain.patient}"] if domain.patient else []
        return (
            f"recipe={arm.recipe(domain)}",
            *domain.keys,
            *patient,
            *arm.keys(domain),
            f"data.draw={self.draw}",
            f"seed={self.draw}",
            *NO_OTHER_END,
            f"{BUDGET}={self.budget}",
        )

    @property
    def digest(self) -> str:
        """Changes with the keys and the recipe, so a row of others is not taken for this cell's."""
        return _digest(self.keys)

    def is_in(self, row: Row) -> bool:
        """Whether a row of the results is of this cell."""
        named = ("arm", "domain", "labels", "draw", "budget", "digest")
        return all(row.get(name) == getattr(self, name) for name in named)


@cache
def _digest(keys: tuple[str, ...]) -> str:
    recipe, *_ = keys
    values = json.dumps(read_yaml(recipe_file(recipe.partition("=")[2])), sort_keys=True)
    return hashlib.sha256("\n".join([*keys, values]).encode()).hexdigest()[:12]


def recipe_file(recipe: str) -> Path:
    """Return the file of a recipe: in this folder, or one that samadapt ships."""
    return FOLDER / recipe if recipe.endswith(".yaml") else recipe_path(recipe)


def cells(rows: Iterable[Row] = ()) -> list[Cell]:
    """Return all cells in the order in which they are measured.

    Args:
        rows: the results so far; they decide which new arm gets the large budget.
    """
    small = [*_hippocampus(ARMS, SMALL, SEEDS), *_others()]
    better = better_arm(rows)
    arms = [BASELINE, *([better] if better else [])]
    large = [
        cell
        for cell in _hippocampus(arms, LARGE, SEEDS)
        if cell.draw == 0 or cell.labels == DOMAINS[FIRST].labels[0]
    ]
    return [*small, *large]


def _hippocampus(arms: Iterable[str], budget: int, seeds: int) -> Iterator[Cell]:
    """Yield the cells of the hippocampus; few labels first, and all arms side by side."""
    for labels in DOMAINS[FIRST].labels:
        for draw in range(seeds):
            for arm in arms:
                # Boxes are compared at the middle number, as in the other data sets.
                if not ARMS[arm].has_boxes or labels == DOMAINS[FIRST].middle:
                    yield Cell(arm, FIRST, labels, draw, budget)


def _others() -> Iterator[Cell]:
    """Yield the cells of the other data sets: three seeds in the middle, one elsewhere."""
    others = [domain for name, domain in DOMAINS.items() if name != FIRST]
    for draw in range(SEEDS):
        for domain in others:
            for arm in ARMS:
                yield Cell(arm, domain.name, domain.middle, draw, SMALL)
    for domain in others:
        for labels in (domain.labels[0], domain.labels[2]):
            for arm in ARMS:
                if not ARMS[arm].has_boxes:
                    yield Cell(arm, domain.name, labels, 0, SMALL)


def better_arm(rows: Iterable[Row]) -> str | None:
    """Return the new arm with the higher mean Dice on the hippocampus with few labels.

    None until both are measured with the small budget and all seeds. The arms are compared by
    held-out scores here, so the large budget says nothing about how to choose between the two; the
    docs say so.
    """
    found: dict[str, list[float]] = {}
    rows = list(rows)
    for cell in _hippocampus(CANDIDATES, SMALL, SEEDS):
        if cell.labels == DOMAINS[FIRST].labels[0]:
            found.setdefault(cell.arm, []).extend(
                row["dice"] for row in rows if cell.is_in(row) and row.get("dice") is not None
            )
    if any(len(found.get(arm, ())) < SEEDS for arm in CANDIDATES):
        return None
    return max(CANDIDATES, key=lambda arm: sum(found[arm]) / len(found[arm]))


def missing(planned: Sequence[Cell], rows: Sequence[Row]) -> list[Cell]:
    """Return the cells without a row, in order."""
    return [cell for cell in planned if not any(cell.is_in(row) for row in rows)]


def label_text(domain: Domain, labels: int) -> str:
    """Return a number of labels with its unit."""
    unit = domain.unit.removesuffix("s") if labels == 1 else domain.unit
    return f"{labels} {unit}"
