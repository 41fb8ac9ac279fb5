"""A sweep, ``samadapt sweep``: try values of keys, choose by validation cases, score the winner.

Each trial is a run like any other in ``trials/NNNN`` of the sweep's directory, without the scores
of the held-out cases. These are scored once, for the winner, which is trained with several seeds.
Any number of processes and machines can work in one directory; a stopped sweep goes on with what is
missing.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt import console
from samadapt.config.compose import to_yaml
from samadapt.config.schema import Config
from samadapt.config.search_space import method_name, used_by
from samadapt.config.sweep_arguments import SweepArguments
from samadapt.data.checks.resumed_run import check_unchanged
from samadapt.data.pseudonyms import hide_names, open_key, write_key
from samadapt.errors import ConfigError, RunError
from samadapt.reports.sweep import plan_text
from samadapt.reports.tables import counted, write_summary
from samadapt.runs.context import open_data, read_splits
from samadapt.runs.environment import write_json
from samadapt.runs.run_directory import RunLockedError, locked, make_run_dir
from samadapt.runs.sweep_results import SUMMARY_NAME, best_of, summarise_sweep, write_sweep_page
from samadapt.runs.sweep_runner import Machine, Runner, is_trained
from samadapt.runs.sweep_search import Search, TrialMaker, make_search
from samadapt.runs.sweep_study import CLAIMS, JOURNAL, SweepStudy, alone, import_optuna
from samadapt.system import atomic
from samadapt.system.launchers import refuse_several_processes

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

    from samadapt.data.dataset import Dataset

MACHINE_NAME = "machine.json"
WINNER = "winner"

PRUNED_FROM = 5
"""So many trials must have finished before one is stopped for being below their median."""

PRUNED_AFTER = 1 / 3
"""Share of its steps that every trial makes: low learning rates start slowly and may end well."""


@dataclass(frozen=True)
class SweepResult:
    """What ``sweep`` returns.

    Attributes:
        run_dir: the directory of the sweep; None for a plan alone.
        plan: what was to be run.
        summary: the content of ``sweep.json``; None for a plan alone, and where other processes
            still run trials.
    """

    run_dir: Path | None
    plan: dict[str, Any]
    summary: dict[str, Any] | None


def sweep(arguments: SweepArguments) -> SweepResult:
    """Run the trials that are missing; the process that ends the last one scores the winner.

    Raises:
        UserError: for a mistake in configuration, data or weights.
        RunError: when every trial failed, or some were killed.
        InterruptedSweepError: after a signal.
    """
    refuse_several_processes()
    import_optuna()  # it may be missing
    started = time.perf_counter()
    resumed = None if arguments.resume is None else Path(arguments.resume)
    dataset = open_data(arguments, scratch=arguments.output.dir)
    reads_alike = not any(key.startswith("data.") for key in arguments.space)
    if resumed is not None and reads_alike:  # otherwise each trial reads the files in its own way
        check_same_data(dataset, resumed, hides_names=arguments.privacy)
    machine = _machine(arguments, resumed)
    maker = TrialMaker(arguments, machine.device, machine.precision["name"], dataset.longest_side())
    search = make_search(maker)
    plan = describe_plan(arguments, search, machine, dataset)
    if arguments.dry:
        return SweepResult(resumed, plan, None)
    console.log(plan_text(plan))
    directory = resumed or make_directory(arguments, machine)
    runner = Runner(directory, machine, arguments.workers)
    try:
        study = SweepStudy(directory, _pruner(plan))
        runner.run_trials(study, search)
    except ConfigError:
        if resumed is None and not any(trial.value is not None for trial in study.trials()):
            shutil.rmtree(directory, ignore_errors=True)  # refused before anything was trained
        raise
    running = [trial for trial in study.trials() if not trial.state.is_finished()]
    if running:
        listed = ", ".join(str(trial.number) for trial in running)
        console.log(
            f"samadapt: other processes still run trial {listed}; the last one scores the winner"
        )
        return SweepResult(directory, plan, None)
    try:
        with locked(directory):
            summary = _finish(directory, arguments, search, runner, study)
            summary["seconds"] = time.perf_counter() - started
            write_summary(directory, summary, SUMMARY_NAME)
    except RunLockedError:
        console.log("samadapt: another process scores the winner")
        return SweepResult(directory, plan, None)
    return SweepResult(directory, plan, summary)


def check_same_data(dataset: Dataset, resumed: Path, *, hides_names: bool) -> None:
    """Check that the data are those of the trials of a stopped sweep.

    Raises:
        DataError: naming what changed.
    """
    if hides_names:
        dataset = hide_names(dataset, open_key(resumed / "trials"))
    for path in sorted(resumed.glob("trials/*/splits.json"))[:1]:
        for warning in check_unchanged(read_splits(path), dataset, str(path)):
            console.log(f"samadapt: warning: {warning}")


def _machine(arguments: SweepArguments, resumed: Path | None) -> Machine:
    """Return device, precision and threads of all trials: chosen here, or as the sweep began.

    A sweep that was submitted to a cluster begins in the first of its jobs.

    Raises:
        ConfigError: the directory holds no sweep.
    """
    if resumed is None:
        return Machine.of(arguments, arguments.threads, arguments.workers)
    if not is_begun(resumed):
        (resumed / CLAIMS).mkdir(exist_ok=True)
        with alone(resumed / CLAIMS / "machine"):
            if not is_begun(resumed):
                machine = Machine.of(arguments, arguments.threads, arguments.workers)
                write_json(resumed / MACHINE_NAME, vars(machine))
    try:
        return Machine(**json.loads((resumed / MACHINE_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{resumed / MACHINE_NAME}: expected device, precision and threads of a sweep; restore "
            "the file, or start a new sweep"
        ) from error


def is_begun(directory: Path) -> bool:
    """Return whether the machine of a sweep is chosen, or was and is lost."""
    return (directory / MACHINE_NAME).is_file() or (directory / JOURNAL).is_file()


def make_directory(arguments: SweepArguments, machine: Machine | None) -> Path:
    """Make the directory of a new sweep.

    Args:
        arguments: the keys of the sweep.
        machine: what is the same for all trials; None: the first job chooses it.
    """
    stored = to_yaml(replace(arguments, resume=None, dry=False))
    words = ["sweep", arguments.model.name]
    directory = make_run_dir(arguments.output.dir, arguments.recipe, words, stored)
    for name in ("trials", WINNER):
        (directory / name).mkdir()
    if arguments.privacy:  # one key for all runs, which look for it in the folder above them
        pseudonyms = open_key(directory)
        for name in ("trials", WINNER):
            write_key(directory / name, pseudonyms, ())
    if machine is not None:
        write_json(directory / MACHINE_NAME, vars(machine))
    return directory


def describe_plan(
    arguments: SweepArguments, search: Search, machine: Machine | None, dataset: Dataset
) -> dict[str, Any]:
    """Return what a sweep will do, as plain values, for the reader and for ``sweep.json``.

    Args:
        arguments: the keys of the sweep.
        search: what is tried.
        machine: what is the same for all trials; None: the first job chooses it.
        dataset: the data.
    """
    dimensions, context = search.dimensions, arguments.context
    methods = used_by(dimensions, context)
    peft = dimensions.get("peft")
    swept = [method_name(text) for text in getattr(peft, "values", (context["peft"],))]
    space = [
        {
            "key": key,
            "values": str(one),
            "methods": None if len(methods[key]) == len(set(swept)) else sorted(methods[key]),
        }
        for key, one in dimensions.items()
    ]
    train = arguments.train
    limits = {key: getattr(train, key) for key in ("steps", "max_seconds", "max_cpu_seconds")}
    if not arguments.limits_time:
        limits["steps"] = arguments.trial_steps
    return {
        "search": "grid" if search.grid is not None else "tpe",
        "trials": search.total,
        "space": space,
        "grid": [dict(one.values) for one in search.grid or ()],
        "notes": _notes(arguments, swept),
        "pruning": _pruning(arguments),
        "held_out": len(dataset.val),
        "seeds": arguments.seeds,
        "machine": (vars(machine) if machine else {}) | {"workers": arguments.workers},
        "machine_text": machine.text if machine else "the machine of the first job",
        "limits": {key: value for key, value in limits.items() if value is not None},
    }


def _notes(arguments: SweepArguments, swept: Sequence[str]) -> list[str]:
    """Return what a reader of the plan might not expect."""
    notes = []
    blocks = arguments.space.get("peft.blocks")
    if "peft" in arguments.space:
        if blocks is None:
            notes.append("peft.blocks is named nowhere: each method has its own default")
        elif "," not in blocks:
            notes.append(
                f"peft.blocks={blocks} holds for every method; give it several values to search it"
            )
        own = arguments.peft.name
        others = ", ".join(name for name in swept if name != own)
        if others:
            notes.append(
                f"other options that the recipe sets for {own}, such as a rank or train.lr, do not "
                f"hold for {others}: the defaults of each method do"
            )
    if arguments.equal_parameters is not None:
        notes.append(
            f"the size of each method is chosen to train about {arguments.equal_parameters:,} "
            "parameters of the encoder"
        )
    if arguments.limits_time:
        shared = arguments.cache.where == "auto" and arguments.cache.dir is None
        notes.append(
            "each trial computes its features itself (cache.where=memory), since all have the same "
            "time"
            if shared
            else "features that are shared cost the first trial time and the others none; "
            "cache.where=memory gives all the same"
        )
    return notes


def _pruning(arguments: SweepArguments) -> dict[str, Any] | str:
    """Return from which step on trials are stopped early, or why none is."""
    every, steps = arguments.train.validate_every, arguments.trial_steps
    if not arguments.prune:
        return "prune=false"
    if arguments.limits_time:
        return "trials of limited time are at different points of theirs at the same step"
    if "train.steps" in arguments.space or "train.schedule" in arguments.space:
        return "trials with other steps or schedules cannot be compared at the same step"
    if not 0 < every < steps:
        return "there is one validation, at the end (train.validate_every)"
    return {"from_step": round(PRUNED_AFTER * steps), "after_trials": PRUNED_FROM}


def _pruner(plan: Mapping[str, Any]) -> BasePruner | None:
    """Return optuna's pruner of a plan."""
    pruning = plan["pruning"]
    if isinstance(pruning, str):
        return None
    pruner: BasePruner = import_optuna().pruners.MedianPruner(
        n_startup_trials=pruning["after_trials"], n_warmup_steps=pruning["from_step"]
    )
    return pruner


