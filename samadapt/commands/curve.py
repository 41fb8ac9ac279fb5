"""``samadapt curve``: how many cases must be labelled?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samadapt import console
from samadapt.config.curve_arguments import CurveArguments, curve_from_arguments

HELP = """
Answers "how many cases must I label?": trains with rising numbers of labelled cases, scores the
same held-out cases each time, and says what the last step brought.

cases=5,10,20,all trains on five cases, then on ten of which five are the same, and so on. A case
that chooses the best step is a labelled one. seeds=3 repeats each number three times, with other
cases and other seeds. All other keys are those of `samadapt finetune`.

The results are in a directory like that of a run: curve.json, curve.csv, curve.png and report.html,
and below them a run directory for each training. resume=RUN_DIR goes on with the runs that are
missing, also with more numbers (cases=) or draws (seeds=) than before.
"""
SCHEMA = CurveArguments


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Train as the command line says and return plain values.

    Raises:
        SamadaptError: as ``runs.curve.curve``.
    """
    asked = curve_from_arguments(arguments)
    from samadapt.runs.curve import curve  # it imports torch, so mistakes are reported before

    result = curve(asked)
    return {"run_dir": str(result.run_dir), "summary": result.summary}


def render(result: dict[str, Any]) -> str:
    """Return the tables, the answer in words and the paths of the results."""
    from rich.console import Group
    from rich.text import Text

    from samadapt.reports.curve import PLOT_NAME, curve_tables
    from samadapt.reports.html import HTML_NAME
    from samadapt.reports.tables import format_seconds

    summary, run_dir = result["summary"], Path(result["run_dir"])
    facts = {
        "time": format_seconds(summary["seconds"]),
        "curve": run_dir / PLOT_NAME,
        "report": run_dir / HTML_NAME,
    }
    lines = [f"{name:<6}  {value}" for name, value in facts.items()]
    notes = [Text(f"Note: {note}", style="yellow") for note in summary["notes"]]
    answers = [Text(sentence, style="bold") for sentence in summary["answer"]]
    places = [Text(line, overflow="fold") for line in lines]
    return console.to_text(Group(*curve_tables(summary), *answers, *notes, *places))
