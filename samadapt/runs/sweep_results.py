"""The results of a sweep: its trials, the winner over several seeds, and what mattered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.config.sweep_arguments import SweepArguments
from samadapt.reports.html import HTML_NAME, Page, write_html
from samadapt.reports.sweep import (
    CSV_NAME,
    IMPORTANCE_NAME,
    PARALLEL_NAME,
    plot_importance,
    plot_parallel,
    sweep_tables,
    write_sweep_csv,
)
from samadapt.reports.tables import counted
from samadapt.runs.part_runs import SUMMARY, read_summary
from samadapt.runs.run_description import configuration_text
from samadapt.runs.sweep_study import SweepStudy, import_optuna

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

SUMMARY_NAME = "sweep.json"

FEWEST = 5
"""With fewer finished trials nothing is said about the importance of keys."""

STATES = {"COMPLETE": "finished", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "running"}


def best_of(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Return the trial with the best validation Dice, of equal ones the first; None: all failed."""
    done = [trial for trial in trials if trial.value is not None]
    return max(done, key=lambda trial: (float(trial.value or 0), -trial.number), default=None)


def summarise_sweep(
    trials: Sequence[FrozenTrial], study: SweepStudy, runs: Sequence[Path], command: str
) -> dict[str, Any]:
    """Return the content of ``sweep.json``.

    Args:
        trials: all trials, ended.
        study: knows their run directories.
        runs: the run directories of the winner, one for each seed.
        command: the command line of the winner.
    """
    entries = [_trial_entry(trial, study.run_dir(trial.number)) for trial in trials]
    winner = best_of(trials)
    seeds = [_seed_entry(run_dir) for run_dir in runs]
    first = read_summary(runs[0])
    spread = {key: _spread([seed[key] for seed in seeds]) for key in ("validation", "held_out")}
    summary = {
        "trials": entries,
        "counts": {state: sum(e["state"] == state for e in entries) for state in STATES.values()},
        "winner": {
            "number": winner and winner.number,
            "values": dict(winner.user_attrs["values"]) if winner else {},
            "validation": winner and winner.value,
            "command": command,
            "seeds": seeds,
            "spread": spread,
        },
        "importance": importance(study.study),
        "trial_seconds": sum(entry["seconds"] or 0.0 for entry in entries),
        **{key: first[key] for key in ("data", "case_is", "prompt", "oracle_prompt")},
        "held_out": first["cases"],
        "validation_cases": first["validation_cases"],
        "notes": _notes(entries, first),
    }
    summary["answer"] = answer(summary)
    return summary


def _trial_entry(trial: FrozenTrial, run_dir: Path) -> dict[str, Any]:
    """Return what ``sweep.json`` holds about one trial."""
    scores = {
        int(step): value
        for step, value in trial.intermediate_values.items()
        if math.isfinite(value)
    }
    found = read_summary(run_dir) if (run_dir / SUMMARY).is_file() else {}
    took = None
    if trial.datetime_start and trial.datetime_complete:
        took = (trial.datetime_complete - trial.datetime_start).total_seconds()
    shared = ("best_step", "last_step", "trained_parameters", "ended_by")
    return {
        "number": trial.number,
        "state": STATES[trial.state.name],
        "values": dict(trial.user_attrs["values"]),
        "validation": trial.value
        if trial.value is not None
        else max(scores.values(), default=None),
        "run_dir": f"{run_dir.parent.name}/{run_dir.name}",
        "seconds": took,
        "error": trial.user_attrs.get("error"),
        **{key: found.get(key) for key in shared},
    }


