"""``samadapt sweep``: try values of keys, choose by validation cases, score the winner."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samadapt import console
from samadapt.config.launcher import JobLauncher, split_launcher
from samadapt.config.sweep_arguments import (
    MAY_CHANGE,
    SweepArguments,
    SweepCommand,
    sweep_from_arguments,
)
from samadapt.errors import RunError

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
shares the folder, at the same time. launcher=submitit launcher.jobs=8 submits eight jobs that do
so; `samadapt sweep --help launcher` lists what a job can ask for.
"""
SCHEMA = SweepCommand


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Search as the command line says and return plain values.

    Raises:
        SamadaptError: as ``runs.sweep.sweep``.
    """
    launcher, others = split_launcher(arguments)
    asked = sweep_from_arguments(others)
    if launcher.name is not None and not asked.dry:
        return _submit(asked, launcher, others)
    from samadapt.runs.sweep import sweep  # it imports torch, so mistakes are reported before

    result = sweep(asked)
    return {
        "run_dir": result.run_dir and str(result.run_dir),
        "plan": result.plan,
        "summary": result.summary,
    }


def _submit(
    asked: SweepArguments, launcher: JobLauncher, arguments: Sequence[str]
) -> dict[str, Any]:
    """Submit the sweep to a cluster and, if asked, wait for its results."""
    from samadapt.runs.submission import follow, job_entries
    from samadapt.runs.sweep_results import SUMMARY_NAME
    from samadapt.runs.sweep_submission import submit_sweep

    own = MAY_CHANGE - {"resume", "dry"}
    changed = [one for one in arguments if re.split(r"[.=]", one)[0] in own]
    run = submit_sweep(asked, launcher, changed if asked.resume else ())
    result: dict[str, Any] = {"run_dir": str(run.run_dir), "jobs": job_entries(run.jobs)}
    if not launcher.wait:
        return result
    if result.setdefault("failed", follow(run.jobs)):
        return result | {"exit_code": 1}
    file = run.run_dir / SUMMARY_NAME
    if not file.is_file():
        raise RunError(
            f"no job has scored the winner; `samadapt sweep resume={run.run_dir}` does it"
        )
    return result | {"summary": json.loads(file.read_text(encoding="utf-8"))}


def render(result: dict[str, Any]) -> str:
    """Return the plan, or the tables, the answer in words and the winner's command line."""
    from rich.console import Group
    from rich.text import Text

    from samadapt.reports.html import HTML_NAME
    from samadapt.reports.sweep import SHOWN_TRIALS, plan_table, plan_text, sweep_tables
    from samadapt.reports.tables import format_seconds

    if "summary" not in result:
        return _jobs(result)
    summary = result["summary"]
    if result["run_dir"] is None:
        plan = result["plan"]
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


def _jobs(result: dict[str, Any]) -> str:
    """Return the jobs of a sweep, and how to go on if one failed."""
    from samadapt.reports.jobs import jobs_text

    run_dir = result["run_dir"]
    again = f"samadapt sweep resume={run_dir} launcher=submitit"
    return jobs_text(result, f"sweep: {run_dir}", again)
