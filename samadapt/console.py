"""Write to the terminal: results to stdout, everything else to stderr. No other module writes."""

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


# Replacements on terminals without Unicode for the signs that our texts and rich use.
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
    """Write a message to stderr, unless this process is muted."""
    if not _MUTED[0]:
        _write(sys.stderr, text)


_MUTED = [False]


def mute(muted: bool) -> None:
    """Write no more messages, or write them again: the first of several processes speaks for all.

    Args:
        muted: whether messages are left out.
    """
    _MUTED[0] = muted


def forgive(*streams: TextIO | None) -> None:
    """Make streams escape the characters that their encoding lacks instead of raising an error."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str, encoding: str | None = None) -> str:
    """Return a text of characters that an encoding has.

    Box-drawing characters become ASCII, signs are spelled out, and other characters are escaped by
    number. Bytes of a file name that is not UTF-8 are escaped, too, because no encoding has them.

    Args:
        text: any text.
        encoding: the encoding of a stream; None: UTF-8.
    """
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(_plain(character, encoding) for character in text)
    except LookupError:  # Python does not know the encoding
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
    """Write lines to a stream, if there is one and somebody reads it.

    A run does not fail because its pipe or terminal was closed. ``pythonw`` has no streams.
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
        with suppress(OSError, ValueError):  # or Python reports the closed pipe again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def rich_console() -> Console:
    """Return a rich console on stderr for progress bars; a closed pipe does not end the run."""
    from rich.console import Console

    class Lasting(Console):
        def on_broken_pipe(self) -> None:
            """Continue; rich would end the program."""

    return Lasting(stderr=True)


def spinner(console: Console) -> str:
    """Return the name of a spinner that the console can show."""
    return "line" if console.options.ascii_only else "dots"


@contextmanager
def bar(name: str, every: float = 20.0) -> Iterator[Callable[[int, int], None]]:
    """Show progress: a bar on a terminal, a line from time to time elsewhere.

    Args:
        name: what is in progress.
        every: seconds between lines.

    Yields:
        A function ``show(done, total)``.
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
    """Return as text what rich draws; in colour if stdout is a terminal."""
    from rich.console import Console

    stream = _Drawing(getattr(sys.stdout, "encoding", None))
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = None if is_terminal else 100
    Console(file=stream, force_terminal=is_terminal, width=width).print(renderable)
    return stream.getvalue().rstrip()


class _Drawing(io.StringIO):
    """A text stream with an encoding, so that rich draws boxes in ASCII if it is not Unicode."""

    encoding = "utf-8"

    def __init__(self, encoding: str | None) -> None:
        super().__init__()
        self.encoding = encoding or self.encoding


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return rows as text columns, as wide as their content, separated by two spaces."""
    encoding = getattr(sys.stdout, "encoding", None)  # escaped characters are wider
    lines = [[printable(cell, encoding) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