def _seed_entry(run_dir: Path) -> dict[str, Any]:
    """Return the scores of one of the winner's runs."""
    summary = read_summary(run_dir)
    adapted = summary["adapted"]
    return {
        "run_dir": f"{run_dir.parent.name}/{run_dir.name}",
        "validation": summary["best_validation_dice"],
        "held_out": adapted and adapted["dice"],
        "interval": adapted and adapted["detail"]["dice"].get("interval"),
        "zero_shot": summary["zero_shot"] and summary["zero_shot"]["dice"],
    }


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Return mean, smallest, largest and standard deviation; None if a value is missing."""
    found = [float(value) for value in values if value is not None]
    if len(found) < len(values) or not found:
        return None
    deviation = float(np.std(found, ddof=1)) if len(found) > 1 else 0.0
    return {"mean": float(np.mean(found)), "min": min(found), "max": max(found), "std": deviation}


def importance(study: Study) -> dict[str, float]:
    """Return the share of each key in what makes a trial good, by PED-ANOVA.

    Watanabe et al. 2023, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
    Subspaces". Keys that only some methods have are compared among their trials. It is empty if too
    few trials finished, or if all are equally good.
    """
    optuna = import_optuna()
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.value is not None]
    if len(done) < FEWEST or len({trial.value for trial in done}) < 2:
        return {}
    # The best tenth is what counts, but at least five trials, of few trials the better half.
    quantile = min(0.5, max(0.1, FEWEST / len(done)))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(value) for key, value in found.items() if math.isfinite(value)}


def answer(summary: Mapping[str, Any]) -> list[str]:
    """Return in words what was found, and how sure it is."""
    winner, counts = summary["winner"], summary["counts"]
    shown = " ".join(f"{key}={text}" for key, text in winner["values"].items())
    rest = ", ".join(f"{counts[s]} {s}" for s in ("stopped early", "failed") if counts[s])
    of = f"{len(summary['trials'])}{f' ({rest})' if rest else ''}"
    best = f"validation Dice {winner['validation']:.3f}, the best of all and therefore optimistic"
    lines = [f"winner: trial {winner['number']} of {of}: {shown}; {best}"]
    held_out, again = winner["spread"]["held_out"], winner["spread"]["validation"]
    count = len(winner["seeds"])
    if held_out is not None:
        lines.append(
            f"held-out Dice over {counted(count, 'seed')}: {held_out['mean']:.3f}, "
            f"{held_out['min']:.3f} to {held_out['max']:.3f} "
            f"({summary['held_out']} cases that no trial was chosen by)"
        )
    others = [
        entry
        for entry in summary["trials"]
        if entry["state"] == "finished" and entry["number"] != winner["number"]
    ]
    second = max(others, key=lambda entry: entry["validation"], default=None)
    if again is not None and count > 1 and second is not None:
        lead, spread = winner["validation"] - second["validation"], again["max"] - again["min"]
        verdict = "does not tell them apart" if lead <= spread else "is not explained by the seed"
        lines.append(
            f"its lead over trial {second['number']} is {lead:.3f}, and the validation Dice of its "
            f"seeds differs by {spread:.3f}: that {verdict}"
        )
    return lines


def _notes(entries: Sequence[Mapping[str, Any]], first: Mapping[str, Any]) -> list[str]:
    """Return what the reader must know about the trials and the scores."""
    failed = [
        f"trial {entry['number']} failed: {entry['error']}"
        for entry in entries
        if entry["state"] == "failed"
    ]
    return [*failed, *first["notes"]]


def write_sweep_page(
    directory: Path, arguments: SweepArguments, summary: Mapping[str, Any], study: SweepStudy
) -> Path:
    """Write ``sweep.csv``, the plots and ``report.html`` of a sweep."""
    keys = [entry["key"] for entry in summary["space"]]
    write_sweep_csv(directory / CSV_NAME, summary["trials"], keys)
    logarithmic = [key for key, one in arguments.dimensions().items() if getattr(one, "log", False)]
    plot_parallel(summary, directory / PARALLEL_NAME, logarithmic)
    plot_importance(summary, directory / IMPORTANCE_NAME)
    held_out = summary["held_out"]
    page = Page(
        title=f"{arguments.recipe or 'sweep'}: {len(summary['trials'])} trials ({summary['data']})",
        subtitle=f"chosen by {summary['validation_cases']} validation cases; "
        + (
            f"{held_out} held-out cases scored for the winner alone"
            if held_out
            else "none held out"
        )
        + f"; a case is a {summary['case_is']}; {directory.name}",
        notes=[*summary["answer"], *summary["notes"]],
        tables=sweep_tables(summary),
        figures={
            "Trials: values and validation Dice": directory / PARALLEL_NAME,
            "Which keys matter": directory / IMPORTANCE_NAME,
        },
        classes=(),
        cases=(),
        details=(),
        texts={
            "Command line of the winner": summary["winner"]["command"],
            "Configuration": configuration_text(arguments),
            "Runs": "\n".join(f"{e['run_dir']}: {e['state']}" for e in summary["trials"]),
        },
    )
    return write_html(directory / HTML_NAME, page)
