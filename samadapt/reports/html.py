"""A report as one self-contained HTML page: scores, curves, cases to leaf through, configuration.

The page loads nothing from elsewhere and every text in it is escaped, so the file can be sent to a
colleague and opened offline.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from samadapt.reports.overlays import COLOURS
from samadapt.system import atomic

if TYPE_CHECKING:
    from rich.table import Table

    from samadapt.reports.strips import Strip

TEMPLATE = "report.html.j2"
HTML_NAME = "report.html"


@dataclass(frozen=True)
class ShownCase:
    """A case to leaf through.

    Attributes:
        title: for example "best: hippocampus_042".
        scores: the text beside the title.
        heads: the headings of the panels of each picture.
        strips: the drawn slices of the case, in order.
        start: the position in ``strips`` of the slice that is shown first.
        left_out: the step between drawn slices of a large volume; 0 if all slices are drawn.
    """

    title: str
    scores: str
    heads: tuple[str, ...]
    strips: Sequence[Strip]
    start: int
    left_out: int = 0


@dataclass(frozen=True)
class CaseRow:
    """Pictures of one case beside each other.

    Attributes:
        title: name of the case.
        pictures: PNG files by what they show, such as "run 2".
    """

    title: str
    pictures: Mapping[str, Path]


@dataclass(frozen=True)
class Page:
    """The content of a report, in the order of the page.

    Attributes:
        title: the title of the page.
        subtitle: the line below the title.
        notes: remarks that a reader of the scores must know.
        tables: tables that are always visible.
        figures: PNG files, or their content, by title; files that do not exist are left out.
        classes: the class names in the order of their labels, for the colours.
        cases: the cases to leaf through, each with a slider.
        details: tables that are folded away.
        texts: configuration, environment and the like by title; folded away.
        rows: cases of several runs, each with the overlays of the runs beside each other.
    """

    title: str
    subtitle: str
    notes: Sequence[str]
    tables: Sequence[Table]
    figures: Mapping[str, Path | bytes]
    classes: Sequence[str]
    cases: Sequence[ShownCase]
    details: Sequence[Table]
    texts: Mapping[str, str]
    rows: Sequence[CaseRow] = ()


def write_html(path: Path, page: Page) -> Path:
    """Write a page, whole or not at all, and return its path."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("samadapt.reports", "")
    environment = Environment(
        loader=loader,
        autoescape=True,
        # A misspelt name in the template is an error and no empty text.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(TEMPLATE).render(
        # The script holds no template variables, so the page contains it as the template does.
        policy=_policy(loader.get_source(environment, TEMPLATE)[0]),
        title=page.title,
        subtitle=page.subtitle,
        notes=page.notes,
        tables=[_table(table) for table in page.tables],
        figures=[
            {"title": title, "data": _embedded(content, "png")}
            for title, png in page.figures.items()
            if (content := _content(png))
        ],
        rows=[
            {
                "title": row.title,
                "pictures": [
                    {"title": title, "data": _embedded(path.read_bytes(), "png")}
                    for title, path in row.pictures.items()
                ],
            }
            for row in page.rows
        ],
        legend=[(name, COLOURS[label % len(COLOURS)]) for label, name in enumerate(page.classes)],
        cases=[_case(case) for case in page.cases],
        details=[_table(table) for table in page.details],
        texts=[{"title": title, "text": body} for title, body in page.texts.items()],
    )
    return atomic.write_text(path, text)


def _policy(template: str) -> str:
    """Return the content security policy: the page loads nothing and runs only its own script.

    The browser runs a script only if the policy names its sha256. So even a text that was left
    unescaped by mistake cannot run. Styles are inline, and pictures are data URLs.
    """
    script = template.split("<script>", 1)[1].split("</script>", 1)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    rules = {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{kind} {sources}" for kind, sources in rules.items())


def _case(case: ShownCase) -> dict[str, Any]:
    strips = [
        {
            "index": strip.index,
            "width": strip.width,
            "height": strip.height,
            "data": _embedded(strip.picture, "webp"),
        }
        for strip in case.strips
    ]
    return {**vars(case), "strips": strips, "width": max(strip.width for strip in case.strips)}


def _content(figure: Path | bytes) -> bytes:
    """Return the content of a figure; empty if its file does not exist."""
    if isinstance(figure, bytes):
        return figure
    return figure.read_bytes() if figure.is_file() else b""


def _embedded(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _table(table: Table) -> dict[str, Any]:
    """Return a table for the terminal as plain cells for the template."""
    # Columns of numbers are aligned to the right, all others hold text.
    aligned = [column.justify != "right" for column in table.columns]
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns]

    def cells(texts: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {"text": text, "text_like": left} for text, left in zip(texts, aligned, strict=True)
        ]

    return {
        "title": _plain(table.title or ""),
        "caption": _plain(table.caption or ""),
        "head": cells([_plain(column.header) for column in table.columns]),
        "rows": [
            {"bold": "bold" in str(row.style or ""), "cells": cells(texts)}
            for row, texts in zip(table.rows, zip(*columns, strict=True), strict=True)
        ],
    }


def _plain(cell: Any) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)
