"""The only place that writes to the terminal: results to stdout, everything else to stderr."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


@contextmanager
def bar(name: str, every: float = 20.0) -> Iterator[Callable[[int, int], None]]:
    """Show how far something is: a bar on a terminal, elsewhere a line now and then.

    Args:
        name: of what goes on.
        every: seconds between lines.

    Yields:
        A function of the number done and of all.
    """
    from rich.progress import Progress

    console, lined = rich_console(), time.perf_counter()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(name)

        def show(done: int, total: int) -> None:
            nonlocal lined
            bars.update(task, completed=done, total=total)
            if not console.is_terminal and time.perf_counter() - lined >= every:
                lined = time.perf_counter()
                log(f"{name} {done}/{total}")

        yield show


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