def _finish(
    directory: Path,
    arguments: SweepArguments,
    search: Search,
    runner: Runner,
    study: SweepStudy,
) -> dict[str, Any]:
    """Train and score the winner with several seeds, and write the results.

    Raises:
        RunError: every trial failed.
    """
    trials = study.trials()
    winner = best_of(trials)
    if winner is None:
        errors = [str(trial.user_attrs.get("error", "")) for trial in trials]
        raise RunError(f"every trial failed or was stopped; the first said: {errors[0]}")
    _, config = search.maker.make(winner.user_attrs["values"])
    jobs = _winner_jobs(directory, arguments, config, study.run_dir(winner.number))
    console.log(
        f"samadapt: winner: trial {winner.number}, validation Dice {winner.value:.4f}; now "
        f"{counted(len(jobs), 'seed')} of it and the held-out cases"
    )
    runner.run_all(jobs, lambda run_dir: f"winner, {run_dir.name.replace('_', ' ')}")
    command = _command_line(arguments, config, winner)
    runs = [run_dir for _, run_dir in jobs]
    summary = summarise_sweep(trials, study, runs, command)
    summary["space"] = [{"key": key, "values": str(one)} for key, one in search.dimensions.items()]
    summary["search"] = "grid" if search.grid is not None else "tpe"
    summary["machine"] = vars(runner.machine)
    write_sweep_page(directory, arguments, summary, study)
    return summary


