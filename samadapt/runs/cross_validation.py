"""Cross-validation, ``samadapt finetune folds=5``: every case is scored once, by an unseen adapter.

Each fold is a run like any other, in ``fold_0/``, ``fold_1/`` and so on of one run directory. It
trains on all cases but its own and scores its own. The scores of all folds are pooled: a case has
one score for each class and state, so means and intervals are over all cases, just as those of a
single run are over its held-out cases.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from samadapt.config.compose import to_yaml
from samadapt.config.schema import Config
from samadapt.data.pseudonyms import open_key, write_key
from samadapt.errors import ConfigError
from samadapt.evaluation.case_scores import CaseClassScore, summarise
from samadapt.evaluation.comparison import compare_states
from samadapt.evaluation.instances import summarise_objects
from samadapt.reports.objects import read_objects, write_objects
from samadapt.reports.tables import read_per_case, write_per_case, write_summary
from samadapt.runs.by_prompt import pool_kinds, pool_negatives
from samadapt.runs.environment import write_json
from samadapt.runs.part_runs import is_finished, part_of, prepare_part, read_summary
from samadapt.runs.run_directory import RunLockedError, locked, open_run_dir
from samadapt.runs.run_page import write_pooled_page
from samadapt.system import atomic, processes

SHARED_BY_FOLDS = (
    *("prompt", "oracle_prompt", "data", "scored", "case_is", "nsd_tolerance", "precision"),
    *("trained_parameters", "total_parameters"),
)
"""Entries of the summary that all folds have in common."""


def open_cross_validation(config: Config) -> tuple[Path, list[Path]]:
    """Make the directory of a cross-validation, or open the one that is resumed.

    Args:
        config: a configuration with ``folds``; with ``resume``, the directory of a
            cross-validation.

    Returns:
        The directory and those of its folds, which may not exist yet.

    Raises:
        ConfigError: together with ``data.fold`` or ``eval.max_cases=0``.
    """
    if config.data.fold is not None:
        raise ConfigError(
            f"folds={config.folds} runs every fold; leave data.fold={config.data.fold} out"
        )
    if config.eval.max_cases == 0:
        raise ConfigError(
            f"folds={config.folds} scores every case, and eval.max_cases=0 none: leave one out"
        )
    parent = open_run_dir(config)
    return parent, [parent / f"fold_{fold}" for fold in range(config.folds or 0)]


def cross_validate(
    config: Config, train_and_score: Callable[[Config, Path], object]
) -> tuple[Path, dict[str, Any]]:
    """Train the folds that are not finished, one after another, and pool their scores.

    Args:
        config: a configuration with ``folds``; with ``resume``, the directory of a
            cross-validation.
        train_and_score: trains and scores one fold in its run directory.

    Returns:
        The directory of the cross-validation and the content of its ``eval/summary.json``.

    Raises:
        ConfigError: together with ``data.fold`` or ``eval.max_cases=0``, or for fewer cases than
            folds.
        RunLockedError: when another process uses the directory.
        InterruptedRunError: as ``finetune``, naming the directory of the cross-validation.
    """
    started = time.perf_counter()
    parent, runs = open_cross_validation(config)
    with locked(parent):
        if config.privacy and processes.is_first():
            write_key(parent, open_key(parent), ())  # one key for all folds
        for fold, run_dir in enumerate(runs):
            if processes.from_first(is_finished(run_dir)):
                continue
            with part_of(parent, runs, "finetune"):
                part = fold_config(config, fold, len(runs))
                if processes.is_first():
                    part = prepare_part(part, run_dir)
                train_and_score(processes.from_first(part), run_dir)
        summary: dict[str, Any] = {}
        if processes.is_first():
            summary = write_pooled(config, parent, runs, time.perf_counter() - started)
    return parent, processes.from_first(summary)


def train_fold(
    config: Config, fold: int, train: Callable[[Config, Path], object]
) -> tuple[Path, dict[str, Any] | None]:
    """Train one fold, unless it is finished, and pool the scores if no other fold is missing.

    Other processes may train other folds of the same cross-validation at the same time.

    Args:
        config: a configuration with ``folds`` and ``resume``.
        fold: index of the fold.
        train: trains and scores a fold in its run directory.

    Returns:
        The directory of the cross-validation, and its summary; None if another fold is missing, or
        another process pools the scores.

    Raises:
        RunLockedError: when another process trains this fold.
        InterruptedRunError: as ``finetune``, naming the directory of the cross-validation.
    """
    parent, runs = open_cross_validation(config)
    run_dir, part = runs[fold], fold_config(config, fold, len(runs))
    if not processes.from_first(is_finished(run_dir)):
        with part_of(parent, runs, "finetune"):
            if processes.is_first():
                part = begin_fold(part, run_dir)
            train(processes.from_first(part), run_dir)
    summary = None
    if processes.is_first() and all(map(is_finished, runs)):
        with suppress(RunLockedError), locked(parent):
            seconds = sum(read_summary(run)["seconds"] for run in runs)
            summary = write_pooled(config, parent, runs, seconds)
    return parent, processes.from_first(summary)


def begin_fold(part: Config, run_dir: Path) -> Config:
    """Make the run directory of a fold unless it exists, and return its configuration.

    Unlike ``prepare_part`` this never removes a directory, in which another process may be at work.
    """
    if not (run_dir / "config.yaml").is_file():
        run_dir.mkdir(exist_ok=True)
        atomic.write_text(run_dir / "config.yaml", to_yaml(part))
    return replace(part, resume=str(run_dir))


def write_pooled(
    config: Config, parent: Path, runs: Sequence[Path], seconds: float
) -> dict[str, Any]:
    """Pool the scores of all folds, which are finished, and write the results of the whole.

    Returns:
        The content of ``eval/summary.json``.
    """
    summary = pool_folds(parent, runs)
    summary["seconds"] = seconds
    write_summary(parent / "eval", summary)
    write_pooled_page(parent, config, read_per_case(parent / "eval"), summary)
    return summary


def fold_config(config: Config, fold: int, folds: int) -> Config:
    """Return the configuration of one fold.

    It is a run of its own, which holds out `data.fold` of `data.folds`. Without `folds` it starts
    no cross-validation.
    """
    data = replace(config.data, fold=fold, folds=folds)
    return replace(config, folds=None, resume=None, data=data)


def pool_folds(parent: Path, runs: Sequence[Path]) -> dict[str, Any]:
    """Pool the scores of all folds, and write ``splits.json`` and ``eval/per_case.csv``.

    Args:
        parent: the directory of the cross-validation.
        runs: the run directories of the folds, all finished.

    Returns:
        The content of ``eval/summary.json``.

    Raises:
        RunError: for a fold whose scores cannot be read.
        DataError: for a case that two folds scored.
    """
    summaries = [read_summary(run) for run in runs]
    splits = [json.loads((run / "splits.json").read_text(encoding="utf-8")) for run in runs]
    states = [state for state in ("zero_shot", "adapted") if summaries[0][state]]
    classes = list(summaries[0][states[0]]["per_class"])
    rows: dict[str, list[CaseClassScore]] = {"zero_shot": [], "adapted": []}
    for run in runs:
        # The scores of single cases are pooled, and not the means of the folds: intervals are over
        # cases.
        for state, found in read_per_case(run / "eval").items():
            rows[state] += found
    pooled: dict[str, Any] = {}
    for state, found in rows.items():
        first = summaries[0][state]  # None if nothing was trained, or there is no base model
        marks = first and {key: first[key] for key in ("prompt", "oracle_prompt")}
        pooled[state] = first and summarise(found, classes, intervals=True) | marks
    if "instances" in summaries[0][states[0]]:
        for state, matches in _pool_objects(parent, runs).items():
            pooled[state]["instances"] = summarise_objects(matches, classes)
    pool_negatives(pooled, parent / "eval", [run / "eval" for run in runs], summaries)
    _mark_untrained(pooled["adapted"], summaries)
    paired = None
    if len(states) == 2:
        paired = compare_states(rows["zero_shot"], rows["adapted"], classes)
    baseline = {key: summaries[0][key] for key in ("baseline",) if key in summaries[0]}
    scorer = "U-Net" if baseline else "adapter"
    rule = f"{len(runs)} folds by case: each case is scored by the {scorer} that did not see it"
    write_json(parent / "splits.json", {"rule": rule, "folds": splits})
    write_per_case(parent / "eval", {state: found for state, found in rows.items() if found})
    return {
        **pooled,
        "paired": paired,
        **{key: summaries[0][key] for key in SHARED_BY_FOLDS},
        **{key: summaries[0][key] for key in ("init", "propagate") if key in summaries[0]},
        **baseline,
        **pool_kinds(parent, runs, summaries),
        "split": rule,
        "cases": sum(summary["cases"] for summary in summaries),
        "slices": sum(summary["slices"] for summary in summaries),
        "parts": summaries[0]["parts"],
        "folds": [_fold_entry(run, summary) for run, summary in zip(runs, summaries, strict=True)],
        "notes": list(dict.fromkeys(note for summary in summaries for note in summary["notes"])),
    }


def _pool_objects(parent: Path, runs: Sequence[Path]) -> dict[str, list[Any]]:
    """Gather the matched objects of all folds by state, and write them into the parent."""
    pooled: dict[str, list[Any]] = {}
    for run in runs:
        for state, matches in read_objects(run / "eval").items():
            pooled.setdefault(state, []).extend(matches)
    write_objects(parent / "eval", pooled)
    return pooled


def _mark_untrained(pooled: dict[str, Any] | None, summaries: Sequence[dict[str, Any]]) -> None:
    """Mark the classes that the adapter of some fold never saw in training."""
    if pooled is None:
        return
    for summary in summaries:
        for name, entry in (summary["adapted"] or {}).get("per_class", {}).items():
            if entry.get("untrained"):
                pooled["per_class"][name]["untrained"] = True


def _fold_entry(run_dir: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the pooled summary holds about one fold."""
    dice = {state: summary[state] and summary[state]["dice"] for state in ("zero_shot", "adapted")}
    # Folds of earlier versions have no count of labelled cases.
    counts = ("cases", "training_slices", "labelled_cases", "best_step", "seconds")
    return {"run_dir": run_dir.name, "dice": dice, **{key: summary.get(key) for key in counts}}
