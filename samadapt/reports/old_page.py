"""Read back from a report.html what only the run could draw: its cases and its data check."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from rich.table import Table
from rich.text import Text

from samadapt.reports.html import ShownCase
from samadapt.reports.strips import Strip

CHECK = "Data check"
"""The title of the table of findings begins with it."""
_PICTURE = "data:image/webp;base64,"


@dataclass
class OldPage:
    """What a page holds beside what is in other files of the run.

    Attributes:
        cases: the cases to leaf through.
        findings: the table of the data check; None if there is none.
    """

    cases: list[ShownCase] = field(default_factory=list)
    findings: Table | None = None


def read_page(path: Path) -> OldPage:
    """Return the cases and the data check of a page; of a missing or foreign file, nothing."""
    reader = _PageReader()
    try:
        reader.feed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # also a picture or a number that no run wrote
        return OldPage()
    return reader.page


class _PageReader(HTMLParser):
    """Follows the tags of ``report.html.j2``."""

    def __init__(self) -> None:
        super().__init__()
        self.page = OldPage()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.strips: list[Strip] = []
        self.heads: list[str] = []
        self.start = self.left_out = 0
        self.title = self.scores = ""
        self.cells: list[str] = []
        self.is_check = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a case, or take one of its pictures."""
        values = dict(attrs)
        if tag == "section" and "data-strip" in values:
            self.strips, self.heads, self.start = [], [], 0
            self.open = ["section"]
        elif tag == "img" and self.open:
            self._take_picture(values)
        elif tag == "span" and self.open and not self.title:
            self.title = "".join(self.texts).strip()  # the heading before its scores
        self.texts = []

    def _take_picture(self, values: dict[str, str | None]) -> None:
        source, alt = values.get("src") or "", re.match(r"slice (\d+)", values.get("alt") or "")
        if not source.startswith(_PICTURE) or alt is None:
            raise ValueError("a picture of another program")
        try:
            picture = base64.b64decode(source.removeprefix(_PICTURE), validate=True)
        except binascii.Error as error:
            raise ValueError("a damaged picture") from error
        if "hidden" not in values:
            self.start = len(self.strips)
        size = [int(values.get(side) or 0) for side in ("width", "height")]
        self.strips.append(Strip(int(alt[1]), picture, size[0], size[1]))

    def handle_data(self, data: str) -> None:
        """Gather the text of an element."""
        self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        """Take the text of an element that ends."""
        text = "".join(self.texts).strip()
        if self.open:
            self._end_in_case(tag, text)
        elif tag == "summary":
            self.is_check = text.startswith(CHECK)
            if self.is_check:
                self.page.findings = Table(title=Text(text))
        elif self.is_check and self.page.findings is not None:
            self._end_in_check(tag, text, self.page.findings)
        self.texts = []

    def _end_in_case(self, tag: str, text: str) -> None:
        if tag == "span" and not self.strips and not self.heads and not self.scores:
            self.scores = text
        elif tag == "span":
            self.heads.append(text)
        elif tag == "p":
            step = re.search(r"every (\d+) slices", text)
            self.left_out = int(step[1]) if step else 0
        elif tag == "section":
            heads = tuple(self.heads)
            self.page.cases.append(
                ShownCase(self.title, self.scores, heads, self.strips, self.start, self.left_out)
            )
            self.open, self.title, self.scores = [], "", ""

    def _end_in_check(self, tag: str, text: str, table: Table) -> None:
        if tag == "th":
            table.add_column(text)
        elif tag == "td":
            self.cells.append(text)
        elif tag == "tr" and self.cells:
            table.add_row(*map(Text, self.cells))
            self.cells = []
        elif tag == "details":
            self.is_check = False
