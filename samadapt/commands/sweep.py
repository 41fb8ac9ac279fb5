"""``samadapt sweep``: try values of keys, choose by validation cases, score the winner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samadapt import console
from samadapt.config.sweep_arguments import SweepArguments, sweep_from_arguments

HELP = """
Finds good values of keys: trains with several of them, chooses by the Dice of the validation cases,
and scores the held-out cases once, for the winner, which is trained with three seeds.

  samadapt sweep recipe=NAME 'peft=lora,dora,ia3' 'peft.rank=4,8,16'
  samadapt sweep recipe=NAME peft.rank=4,8 'train.lr=interval(1e-4,1e-2)' trials=30

A key with several values is searched: a,b or choice(a,b), range(start,stop,step) or
interval(low,high), in Hydra's grammar. All other keys are those of `samadapt finetune`. A key that
a method does not have is left out of that method's trials. A small grid is run whole; with
intervals, or with fewer trials than combinations, TPE chooses what to try next. Trials that are
worse than half of the finished ones are stopped early.

dry=true prints the plan alone. workers=2 runs two trials at the same time. The results are in a
directory like that of a run: sweep.json, sweep.csv, plots and report.html, and below them a run
directory for each trial. resume=DIR goes on with what is missing, also on another machine that
shares the folder, at the same time.
"""
SCHEMA = SweepArguments


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Search as the command line says and return plain values.

    Raises:
        SamadaptError: as ``runs.sweep.sweep``.
    """
    asked = sweep_from_arguments(arguments)
    from samadapt.runs.sweep import sweep  # it imports torch, so mistakes are reported before

    result = sweep(asked)
    return {
        "run_dir": result.run_dir and str(result.run_dir),
        "plan": result.plan,
        "summary": result.summary,
    }


def render(result: dict[str, Any]) -> str:
    """Return the plan, or the tables, the answer in words and the winner's command line."""
    from rich.console import Group
    from rich.text import Text

    from samadapt.reports.html import HTML_NAME
    from samadapt.reports.sweep import SHOWN_TRIALS, plan_table, plan_text, sweep_tables
    from samadapt.reports.tables import format_seconds

    summary, plan = result["summary"], result["plan"]
    if result["run_dir"] is None:
        grid = [plan_table(plan)] if plan["grid"] else []
        return console.to_text(Group(Text(plan_text(plan)), *grid))
    run_dir = Path(result["run_dir"])
    if summary is None:
        return console.to_text(Text(f"sweep  {run_dir}", overflow="fold"))
    spent = format_seconds(summary["trial_seconds"])
    facts = {
        "time": f"{format_seconds(summary['seconds'])}; {spent} in {len(summary['trials'])} trials",
        "winner": run_dir / summary["winner"]["seeds"][0]["run_dir"],
        "report": run_dir / HTML_NAME,
    }
    notes = [Text(f"Note: {note}", style="yellow") for note in summary["notes"]]
    answers = [Text(sentence, style="bold") for sentence in summary["answer"]]
    places = [Text(f"{name:<6}  {value}", overflow="fold") for name, value in facts.items()]
    command = Text(summary["winner"]["command"], overflow="fold", no_wrap=False)
    tables = sweep_tables(summary, SHOWN_TRIALS)
    return console.to_text(Group(*tables, *answers, *notes, *places, command))
