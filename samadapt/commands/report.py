"""``samadapt report``: one page of several runs, or the page of one run anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samadapt import console
from samadapt.errors import ConfigError

HELP = """
Writes one page of several runs: their scores side by side with intervals, the differences case by
case, the keys that differ, their learning curves in one plot, and the overlays of the same cases
beside each other. Runs on other data or other cases are shown, and marked as not comparable with
the first one.

  samadapt report RUN RUN2 output=two.html     the page; comparison.html without output
  samadapt report RUN                          writes the page of this run anew

It loads no model and reads no images.
"""
SCHEMA = None


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Write the page and return plain values.

    Raises:
        ConfigError: no run is named, one of them is no finished run, or ``output`` does not fit.
    """
    folders, output = split(arguments)
    from samadapt.runs.run_report import COMPARISON_NAME, rewrite_page, write_comparison

    if len(folders) == 1:
        if output is not None:
            raise ConfigError(
                f"report: output={output} is for several runs; of one run its own page is written "
                "anew, in its directory"
            )
        return rewrite_page(folders[0])
    return write_comparison(folders, output or Path(COMPARISON_NAME))


def split(arguments: Sequence[str]) -> tuple[list[Path], Path | None]:
    """Return the run directories and the file of the page.

    Raises:
        ConfigError: no run is named, or ``output`` is no HTML file.
    """
    files = [a.partition("=")[2] for a in arguments if a.startswith("output=")]
    folders = [Path(a).expanduser() for a in arguments if not a.startswith("output=")]
    if not folders:
        raise ConfigError(
            "report: expected run directories, RUN [RUN2 ...] [output=FILE]; `samadapt ls runs` "
            "lists them"
        )
    if len(files) > 1:
        raise ConfigError(f"report: expected one output=FILE; got {len(files)}")
    output = Path(files[0]).expanduser() if files else None
    if output is not None and output.suffix not in (".html", ".htm"):
        raise ConfigError(f"output={output}: expected a file that ends in .html")
    return folders, output


def render(result: dict[str, Any]) -> str:
    """Return the scores of the runs, and where the page is."""
    rows = [
        [
            f"run {number}",
            run["title"],
            *("-" if run[key] is None else f"{run[key]:.3f}" for key in ("before", "after")),
            (run["not_comparable"] and f"not comparable: {run['not_comparable']}") or "",
        ]
        for number, run in enumerate(result["runs"], 1)
    ]
    table = console.table(["runs", "title", "before", "after", ""], rows)
    return f"{table}\n\nreport  {result['report']}"
