"""The only place that writes to the terminal: results to stdout, everything else to stderr."""

from __future__ import annotations

import io
import os
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

    from rich.console import Console, RenderableType


# What a terminal without Unicode shows for the signs that our texts and rich's boxes use.
PLAIN = {
    "…": "...",
    "\u2013": "-",
    "—": "-",
    "±": "+/-",
    "\u00d7": "x",
    "·": "-",
    "•": "*",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "\u2018": "'",
    "\u2019": "'",
    "\u201c": '"',
    "\u201d": '"',
    "²": "^2",
    "³": "^3",
    "µ": "u",
    "✓": "ok",
    "✗": "x",
}


def write(text: str) -> None:
    """Write a result to stdout."""
    _write(sys.stdout, text)


def log(text: str) -> None:
    """Write a message about the run to stderr."""
    _write(sys.stderr, text)


def forgive(*streams: TextIO | None) -> None:
    """Let streams escape what their encoding lacks, whoever writes to them, instead of failing."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str, encoding: str | None = None) -> str:
    """Return a text that an encoding has all characters of.

    Boxes become ASCII, signs are spelled, and other characters are escaped by number. So are the
    bytes of a file name that is not UTF-8, which no encoding has.

    Args:
        text: any text.
        encoding: the encoding of a stream; UTF-8 where it says nothing.
    """
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(_plain(character, encoding) for character in text)
    except LookupError:  # a name that Python does not know
        return printable(text, "ascii")
    return text


def _plain(character: str, encoding: str) -> str:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        if "\u2500" <= character <= "\u257f":  # box drawing
            return _box(character)
        escaped = character.encode(encoding, "backslashreplace").decode(encoding)
        return PLAIN.get(character, escaped)
    return character


def _box(character: str) -> str:
    lies = "─━┄┅┈┉╌╍═╴╶╸╺╼╾"
    stands = "│┃┆┇┊┋╎╏║╵╷╹╻╽╿"
    return "-" if character in lies else "|" if character in stands else "+"


def _write(stream: TextIO | None, text: str) -> None:
    """Write lines to a stream, if there is one (``pythonw`` has none) and somebody reads it.

    Work that is done is not lost because its pipe or terminal was closed.
    """
    if stream is None:
        return
    text = printable(text.rstrip("\n") + "\n", getattr(stream, "encoding", None))
    try:
        stream.write(text)
        stream.flush()
    except (BrokenPipeError, ValueError) as error:
        if isinstance(error, ValueError) and not stream.closed:
            raise
        with suppress(OSError, ValueError):  # else Python would complain again when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def rich_console() -> Console:
    """Return a rich console on stderr, for progress bars; a run goes on if nobody reads them."""
    from rich.console import Console

    class Lasting(Console):
        def on_broken_pipe(self) -> None:
            """Do not end the program, as rich does."""

    return Lasting(stderr=True)


def spinner(console: Console) -> str:
    """Return the name of a spinner that a console has the characters of."""
    return "line" if console.options.ascii_only else "dots"


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
    from rich.console import Console

    stream = _Drawing(getattr(sys.stdout, "encoding", None))
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = None if is_terminal else 100
    Console(file=stream, force_terminal=is_terminal, width=width).print(renderable)
    return stream.getvalue().rstrip()


class _Drawing(io.StringIO):
    """Text of an encoding: rich draws boxes in ASCII where it is not Unicode."""

    encoding = "utf-8"

    def __init__(self, encoding: str | None) -> None:
        super().__init__()
        self.encoding = encoding or self.encoding


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return rows as text columns, wide enough for their content and separated by two spaces."""
    encoding = getattr(sys.stdout, "encoding", None)  # what is escaped takes more room
    lines = [[printable(cell, encoding) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