def _winner_jobs(
    directory: Path, arguments: SweepArguments, config: Config, trial_dir: Path
) -> list[tuple[Config, Path]]:
    """Return configuration and directory of the winner's runs, one for each seed.

    The first seed is that of the trial. Its run is copied, and only scores what is held out.
    """
    jobs = []
    for number in range(arguments.seeds):
        run_dir = directory / WINNER / f"seed_{config.seed + number}"
        one = replace(
            config,
            seed=config.seed + number,
            eval=replace(config.eval, max_cases=arguments.eval.max_cases),
        )
        if number == 0 and not is_trained(run_dir, scored=True):
            shutil.rmtree(run_dir, ignore_errors=True)
            with atomic.folder(run_dir) as part:
                hidden = shutil.ignore_patterns(".*")  # locks
                shutil.copytree(trial_dir, part, ignore=hidden, dirs_exist_ok=True)
                atomic.write_text(part / "config.yaml", to_yaml(one))
        jobs.append((one, run_dir))
    return jobs


def _command_line(arguments: SweepArguments, config: Config, winner: FrozenTrial) -> str:
    """Return the command that trains and scores the winner from nothing."""
    values = [f"{key}={text}" for key, text in winner.user_attrs["values"].items()]
    chosen = [f"precision={config.precision}", f"device={config.device}"]
    if config.cache.where != arguments.cache.where:
        chosen.append(f"cache.where={config.cache.where}")
    words = ["samadapt", "finetune", f"recipe={arguments.recipe}", *arguments.fixed, *values]
    return shlex.join(dict.fromkeys([*words, *chosen]))  # the last value of a key counts
