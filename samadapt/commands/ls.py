"""``samadapt ls``: what can be named on the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from samadapt import console
from samadapt.config.compose import recipes
from samadapt.errors import ConfigError, nearest
from samadapt.methods import METHODS
from samadapt.sam.weights.builds import BUILDS

HELP = """
Lists the recipes, models, methods (peft) and data sets that can be named; all of them without an
argument, or one kind: `samadapt ls recipes`. Runs nothing and reads no images.
"""
SCHEMA = None
Rows = list[dict[str, Any]]


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the rows of each kind asked for.

    Raises:
        ConfigError: for an unknown kind.
    """
    for kind in arguments:
        if kind not in KINDS:
            raise ConfigError(
                f"ls: expected {', '.join(KINDS)}; got {kind!r}{nearest(kind, KINDS)}"
            )
    return {kind: KINDS[kind]() for kind in arguments or KINDS}


def render(result: dict[str, Any]) -> str:
    """Return one table a kind."""
    tables = []
    for kind, rows in result.items():
        header = [kind, *list(rows[0])[1:]] if rows else [kind]
        tables.append(console.table(header, [[str(cell) for cell in row.values()] for row in rows]))
    return "\n\n".join(tables)


def _recipes() -> Rows:
    rows = []
    for name, path in recipes().items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        rows.append({"name": name, "about": first.lstrip("# ") if first.startswith("#") else ""})
    return rows


def _models() -> Rows:
    return [
        {"name": name, "encoder": build.encoder, "image size": build.image_size}
        for name, build in BUILDS.items()
    ]


def _methods() -> Rows:
    return [
        {"name": name, "lr": f"{method.lr:g}", "about": method.summary}
        for name, method in METHODS.items()
    ]


def _data() -> Rows:
    """Return the cards, then the formats that need ``data.root``."""
    from samadapt.data.cards import list_cards, load_card
    from samadapt.data.formats.base import readers

    cards = [load_card(name) for name in list_cards()]
    rows = [{"name": card.name, "about": card.title, "licence": card.licence} for card in cards]
    named = {card.name for card in cards}
    formats = {name: reader for name, reader in sorted(readers().items()) if name not in named}
    about = "{}; give data.root=PATH"
    return [
        *rows,
        *(
            {"name": name, "about": about.format(reader.summary), "licence": ""}
            for name, reader in formats.items()
        ),
    ]


KINDS: dict[str, Callable[[], Rows]] = {
    "recipes": _recipes,
    "models": _models,
    "peft": _methods,
    "data": _data,
}
