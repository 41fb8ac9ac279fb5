"""The only place that writes to the terminal: results to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def write(text: str) -> None:
    """Write a result to stdout."""
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


def log(text: str) -> None:
    """Write a message about the run to stderr."""
    sys.stderr.write(text.rstrip("\n") + "\n")
    sys.stderr.flush()


def rich_console() -> Console:
    """Return a rich console on stderr, for progress bars."""
    from rich.console import Console

    return Console(stderr=True)


def to_text(renderable: RenderableType) -> str:
    """Return what rich would draw, as text; in colour if stdout is a terminal."""
    import io

    from rich.console import Console

    stream = io.StringIO()
    width = None if sys.stdout.isatty() else 100
    Console(file=stream, force_terminal=sys.stdout.isatty(), width=width).print(renderable)
    return stream.getvalue().rstrip()


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return rows as text columns, wide enough for their content and separated by two spaces."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
