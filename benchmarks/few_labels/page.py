"""Write the tables of docs/explanation/few-labels.md from the rows, with gaps where some lack."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.few_labels import rows as results
from benchmarks.few_labels.arms import ARMS, BASELINE, CANDIDATES
from benchmarks.few_labels.domains import DOMAINS, Domain, cluster_of
from benchmarks.few_labels.figure import draw
from benchmarks.few_labels.plan import LARGE, SMALL, Cell, Row, cells, label_text
from benchmarks.few_labels.scores import (
    Estimate,
    difference_of,
    mean_of,
    spread_of,
    table_of,
)
from benchmarks.table import with_section

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "explanation" / "few-labels.md"
FIGURE = DOCS / "images" / "few_labels.png"
START, END = "<!-- few_labels:start -->", "<!-- few_labels:end -->"
NOT_YET = "not measured yet"
WITHOUT_BOXES = [name for name, arm in ARMS.items() if not arm.has_boxes]

Place = tuple[str, str, int, int]
"""Arm, data set, number of labels and budget."""


def write(path: Path = results.RESULTS, *, page: Path = PAGE, check: bool = False) -> int:
    """Write the tables and the figure.

    Args:
        path: the file of rows.
        page: the page, with the two marks.
        check: change nothing and return 1 if the tables are stale.
    """
    rows = results.read(path)
    measured, planned = grouped(rows)
    text = page.read_text(encoding="utf-8")
    wanted = with_section(text, section(rows, measured, planned), START, END)
    if check:
        return int(wanted != text)
    if is_worth_a_figure(measured, planned):
        draw(measured, FIGURE)
    page.write_text(wanted, encoding="utf-8")
    return 0


def grouped(rows: Sequence[Row]) -> tuple[dict[Place, list[Row]], dict[Place, int]]:
    """Return the rows of each place in the tables, and how many are planned for it.

    Only the newest row of a planned cell counts, and only if its keys are those of today's arm.
    """
    measured: dict[Place, list[Row]] = {}
    planned: dict[Place, int] = {}
    for cell in cells(rows):
        place = _place(cell)
        planned[place] = planned.get(place, 0) + 1
        own = [row for row in rows if cell.is_in(row) and "error" not in row]
        if own:
            measured.setdefault(place, []).append(own[-1])
    return measured, planned


def _place(cell: Cell) -> Place:
    return cell.arm, cell.domain, cell.labels, cell.budget


def section(
    rows: Sequence[Row], measured: Mapping[Place, Sequence[Row]], planned: Mapping[Place, int]
) -> str:
    """Return all tables, each with a sentence that says how to read it."""
    view = View(measured, planned)
    done, whole = sum(map(len, measured.values())), sum(planned.values())
    parts = [f"{done} of {whole} trainings are measured."]
    if not measured:
        return f"{parts[0]} The tables appear with the first one."
    if is_worth_a_figure(measured, planned):
        parts.append(f"![Dice by number of labels in every data set](../images/{FIGURE.name})")
    parts += view.facts(rows)
    for budget, minutes in ((SMALL, 4), (LARGE, 16)):
        if any(place[3] == budget for place in planned):
            parts += [
                f"### Dice after {budget} CPU-seconds ({minutes} minutes on 2 cores)",
                view.dice_table(budget),
                "### Dice minus that of the U-Net, case by case"
                if budget == SMALL
                else f"### Dice minus that of the U-Net after {budget} CPU-seconds",
                view.difference_table(budget),
            ]
    parts += [
        "### Distances",
        (
            "95th percentile of the surface distance (HD95) / normalised surface Dice (NSD), at "
            "the middle number of labels. Zero-shot is the base model with exact boxes."
        ),
        view.distance_table(),
        "### Spread over draws",
        "Largest minus smallest Dice of the three draws of labelled cases.",
        view.spread_table(),
        "### With box prompts",
        "Adapted minus zero-shot, both with the same boxes from the ground truth.",
        view.box_table(),
    ]
    return "\n\n".join(parts)


def is_worth_a_figure(
    measured: Mapping[Place, Sequence[Row]], planned: Mapping[Place, int]
) -> bool:
    """Whether enough is measured, a fifth, for a figure that is not mostly empty."""
    return 5 * sum(map(len, measured.values())) >= sum(planned.values())


class View:
    """The measured rows as tables.

    Args:
        measured: the rows of each place.
        planned: how many rows each place will have.
    """

    def __init__(
        self, measured: Mapping[Place, Sequence[Row]], planned: Mapping[Place, int]
    ) -> None:
        """Keep both."""
        self.measured, self.planned = measured, planned

    def facts(self, rows: Sequence[Row]) -> Iterator[str]:
        """Yield what was run where, and the sums over all data sets."""
        machines = sorted({f"one thread of {row['processor']}" for row in rows})
        commits = sorted({row["commit"] for row in rows})
        named = commits[0] if len(commits) == 1 else f"{commits[0]} and {len(commits) - 1} others"
        costs = []
        for arm in ARMS:
            used = [
                (row["training_cpu_seconds"], row["cpu_seconds"])
                for place, found in self.measured.items()
                for row in found
                if place[0] == arm and place[3] == SMALL
            ]
            if used:
                training, whole = map(statistics.median, zip(*used, strict=True))
                costs.append(f"{ARMS[arm].title} {training:.0f} ({whole:.0f})")
        yield (
            f"Measured on {'; '.join(machines)}, commits {named}. CPU-seconds used of a budget of "
            f"{SMALL} (of the whole process, final scores included), median: {', '.join(costs)}."
        )
        yield from self._against_the_unet()

    def _against_the_unet(self) -> Iterator[str]:
        for arm in CANDIDATES:
            differences = {
                name: found.value
                for name, domain in DOMAINS.items()
                if domain.claims
                and name != "msd_hippocampus"
                and (found := self.difference(arm, domain, domain.middle, SMALL))
            }
            if differences:
                below = [name for name, value in differences.items() if value < 0]
                yield (
                    f"At the middle number of labels, {ARMS[arm].title} is "
                    f"{statistics.fmean(differences.values()):+.3f} Dice from the U-Net on average "
                    f"over {len(differences)} data sets other than the hippocampus, and below it "
                    f"in {', '.join(below) or 'none'}."
                )

    def rows_of(self, arm: str, domain: Domain, labels: int, budget: int) -> Sequence[Row]:
        """Return the rows of a place."""
        return self.measured.get((arm, domain.name, labels, budget), [])

    def difference(self, arm: str, domain: Domain, labels: int, budget: int) -> Estimate | None:
        """Return Dice minus that of the U-Net; None until both are measured.

        Where the draws differ in number, those that both have are compared.
        """
        one = self.rows_of(arm, domain, labels, budget)
        other = self.rows_of(BASELINE, domain, labels, budget)
        draws = {row["draw"] for row in one} & {row["draw"] for row in other}
        one, other = ([row for row in rows if row["draw"] in draws] for rows in (one, other))
        if not draws:
            return None
        return difference_of(one, other, "dice", partial(cluster_of, domain))

    def dice_table(self, budget: int) -> str:
        """Return Dice with its interval for each data set, number of labels and arm."""
        lines = []
        for domain, labels in self._places(budget):
            cells = [self._dice(arm, domain, labels, budget) for arm in WITHOUT_BOXES]
            lines.append([_named(domain), label_text(domain, labels), *cells])
        return table(["data set", "labelled", *_titles(WITHOUT_BOXES)], lines)

    def difference_table(self, budget: int) -> str:
        """Return the paired differences to the U-Net."""
        arms = [arm for arm in WITHOUT_BOXES if arm != BASELINE]
        lines = []
        for domain, labels in self._places(budget):
            found = [self.difference(arm, domain, labels, budget) for arm in arms]
            cells = [
                NOT_YET
                if one is None
                else one.text("+.3f") + ("" if one.p is None else f", p = {one.p:.2g}")
                for one in found
            ]
            lines.append([_named(domain), label_text(domain, labels), *cells])
        return table(["data set", "labelled", *_titles(arms)], lines)

    def distance_table(self) -> str:
        """Return HD95 and NSD at the middle number of labels, and of the base model."""
        lines = []
        for domain in DOMAINS.values():
            cells = []
            for arm in WITHOUT_BOXES:
                rows = self.rows_of(arm, domain, domain.middle, SMALL)
                cells.append(_distances(rows, domain))
            first = self.rows_of("today", domain, domain.middle, SMALL)[:1]
            base = [row["zero_shot"] for row in first if "zero_shot" in row]
            zero = f"{base[0]['hd95']:.1f} / {base[0]['nsd']:.3f}" if base else NOT_YET
            unit = "px" if domain.in_pixels else next((row["unit"] for row in first), "mm or px")
            lines.append([f"{_named(domain)} ({unit})", *cells, zero])
        return table(["data set", *_titles(WITHOUT_BOXES), "zero-shot"], lines)

    def spread_table(self) -> str:
        """Return how far the draws of labelled cases lie apart."""
        lines = []
        for domain in DOMAINS.values():
            cells = []
            for arm in WITHOUT_BOXES:
                rows = self.rows_of(arm, domain, domain.middle, SMALL)
                spread = spread_of(rows)
                planned = self.planned.get((arm, domain.name, domain.middle, SMALL), 0)
                whole = spread is not None and len(rows) == planned
                cells.append(f"{spread:.3f}" if whole else NOT_YET)
            lines.append([_named(domain), label_text(domain, domain.middle), *cells])
        return table(["data set", "labelled", *_titles(WITHOUT_BOXES)], lines)

    def box_table(self) -> str:
        """Return the gain over zero-shot with the same box prompts."""
        arm = next(name for name, one in ARMS.items() if one.has_boxes)
        lines = []
        for domain in DOMAINS.values():
            rows = self.rows_of(arm, domain, domain.middle, SMALL)
            base = [row for row in rows if "per_case" in row.get("zero_shot", {})]
            if not base:
                lines.append([_named(domain), label_text(domain, domain.middle), *[NOT_YET] * 3])
                continue
            zero = [{**base[0], "per_case": base[0]["zero_shot"]["per_case"]}]
            cluster = partial(cluster_of, domain)
            gain = difference_of(rows, zero, "dice", cluster)
            cells = [mean_of(zero, "dice", cluster).text(), mean_of(rows, "dice", cluster).text()]
            lines.append(
                [_named(domain), label_text(domain, domain.middle), *cells, gain.text("+.3f")]
            )
        return table(["data set", "labelled", "zero-shot", "adapted", "gain"], lines)

    def _dice(self, arm: str, domain: Domain, labels: int, budget: int) -> str:
        rows = self.rows_of(arm, domain, labels, budget)
        planned = self.planned.get((arm, domain.name, labels, budget), 0)
        if not rows:
            return NOT_YET if planned else "-"
        text = mean_of(rows, "dice", partial(cluster_of, domain)).text()
        return text if len(rows) == planned else f"{text} ({len(rows)} of {planned} draws)"

    def _places(self, budget: int) -> Iterator[tuple[Domain, int]]:
        """Yield the data sets and numbers of labels that are planned with a budget."""
        for domain in DOMAINS.values():
            for labels in domain.labels:
                if any((arm, domain.name, labels, budget) in self.planned for arm in WITHOUT_BOXES):
                    yield domain, labels


def _distances(rows: Sequence[Row], domain: Domain) -> str:
    if not rows or not table_of(rows, "hd95"):
        return NOT_YET
    cluster = partial(cluster_of, domain)
    hd95, nsd = (mean_of(rows, score, cluster).value for score in ("hd95", "nsd"))
    return f"{hd95:.1f} / {nsd:.3f}"


def _named(domain: Domain) -> str:
    return domain.name if domain.claims else f"{domain.name} (too small for a claim)"


def _titles(arms: Iterable[str]) -> list[str]:
    return [ARMS[arm].title for arm in arms]


def table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table of the lines in which something is measured."""
    shown = [line for line in lines if any(cell not in (NOT_YET, "-") for cell in line[2:])]
    if not shown:
        return "Nothing is measured yet."
    body = [header, ["---"] * len(header), *shown]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in body)
